//! Speaks NBD to clients on behalf of an [`Export`].
//!
//! The protocol lives in [`proto`], without IO, for servers and clients. With the feature `server`
//! (the default) sessions on tokio and a [`Listener`] come on top. What the device behind an export
//! is, this crate does not know: a program implements [`Export`] and [`Exports`].

pub mod proto;

#[cfg(feature = "server")]
mod export;
#[cfg(feature = "server")]
pub mod exports;
#[cfg(feature = "server")]
mod listener;
#[cfg(feature = "server")]
mod session;

pub use proto::{ByteRange, ErrorCode, ExportInfo, ExportName, Extent, Zero};

#[cfg(feature = "server")]
pub use export::{Export, ExportError, Exports, OpenError, Peer};
#[cfg(feature = "server")]
pub use listener::{ListenAddress, Listener, ServerLimits};
#[cfg(feature = "server")]
pub use session::{Gate, serve_connection};
