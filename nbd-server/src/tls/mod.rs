//! TLS of a listener: whether, with which certificate, and whom it lets in.

mod error;
mod name;
mod server;

pub use error::{TlsError, TlsPart};
pub(crate) use server::{Secured, TlsReader, TlsWriter};
pub use server::{TlsPem, TlsServer};

use crate::proto::TlsPolicy;

/// What a listener does about TLS.
#[derive(Debug, Clone, Default)]
pub enum Tls {
    /// Nothing: a client that asks for it is told so, and may go on without.
    #[default]
    Off,
    /// Begins it for clients that ask.
    On(TlsServer),
    /// Serves nothing before it.
    Require(TlsServer),
}

impl Tls {
    /// What the handshake is told.
    #[must_use]
    pub const fn policy(&self) -> TlsPolicy {
        match self {
            Self::Off => TlsPolicy::Off,
            Self::On(_) => TlsPolicy::On,
            Self::Require(_) => TlsPolicy::Require,
        }
    }

    /// Whether nobody is served who has not shown a certificate of an authority of ours.
    #[must_use]
    pub const fn authenticates_clients(&self) -> bool {
        match self {
            Self::Off | Self::On(_) => false,
            Self::Require(server) => server.verifies_clients(),
        }
    }

    pub(crate) const fn server(&self) -> Option<&TlsServer> {
        match self {
            Self::Off => None,
            Self::On(server) | Self::Require(server) => Some(server),
        }
    }
}
