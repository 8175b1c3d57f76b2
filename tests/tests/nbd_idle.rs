//! What an idle connection costs. Alone in its process, because it looks at the memory of all of it.

use std::sync::Arc;

use nbd_server::exports::{MemoryExport, SingleExport};
use nbd_server::{Gate, ListenAddress, Listener, ServerLimits};
use tokio_util::sync::CancellationToken;

/// A thousand idle connections stay below 96 MiB; fewer are measured, because both ends of each take
/// a descriptor of this process.
const BYTES_EACH: usize = 96 << 10;
const CONNECTIONS: u32 = 400;

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_costs_little() {
    let address = ListenAddress::Tcp(([127, 0, 0, 1], 0).into());
    let limits = ServerLimits {
        connections_per_export: CONNECTIONS,
        ..ServerLimits::default()
    };
    let listener = Listener::bind(&address)
        .await
        .expect("a listener")
        .with_gate(Gate::new(limits));
    let ListenAddress::Tcp(bound) = listener.local_address() else {
        unreachable!("it was bound to TCP")
    };
    let stop = CancellationToken::new();
    let exports = Arc::new(SingleExport::new("vm-disk0", MemoryExport::new(1 << 30)));
    let serve = tokio::spawn(listener.serve(exports, stop.clone()));

    let mut connections = vec![idle_connection(bound.port()).await];
    let before = resident_bytes();
    for _ in 1..CONNECTIONS {
        connections.push(idle_connection(bound.port()).await);
    }
    let each = resident_bytes().saturating_sub(before) / connections.len();
    assert!(each < BYTES_EACH, "bytes for each connection: {each}");

    stop.cancel();
    serve.await.expect("no session failed");
}

/// A connection that finished its handshake the old way.
async fn idle_connection(port: u16) -> tokio::net::TcpStream {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("a connection");
    socket
        .write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x08vm-disk0")
        .await
        .expect("a handshake");
    let mut answer = [0; 18 + 10];
    socket.read_exact(&mut answer).await.expect("an answer");
    socket
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("VmRSS");
    let kib: usize = line
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("a number");
    kib << 10
}
