//! Speaks NBD to clients on behalf of an [`Export`].
//!
//! ```text
//!  clients                    this crate                                   the program
//!  ───────   ┌──────────────────────────────────────────────┐   ┌───────────────────────────┐
//!  TCP,  ──▶ │ Listener ─▶ session ─▶ proto (no IO)         │   │ impl Exports              │
//!  unix      │   accept      │        handshake · request · │   │   open(name) ─▶ a device  │
//!            │   limits      │        admission · reply     │   │ impl Export               │
//!        ◀── │   stop        └─▶ checked calls, in pieces ──┼──▶│   read write zero trim    │
//!            └──────────────────────────────────────────────┘   │   flush extents close     │
//!                                                               └───────────────────────────┘
//! ```
//!
//! The protocol lives in [`proto`], without IO, for servers and clients. With the feature `server`
//! (the default) sessions on tokio and a [`Listener`] come on top. What the device behind an export
//! is, this crate does not know: a program implements [`Export`] and [`Exports`].
//!
//! A [`Listener`] speaks TLS as its [`Tls`] says: not at all, with those who ask (`NBD_OPT_STARTTLS`),
//! or with nobody else; a [`TlsServer`] is made of PEM texts, and may verify the certificates of clients.
//! Nothing that was said before TLS counts in it.
//!
//! What holds whatever a client does:
//!
//! - an export is only called with ranges inside the device, never empty, in bounded pieces;
//! - memory follows what was sent, never what was announced, and is bounded per connection and in all;
//! - connections that say nothing keep nobody out, and none is cut off between two requests;
//! - an error leaves the connection usable, as far as the protocol has a way to tell it;
//! - a call that has begun runs to its end, and `close` comes once, after the last of them.
//!
//! ```
//! # #[cfg(feature = "server")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! use std::sync::Arc;
//!
//! use nbd_server::exports::{MemoryExport, SingleExport};
//! use nbd_server::{ListenAddress, Listener};
//! use tokio_util::sync::CancellationToken;
//!
//! let listener = Listener::bind(&ListenAddress::Tcp(([127, 0, 0, 1], 0).into())).await?;
//! let exports = SingleExport::new("disk", MemoryExport::new(1 << 30));
//! let stop = CancellationToken::new();
//! let serving = tokio::spawn(listener.serve(Arc::new(exports), stop.clone()));
//!
//! // Clients come and go; then:
//! stop.cancel();
//! serving.await?;
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "server"))]
//! # fn main() {}
//! ```

pub mod proto;

#[cfg(feature = "server")]
mod export;
#[cfg(feature = "server")]
pub mod exports;
#[cfg(feature = "server")]
mod listener;
#[cfg(feature = "server")]
mod session;
#[cfg(feature = "server")]
pub mod statistics;
#[cfg(feature = "server")]
mod tls;

pub use proto::{ByteRange, ErrorCode, ExportInfo, ExportName, Extent, MetaContext, Zero};

#[cfg(feature = "server")]
pub use export::{Content, Export, ExportError, Exports, OpenError, Peer};
#[cfg(feature = "server")]
pub use listener::{Endpoint, ListenAddress, Listener, ServerLimits};
#[cfg(feature = "server")]
pub use session::{Gate, serve_connection};
#[cfg(feature = "server")]
pub use statistics::Statistics;
#[cfg(feature = "server")]
pub use tls::{Tls, TlsError, TlsPart, TlsPem, TlsServer};
