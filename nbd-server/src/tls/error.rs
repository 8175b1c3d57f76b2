use std::fmt;

use rustls::pki_types::pem;
use rustls::server::VerifierBuilderError;

/// Which of the PEM texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsPart {
    /// [`crate::TlsPem::certificates`].
    Certificates,
    /// [`crate::TlsPem::key`].
    Key,
    /// [`crate::TlsPem::client_authorities`].
    ClientAuthorities,
    /// [`crate::TlsPem::revoked`].
    Revoked,
}

impl fmt::Display for TlsPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificates => "server certificate",
            Self::Key => "server key",
            Self::ClientAuthorities => "client authority certificate",
            Self::Revoked => "revocation list",
        })
    }
}

/// Why there is no [`crate::TlsServer`].
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM text holds nothing of the kind that it should.
    #[error("no {part} found in the pem text")]
    Missing {
        /// Which one.
        part: TlsPart,
    },
    /// A PEM text is malformed.
    #[error("malformed pem text of the {part}")]
    Pem {
        /// Which one.
        part: TlsPart,
        /// Where it breaks.
        #[source]
        source: pem::Error,
    },
    /// What is in the PEM text is not what it says, or of a kind that cannot be used.
    #[error("unusable {part}")]
    Unusable {
        /// Which one.
        part: TlsPart,
        /// The reason.
        #[source]
        source: rustls::Error,
    },
    /// The key is not that of the certificate.
    #[error("server key does not belong to the server certificate")]
    KeyMismatch,
    /// Authorities or revocation lists cannot verify clients.
    #[error("clients cannot be verified")]
    Verifier(#[source] VerifierBuilderError),
}
