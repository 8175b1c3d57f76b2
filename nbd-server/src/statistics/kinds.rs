//! What is told apart where things are counted.

use crate::proto::{CommandCode, ErrorCode};

/// A small set of cases with names, as the label of a metric.
pub trait Kind: Copy + Send + Sync + 'static {
    /// Every case, each at its own index.
    const ALL: &'static [Self];

    /// The name of the case: lowercase, words joined by `_`.
    fn name(self) -> &'static str;

    /// Its place in [`Kind::ALL`].
    fn index(self) -> usize;
}

macro_rules! kinds {
    ($(#[$doc:meta])* $vis:vis $type:ident { $($(#[$case_doc:meta])* $case:ident = $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $type {
            $($(#[$case_doc])* $case,)*
        }

        impl Kind for $type {
            const ALL: &'static [Self] = &[$(Self::$case,)*];

            fn name(self) -> &'static str {
                match self {
                    $(Self::$case => $text,)*
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

pub(super) use kinds;

kinds! {
    /// Why a connection never became a session.
    pub HandshakeEnd {
        /// The client left, said ABORT, or asked for an export in a way that cannot be refused.
        Left = "left";
        /// The connection broke.
        Broken = "broken";
        /// The client broke the protocol.
        Protocol = "protocol";
        /// TLS did not begin: a certificate that counts for nothing, mostly.
        Tls = "tls";
        /// It was not done in time.
        TimedOut = "timeout";
        /// It was the oldest when a newcomer needed its place.
        Evicted = "evicted";
        /// The server stopped.
        Stopped = "stopped";
    }
}

kinds! {
    /// Why an export was not given.
    pub ExportRefusal {
        /// There is none of that name.
        Unknown = "unknown";
        /// The program said no.
        Policy = "policy";
        /// It has as many connections as it may have.
        ExportFull = "export_full";
        /// The server has as many sessions as it may have.
        ServerFull = "server_full";
        /// The server is going down.
        ShuttingDown = "shutting_down";
    }
}

kinds! {
    /// How a session ended.
    pub SessionEnd {
        /// The client said DISC, or closed between two requests.
        Left = "left";
        /// The client closed or vanished within a request.
        Broken = "broken";
        /// The client broke the protocol.
        Protocol = "protocol";
        /// The client stopped within a request.
        Stalled = "stalled";
        /// The client was gone or left its replies unread, or a call of the export panicked.
        Cut = "cut";
        /// The server stopped, or the export was withdrawn.
        Stopped = "stopped";
    }
}

kinds! {
    /// The command of a request.
    pub CommandKind {
        /// READ.
        Read = "read";
        /// WRITE.
        Write = "write";
        /// DISC.
        Disconnect = "disconnect";
        /// FLUSH.
        Flush = "flush";
        /// TRIM.
        Trim = "trim";
        /// CACHE.
        Cache = "cache";
        /// `WRITE_ZEROES`.
        WriteZeroes = "write_zeroes";
        /// `BLOCK_STATUS`.
        BlockStatus = "block_status";
        /// Any other number.
        Other = "other";
    }
}

impl From<CommandCode> for CommandKind {
    fn from(code: CommandCode) -> Self {
        match code {
            CommandCode::READ => Self::Read,
            CommandCode::WRITE => Self::Write,
            CommandCode::DISC => Self::Disconnect,
            CommandCode::FLUSH => Self::Flush,
            CommandCode::TRIM => Self::Trim,
            CommandCode::CACHE => Self::Cache,
            CommandCode::WRITE_ZEROES => Self::WriteZeroes,
            CommandCode::BLOCK_STATUS => Self::BlockStatus,
            _ => Self::Other,
        }
    }
}

kinds! {
    /// The error that a request was answered by.
    pub ErrorKind {
        /// `EPERM`.
        Perm = "eperm";
        /// `EIO`.
        Io = "eio";
        /// `ENOMEM`.
        NoMem = "enomem";
        /// `EINVAL`.
        Inval = "einval";
        /// `ENOSPC`.
        NoSpc = "enospc";
        /// `EOVERFLOW`.
        Overflow = "eoverflow";
        /// `ENOTSUP`.
        NotSup = "enotsup";
        /// `ESHUTDOWN`.
        Shutdown = "eshutdown";
        /// Any other number.
        Other = "other";
    }
}

impl From<ErrorCode> for ErrorKind {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::PERM => Self::Perm,
            ErrorCode::IO => Self::Io,
            ErrorCode::NOMEM => Self::NoMem,
            ErrorCode::INVAL => Self::Inval,
            ErrorCode::NOSPC => Self::NoSpc,
            ErrorCode::OVERFLOW => Self::Overflow,
            ErrorCode::NOTSUP => Self::NotSup,
            ErrorCode::SHUTDOWN => Self::Shutdown,
            _ => Self::Other,
        }
    }
}
