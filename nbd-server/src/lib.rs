//! Speaks NBD to clients on behalf of an [`Export`].
// SKELETON of the public face that `engine` and `backup-client` code against; bodies and modules are the nbd author's.
#![allow(missing_docs, unused)]

#[cfg(feature = "server")]
pub use server::*;
#[cfg(feature = "server")]
mod server {
    use bytes::Bytes;
    use std::future::Future;

    /// `offset + len_bytes` never overflows and lies inside the device (the session has checked it).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ByteRange {
        pub offset: u64,
        pub len_bytes: u64,
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct ExportInfo {
        pub size_bytes: u64,
        pub read_only: bool,
        /// FLUSH on one connection covers the completed writes of all.
        pub multi_conn: bool,
        pub description: String,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Zero {
        /// a hole may be made
        MayUnmap,
        /// NBD_CMD_FLAG_NO_HOLE: leaves an allocation
        KeepAllocated,
    }

    /// One run of equal state: the two bits of `base:allocation`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Extent {
        pub len_bytes: u64,
        pub hole: bool,
        pub reads_zero: bool,
    }

    /// What the client is told (an errno of the NBD spec) and what the log says.
    #[derive(Debug, Clone, thiserror::Error)]
    #[error("{message}")]
    pub struct ExportError {
        pub code: ErrorCode,
        pub message: String,
    }
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ErrorCode(pub u32);
    impl ErrorCode {
        pub const PERM: Self = Self(1);
        pub const IO: Self = Self(5);
        pub const NOMEM: Self = Self(12);
        pub const INVAL: Self = Self(22);
        pub const NOSPC: Self = Self(28);
        pub const NOTSUP: Self = Self(95);
        pub const SHUTDOWN: Self = Self(108);
    }

    /// The device behind one session. The session checks range, flags and permission before it calls.
    /// Calls run concurrently. A dropped future may or may not have taken effect.
    pub trait Export: Send + Sync + 'static {
        fn info(&self) -> ExportInfo;
        fn read(&self, range: ByteRange)
        -> impl Future<Output = Result<Bytes, ExportError>> + Send;
        /// A piece of a WRITE (at most 256 KiB); a large request comes in several pieces.
        fn write(
            &self,
            offset: u64,
            data: Bytes,
        ) -> impl Future<Output = Result<(), ExportError>> + Send;
        fn zero(
            &self,
            range: ByteRange,
            how: Zero,
        ) -> impl Future<Output = Result<(), ExportError>> + Send;
        /// The range reads as zero afterwards, and its space may be given back.
        fn trim(&self, range: ByteRange) -> impl Future<Output = Result<(), ExportError>> + Send;
        /// Everything that completed on any session of this device before the call is durable.
        fn flush(&self) -> impl Future<Output = Result<(), ExportError>> + Send;
        /// Covers a prefix of `range`, at least its first byte.
        fn extents(
            &self,
            range: ByteRange,
        ) -> impl Future<Output = Result<Vec<Extent>, ExportError>> + Send;
        /// Resolves when this session must end (the export was withdrawn); pending for ever otherwise.
        fn withdrawn(&self) -> impl Future<Output = ()> + Send;
        /// End of session, also after errors; every other call has returned.
        fn close(&self) -> impl Future<Output = ()> + Send;
    }

    #[derive(Debug, Clone, PartialEq, Eq, Hash)]
    pub struct ExportName(String);
    impl ExportName {
        pub fn as_str(&self) -> &str {
            &self.0
        }
    }
    /// Who is asking.
    #[derive(Debug, Clone)]
    pub struct Peer {
        pub address: String,
    }

    #[derive(Debug, Clone, thiserror::Error)]
    pub enum OpenError {
        #[error("unknown export")]
        Unknown,
        #[error("refused: {0}")]
        Policy(String),
        #[error("shutting down")]
        ShuttingDown,
    }

    pub trait Exports: Send + Sync + 'static {
        type Export: Export;
        fn open(
            &self,
            name: &ExportName,
            peer: &Peer,
        ) -> impl Future<Output = Result<Self::Export, OpenError>> + Send;
        fn list(&self, peer: &Peer) -> impl Future<Output = Vec<String>> + Send;
    }

    #[derive(Debug, Clone)]
    pub enum ListenAddress {
        Tcp(std::net::SocketAddr),
        Unix(std::path::PathBuf),
    }

    /// A bound listener; `local_address` tells the port that was given for port 0.
    pub struct Listener;
    impl Listener {
        pub async fn bind(address: &ListenAddress) -> std::io::Result<Self> {
            unimplemented!()
        }
        pub fn local_address(&self) -> ListenAddress {
            unimplemented!()
        }
        /// Accepts until `stop` is cancelled, then stops accepting, answers what is in flight, closes and returns.
        pub async fn serve<E: Exports>(
            self,
            exports: std::sync::Arc<E>,
            stop: tokio_util::sync::CancellationToken,
        ) {
            unimplemented!()
        }
    }
}
