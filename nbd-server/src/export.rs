//! The seam: what a program must provide so that its devices can be served.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

use crate::proto::{ByteRange, ErrorCode, ExportInfo, ExportName, Extent, Zero};

/// Why a call failed: what the client is told by number, and what the log says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExportError {
    /// The client gets this number and nothing else.
    pub code: ErrorCode,
    /// For the log of the server.
    pub message: String,
}

impl ExportError {
    /// An error of this code.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// What a range of a device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Exactly as many bytes as the range has.
    Data(Bytes),
    /// Zeroes; they need not travel where the client understands that.
    Zeroes,
}

/// The device behind one session.
///
/// The session checks range, flags and permission before it calls; ranges are never empty. Calls
/// run concurrently. A call that has begun is always driven to its end, also when the client is
/// gone, so that a write never stops halfway because of a socket.
///
/// A call that panics ends its session, not the server.
pub trait Export: Send + Sync + 'static {
    /// What clients are told. Asked once, when the session begins.
    fn info(&self) -> ExportInfo;

    /// What the range holds, which is at most 256 KiB long.
    ///
    /// # Errors
    ///
    /// The client is told the code; it learns nothing about which part failed.
    fn read(&self, range: ByteRange) -> impl Future<Output = Result<Content, ExportError>> + Send;

    /// A piece of a WRITE: at most 256 KiB, not crossing a multiple of 256 KiB. Pieces of one
    /// request are written concurrently, in no order. A `data` that is dropped when the call returns
    /// is received into again.
    ///
    /// # Errors
    ///
    /// The other pieces may still be written; the client is told that the request failed.
    fn write(
        &self,
        offset: u64,
        data: Bytes,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// The range reads as zero afterwards. A request comes in pieces of at most 32 MiB,
    /// in order.
    ///
    /// # Errors
    ///
    /// As for [`Export::write`].
    fn zero(
        &self,
        range: ByteRange,
        how: Zero,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// The range reads as zero afterwards, and its space may be given back. Comes in pieces like
    /// [`Export::zero`].
    ///
    /// # Errors
    ///
    /// As for [`Export::write`].
    fn trim(&self, range: ByteRange) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// Everything that completed on any session of this device before the call is durable.
    ///
    /// # Errors
    ///
    /// It may not be durable.
    fn flush(&self) -> impl Future<Output = Result<(), ExportError>> + Send;

    /// The state of a prefix of `range`, which is at most 4 GiB long, in order, at least of its first
    /// byte. It answers every context of [`ExportInfo::contexts`].
    ///
    /// # Errors
    ///
    /// The client is told the code.
    fn extents(
        &self,
        range: ByteRange,
    ) -> impl Future<Output = Result<Vec<Extent>, ExportError>> + Send;

    /// Resolves when this session must end (the export was withdrawn). What is in flight is still
    /// answered, the rest is refused with `ESHUTDOWN`. Never resolves unless overridden.
    fn withdrawn(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// End of session, also after errors; called once, after every other call has returned.
    fn close(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// Who is asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Address and port, or `unix` for a client of a unix socket. For logs and policies.
    pub address: String,
    /// The name in the certificate that it had to show, if it had to.
    pub name: Option<String>,
}

impl Peer {
    /// The address without its port, if it is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        let address: SocketAddr = self.address.parse().ok()?;
        Some(address.ip().to_canonical())
    }
}

/// Why there is no export.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is none of that name.
    #[error("unknown export")]
    Unknown,
    /// It exists, but not for this client now. The client sees the text.
    #[error("refused: {0}")]
    Policy(String),
    /// The server is going down.
    #[error("shutting down")]
    ShuttingDown,
}

/// The devices of a server, by name.
pub trait Exports: Send + Sync + 'static {
    /// What a session holds.
    type Export: Export;

    /// A device for one session, which ends it with [`Export::close`]. Also called for a client that
    /// only asks for size, abilities or contexts; then it is closed at once.
    ///
    /// # Errors
    ///
    /// The client is told; it may ask for another name.
    fn open(
        &self,
        name: &ExportName,
        peer: &Peer,
    ) -> impl Future<Output = Result<Self::Export, OpenError>> + Send;

    /// The names this client may see.
    fn list(&self, peer: &Peer) -> impl Future<Output = Vec<String>> + Send;
}
