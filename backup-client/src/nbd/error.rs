//! What can go wrong on a connection.

use nbd_server::proto::{CommandCode, ErrorCode, ProtocolError};

/// Why a connection or a request failed. Cloned to every request that waits when a connection breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    /// The address does not answer.
    #[error("cannot connect to {address}: {why}")]
    Connect {
        /// Where to.
        address: String,
        /// What the system says.
        why: String,
    },
    /// The server refused the export, or broke the protocol in the handshake.
    #[error("handshake with {address} failed export={export:?}: {source}")]
    Handshake {
        /// Where to.
        address: String,
        /// The export's name.
        export: String,
        /// What the protocol core says.
        source: ProtocolError,
    },
    /// The server answered a request with an error; the connection goes on.
    #[error(
        "the server answered {command} with {code} offset={offset} len={len_bytes}{}",
        said(text)
    )]
    Server {
        /// Which command.
        command: CommandCode,
        /// First byte of the request.
        offset: u64,
        /// Its length.
        len_bytes: u64,
        /// The errno of the protocol.
        code: ErrorCode,
        /// The server's words; often empty.
        text: String,
    },
    /// The connection has ended; nothing more can be asked on it.
    #[error("connection lost: {why}")]
    Closed {
        /// How it ended.
        why: String,
    },
    /// No reply came in time.
    #[error("no reply to {command} within {seconds} s offset={offset} len={len_bytes}")]
    Timeout {
        /// Which command.
        command: CommandCode,
        /// First byte of the request.
        offset: u64,
        /// Its length.
        len_bytes: u64,
        /// How long was waited.
        seconds: u64,
    },
    /// The request cannot be asked of this server.
    #[error("request not possible: {why}")]
    Invalid {
        /// Why not.
        why: String,
    },
}

fn said(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(" text={text:?}")
    }
}

impl NbdError {
    pub(super) fn closed(why: impl std::fmt::Display) -> Self {
        Self::Closed {
            why: why.to_string(),
        }
    }

    pub(super) fn invalid(why: impl std::fmt::Display) -> Self {
        Self::Invalid {
            why: why.to_string(),
        }
    }
}
