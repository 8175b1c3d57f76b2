//! Serves a device in memory, or one that discards, until interrupted.
//!
//! `cargo run -p nbd-server --example serve -- discard 127.0.0.1:10809 2147483648`
#![expect(
    clippy::print_stdout,
    reason = "the address is the answer of this program"
)]

use std::sync::Arc;

use nbd_server::exports::{DiscardExport, MemoryExport, SingleExport};
use nbd_server::{ListenAddress, Listener};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let kind = args.next().unwrap_or_else(|| "memory".to_owned());
    let address = args.next().unwrap_or_else(|| "127.0.0.1:10809".to_owned());
    let size_bytes = args.next().map_or(Ok(1 << 30), |size| size.parse())?;

    let address = match address.strip_prefix("unix:") {
        Some(path) => ListenAddress::Unix(path.into()),
        None => ListenAddress::Tcp(address.parse()?),
    };
    let listener = Listener::bind(&address).await?;
    println!("ready {:?}", listener.local_address());

    let stop = CancellationToken::new();
    let interrupted = stop.clone();
    tokio::spawn(async move {
        // Without the signal handler the program can still be killed.
        let _ = tokio::signal::ctrl_c().await;
        interrupted.cancel();
    });
    if kind == "discard" {
        let exports = SingleExport::new("disk", DiscardExport::new(size_bytes));
        listener.serve(Arc::new(exports), stop).await;
    } else {
        let exports = SingleExport::new("disk", MemoryExport::new(size_bytes));
        listener.serve(Arc::new(exports), stop).await;
    }
    Ok(())
}
