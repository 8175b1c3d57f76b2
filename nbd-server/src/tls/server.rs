use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, Join, ReadHalf, WriteHalf, join, split};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::error::{TlsError, TlsPart};
use super::name::common_name;
use crate::proto::limits::TLS_BUFFER_BYTES;

/// What a [`TlsServer`] is made of: PEM texts, as the files of qemu and nbdkit hold them.
#[derive(Clone, Copy)]
pub struct TlsPem<'a> {
    /// The server's certificate, then those between it and its authority (`server-cert.pem`).
    pub certificates: &'a [u8],
    /// The key of the first of them (`server-key.pem`).
    pub key: &'a [u8],
    /// Clients must show a certificate of one of these (`ca-cert.pem`); with `None` they are not
    /// asked for one.
    pub client_authorities: Option<&'a [u8]>,
    /// Certificates that count no more (`ca-crl.pem`). With any list, each authority of a client must
    /// have one that has not expired.
    pub revoked: Option<&'a [u8]>,
}

/// The server's side of TLS: its certificate, and whose certificates it takes. TLS 1.2 and 1.3;
/// sessions are not resumed, so that every connection shows its certificate.
#[derive(Clone)]
pub struct TlsServer {
    acceptor: TlsAcceptor,
    verifies_clients: bool,
}

/// It holds a key.
impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsServer")
            .field("verifies_clients", &self.verifies_clients)
            .finish_non_exhaustive()
    }
}

/// The halves of a connection in TLS. They share a lock: both sides of a connection have one cipher
/// state, and only a connection in TLS pays for it.
pub(crate) type TlsReader<R, W> = ReadHalf<TlsStream<Join<R, W>>>;
/// See [`TlsReader`].
pub(crate) type TlsWriter<R, W> = WriteHalf<TlsStream<Join<R, W>>>;

/// A connection whose TLS handshake is over.
pub(crate) struct Secured<R, W> {
    pub(crate) reader: TlsReader<R, W>,
    pub(crate) writer: TlsWriter<R, W>,
    /// The name in the certificate that the client had to show.
    pub(crate) client_name: Option<String>,
}

impl TlsServer {
    /// A server with this certificate.
    ///
    /// # Errors
    ///
    /// What is missing, malformed, of no use, or does not belong together.
    pub fn from_pem(texts: &TlsPem<'_>) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let key = certified_key(texts, &provider)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring has suites for every version");
        let builder = match texts.client_authorities {
            Some(authorities) => {
                let verifier = client_verifier(authorities, texts.revoked, provider)?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            verifies_clients: texts.client_authorities.is_some(),
        })
    }

    /// Whether clients must show a certificate.
    #[must_use]
    pub const fn verifies_clients(&self) -> bool {
        self.verifies_clients
    }

    /// The handshake of TLS, with a client that was told to begin it.
    pub(crate) async fn accept<R, W>(&self, reader: R, writer: W) -> io::Result<Secured<R, W>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let bound = |session: &mut rustls::ServerConnection| {
            session.set_buffer_limit(Some(TLS_BUFFER_BYTES));
        };
        let stream = self.acceptor.accept_with(join(reader, writer), bound);
        let stream = stream.await?;
        let shown = stream.get_ref().1.peer_certificates();
        let client_name = shown
            .and_then(|certificates| certificates.first())
            .and_then(|certificate| common_name(certificate));
        let (reader, writer) = split(stream);
        Ok(Secured {
            reader,
            writer,
            client_name,
        })
    }
}

/// All sections of a kind.
fn sections<T: PemObject>(text: &[u8], part: TlsPart) -> Result<Vec<T>, TlsError> {
    let all: Result<Vec<T>, pem::Error> = T::pem_slice_iter(text).collect();
    let all = all.map_err(|source| TlsError::Pem { part, source })?;
    if all.is_empty() {
        return Err(TlsError::Missing { part });
    }
    Ok(all)
}

fn certified_key(texts: &TlsPem<'_>, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let unusable = |part| move |source| TlsError::Unusable { part, source };
    let certificates: Vec<CertificateDer<'_>> =
        sections(texts.certificates, TlsPart::Certificates)?;
    let key = PrivateKeyDer::from_pem_slice(texts.key).map_err(|source| match source {
        pem::Error::NoItemsFound => TlsError::Missing { part: TlsPart::Key },
        source => TlsError::Pem {
            part: TlsPart::Key,
            source,
        },
    })?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(unusable(TlsPart::Key))?;
    let certified = CertifiedKey::new(certificates, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::KeyMismatch),
        Err(source) => Err(unusable(TlsPart::Certificates)(source)),
    }
}

fn client_verifier(
    authorities: &[u8],
    revoked: Option<&[u8]>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let part = TlsPart::ClientAuthorities;
    let mut roots = RootCertStore::empty();
    for authority in sections::<CertificateDer<'_>>(authorities, part)? {
        let added = roots.add(authority);
        added.map_err(|source| TlsError::Unusable { part, source })?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if let Some(revoked) = revoked {
        let lists: Vec<CertificateRevocationListDer<'_>> = sections(revoked, TlsPart::Revoked)?;
        // An old list does not say what was revoked since; like GnuTLS it is not taken for a new one.
        builder = builder.with_crls(lists).enforce_revocation_expiration();
    }
    builder.build().map_err(TlsError::Verifier)
}
