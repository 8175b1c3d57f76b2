//! Accepts clients until told to stop.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::proto::limits;
use crate::{Exports, Gate, Peer, Tls, serve_connection};

/// Where a listener is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// A TCP address; port 0 asks the system for a free one.
    Tcp(SocketAddr),
    /// A path for a unix socket.
    Unix(PathBuf),
}

/// Where a listener is, and what it does about TLS.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Where.
    pub address: ListenAddress,
    /// Whether clients may or must speak TLS.
    pub tls: Tls,
}

/// Without TLS.
impl From<ListenAddress> for Endpoint {
    fn from(address: ListenAddress) -> Self {
        let tls = Tls::Off;
        Self { address, tls }
    }
}

/// The bounds of a server; the defaults and their reasons are in [`crate::proto::limits`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerLimits {
    /// Sessions in all; one more is refused with a reason.
    pub sessions: u32,
    /// Connections in their handshake; one more takes the place of the oldest.
    pub handshakes: u32,
    /// The same from one address, unless that is this machine.
    pub handshakes_per_address: u32,
    /// Connections to one export; one more is refused with a reason.
    pub connections_per_export: u32,
    /// From accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// How long a session that must end may answer what is in flight.
    pub drain_timeout: Duration,
    /// Payload bytes of all connections that are in memory at once, beside one piece for each.
    pub payload_budget_bytes: u32,
    /// Whether clients may have 64-bit lengths (`NBD_OPT_EXTENDED_HEADERS`).
    pub extended_headers: bool,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            sessions: limits::MAX_SESSIONS,
            handshakes: limits::MAX_HANDSHAKES,
            handshakes_per_address: limits::MAX_HANDSHAKES_PER_ADDRESS,
            connections_per_export: limits::MAX_CONNECTIONS_PER_EXPORT,
            handshake_timeout: limits::HANDSHAKE_TIMEOUT,
            drain_timeout: limits::DRAIN_TIMEOUT,
            payload_budget_bytes: limits::PAYLOAD_BUDGET_BYTES,
            extended_headers: true,
        }
    }
}

impl ServerLimits {
    /// The same, but with no more connections than a process that may open so many descriptors has
    /// for them.
    #[must_use]
    pub fn within_descriptors(self, descriptors: u64) -> Self {
        let connections = descriptors / 4 * limits::CONNECTION_QUARTERS;
        let handshakes = connections / limits::HANDSHAKES_ONE_IN;
        let at_most = |limit: u32, count: u64| {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            limit.min(count.max(1))
        };
        Self {
            sessions: at_most(self.sessions, connections - handshakes),
            handshakes: at_most(self.handshakes, handshakes),
            ..self
        }
    }
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

#[derive(Debug)]
enum Client {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A bound listener: it holds its address, and clients may connect, but wait until it serves.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: ListenAddress,
    gate: Gate,
    tls: Tls,
}

impl Listener {
    /// Binds to an address. A unix socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    ///
    /// The address is taken, or the system refuses it.
    pub async fn bind(address: &ListenAddress) -> io::Result<Self> {
        let (socket, address) = match address {
            ListenAddress::Tcp(address) => {
                let listener = bind_tcp(*address)?;
                let bound = listener.local_addr()?;
                (Socket::Tcp(listener), ListenAddress::Tcp(bound))
            }
            ListenAddress::Unix(path) => {
                remove_stale_socket(path).await?;
                (Socket::Unix(UnixListener::bind(path)?), address.clone())
            }
        };
        Ok(Self {
            socket,
            address,
            gate: Gate::new(ServerLimits::default()),
            tls: Tls::Off,
        })
    }

    /// Serves behind this gate, which other listeners may share: then its limits count for all of
    /// them together.
    #[must_use]
    pub fn with_gate(mut self, gate: Gate) -> Self {
        self.gate = gate;
        self
    }

    /// Does this about TLS; nothing unless told.
    #[must_use]
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// The address, with the port that was given for port 0.
    #[must_use]
    pub fn local_address(&self) -> ListenAddress {
        self.address.clone()
    }

    /// The address, as [`Listener::local_address`], and what is done about TLS there.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.address.clone(),
            tls: self.tls.clone(),
        }
    }

    /// Accepts until `stop` is cancelled, then stops accepting, answers what is in flight, closes and
    /// returns. A session that does not end within the drain time (a call of the export that hangs)
    /// is left to itself.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cuts every session. Cancel `stop` instead.
    pub async fn serve<X: Exports>(self, exports: Arc<X>, stop: CancellationToken) {
        let mut sessions = JoinSet::new();
        let mut complained: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = sessions.join_next() => {
                    report(ended);
                    // With nobody left the memory for payloads goes back to the system.
                    if sessions.is_empty() {
                        self.gate.payloads().trim();
                    }
                    continue;
                }
                accepted = self.accept() => accepted,
            };
            match accepted {
                Ok((client, peer)) => self.admit(client, peer, &exports, &stop, &mut sessions),
                Err(error) if is_of_the_client(&error) => {
                    tracing::debug!(%error, "a client was gone before it was accepted");
                }
                Err(error) => {
                    self.gate.counters().accept_failed();
                    // The statistics say how often; the log says that it happens.
                    if complained.is_none_or(|at| at.elapsed() >= limits::COMPLAINT_INTERVAL) {
                        complained = Some(Instant::now());
                        tracing::warn!(%error, "cannot accept a connection");
                    }
                    // Out of descriptors, mostly: those go who have not even said what they want.
                    tokio::select! {
                        () = self.gate.make_room() => {}
                        () = stop.cancelled() => break,
                    }
                }
            }
        }
        self.finish(sessions).await;
    }

    async fn accept(&self) -> io::Result<(Client, Peer)> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((
                    Client::Tcp(stream),
                    Peer {
                        address: address.to_string(),
                        name: None,
                    },
                ))
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((
                    Client::Unix(stream),
                    Peer {
                        address: "unix".to_owned(),
                        name: None,
                    },
                ))
            }
        }
    }

    fn admit<X: Exports>(
        &self,
        client: Client,
        peer: Peer,
        exports: &Arc<X>,
        stop: &CancellationToken,
        sessions: &mut JoinSet<()>,
    ) {
        let (exports, gate, stop) = (Arc::clone(exports), self.gate.clone(), stop.clone());
        let tls = self.tls.clone();
        match client {
            Client::Tcp(stream) => {
                // Replies are small and awaited; a client that is gone already is found out soon.
                let _ = stream.set_nodelay(true);
                let (reader, writer) = stream.into_split();
                sessions.spawn(serve_connection(
                    reader, writer, peer, exports, gate, tls, stop,
                ));
            }
            Client::Unix(stream) => {
                let (reader, writer) = stream.into_split();
                sessions.spawn(serve_connection(
                    reader, writer, peer, exports, gate, tls, stop,
                ));
            }
        }
    }

    async fn finish(self, mut sessions: JoinSet<()>) {
        let Self {
            socket,
            address,
            gate,
            tls: _,
        } = self;
        drop(socket);
        if let ListenAddress::Unix(path) = &address {
            // Somebody may have removed it before.
            let _ = tokio::fs::remove_file(path).await;
        }
        // A session drains its requests and then its queue; each has the drain time.
        let deadline = gate.limits().drain_timeout.saturating_mul(3);
        let all = async {
            while let Some(ended) = sessions.join_next().await {
                report(ended);
            }
        };
        if tokio::time::timeout(deadline, all).await.is_err() {
            tracing::warn!(sessions = sessions.len(), "sessions did not end in time");
            sessions.detach_all();
        }
    }
}

/// Whether accepting failed because of the client that came: the next one may be fine (accept(2),
/// "Error handling").
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::TimedOut
            | io::ErrorKind::Interrupted
    )
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a session failed");
    }
}

/// Keepalive and its kin are inherited by accepted sockets: a client behind a tunnel that vanished
/// is found out after hours, not never.
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.set_keepalive(true)?;
    socket.bind(address)?;
    socket.listen(limits::LISTEN_BACKLOG)
}

async fn remove_stale_socket(path: &Path) -> io::Result<()> {
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tokio::fs::remove_file(path).await
        }
        // Taken, absent, or no socket at all: binding tells which.
        _ => Ok(()),
    }
}
