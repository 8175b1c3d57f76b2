//! A whole hub in this process: database, NBD server and REST API, started and stopped as one.
//!
//! ```text
//! start: check ─▶ bind NBD, bind HTTP ─▶ open the engine (recovers) ─▶ serve both ─▶ RunningHub
//! stop:  no new HTTP, no new NBD ─▶ answer what is in flight ─▶ Engine::shutdown
//! ```
//!
//! Both ports are bound before the engine opens, so a port that is taken costs nothing and the
//! port given for port 0 is known when the engine learns what to advertise.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use engine::{
    Clock, Endpoint, Engine, EngineConfig, ListenAddress, Listener, Secret, SystemClock, Tls,
    Tokens, WatchLimits,
};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{Trust, limits, router};

/// Everything that `serve` can be told, after flags, environment, file and defaults were merged.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// State of this hub: the SQLite file and the default repository live here.
    pub data_dir: PathBuf,
    /// `sqlite:PATH`; `None` is `hub.db` in `data_dir`.
    pub database: Option<String>,
    /// Where REST listens; port 0 takes a free one.
    pub api: SocketAddr,
    /// Where NBD listens, at least one, and whether in TLS; TCP port 0 takes a free one.
    pub nbd: Vec<Endpoint>,
    /// `HOST:PORT` that backup answers name; `None` is the first TCP listener of `nbd` that serves
    /// without TLS, else the first.
    pub nbd_advertise: Option<String>,
    /// The node appliance that serves every vCenter without one of its own.
    pub sna_url: String,
    /// Node appliances by the vCenter that they serve.
    pub vcenter_sna_urls: BTreeMap<String, String>,
    /// What stored passwords are encrypted with: base64 of 32 bytes.
    pub credential_key: Option<Secret>,
    /// Gives exports names that nobody guesses, instead of the ids of their backups.
    pub private_exports: bool,
    /// Asks callers on this machine for a token, too.
    pub require_tokens: bool,
    /// How long a running backup may be without a sign of its client.
    pub watch: WatchLimits,
    /// Allows listeners that other machines can reach while nothing authenticates them.
    pub insecure: bool,
    /// Whether NBD clients may have 64-bit lengths.
    pub extended_headers: bool,
}

impl ServeConfig {
    /// The defaults of `serve` with its state in `data_dir`.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            database: None,
            api: SocketAddr::from((Ipv4Addr::LOCALHOST, 8082)),
            nbd: vec![ListenAddress::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 10809))).into()],
            nbd_advertise: None,
            sna_url: "http://127.0.0.1:9081".to_owned(),
            vcenter_sna_urls: BTreeMap::new(),
            credential_key: None,
            private_exports: false,
            require_tokens: false,
            watch: WatchLimits::default(),
            insecure: false,
            extended_headers: true,
        }
    }

    /// Like [`ServeConfig::new`] with free loopback ports: for the demo and tests.
    #[must_use]
    pub fn ephemeral(data_dir: impl Into<PathBuf>) -> Self {
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            api: any_port,
            nbd: vec![ListenAddress::Tcp(any_port).into()],
            ..Self::new(data_dir)
        }
    }

    /// # Errors
    /// [`StartError::Exposed`] for a listener that other machines can reach without `insecure`; the
    /// API may be reached where tokens are asked for and there is one, NBD where every client shows a
    /// certificate first.
    async fn refuse_exposure(&self) -> Result<(), StartError> {
        if self.insecure {
            return Ok(());
        }
        if !self.api.ip().is_loopback() && !self.asks_for_tokens().await? {
            return Err(StartError::Exposed {
                listener: "api",
                address: self.api,
                remedy: "make a token (sendense-hub token create)",
            });
        }
        match self.nbd.iter().find_map(exposed) {
            Some(address) => Err(StartError::Exposed {
                listener: "nbd",
                address,
                remedy: CERTIFICATES_REMEDY,
            }),
            None => Ok(()),
        }
    }

    /// Whether callers from elsewhere meet a hub that means to know them.
    async fn asks_for_tokens(&self) -> Result<bool, StartError> {
        if self.require_tokens {
            return Ok(true);
        }
        Tokens::exist(&self.data_dir, self.database.as_deref())
            .await
            .map_err(StartError::Engine)
    }

    fn trust(&self) -> Trust {
        match (self.require_tokens, self.insecure) {
            (true, _) => Trust::Nobody,
            (false, true) => Trust::Everybody,
            (false, false) => Trust::Loopback,
        }
    }
}

/// What makes an NBD listener safe that other machines can reach.
pub(crate) const CERTIFICATES_REMEDY: &str =
    "serve it with --tls require --tls-certificates DIR --tls-verify-peer";

/// The address of an NBD listener that other machines can reach while nothing says who they are.
pub(crate) fn exposed(endpoint: &Endpoint) -> Option<SocketAddr> {
    match endpoint.address {
        ListenAddress::Tcp(address)
            if !address.ip().is_loopback() && !endpoint.tls.authenticates_clients() =>
        {
            Some(address)
        }
        ListenAddress::Tcp(_) | ListenAddress::Unix(_) => None,
    }
}

/// Why a hub did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener that other machines can reach, and nothing that authenticates them.
    #[error(
        "exposed listener: anyone who reaches this address could read and write backups; bind a loopback address, {remedy}, or say --insecure listener={listener} address={address}"
    )]
    Exposed {
        /// `api` or `nbd`.
        listener: &'static str,
        /// What was asked for.
        address: SocketAddr,
        /// What would make it safe.
        remedy: &'static str,
    },
    /// The configuration names no NBD listener.
    #[error("no nbd listener configured")]
    NoNbdListener,
    /// Backup answers must name a TCP address, and there is none.
    #[error("every nbd listener is a unix socket: --nbd-advertise must say what nodes connect to")]
    NothingToAdvertise,
    /// An address could not be bound.
    #[error("bind address={address}")]
    Bind {
        /// What was asked for.
        address: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The engine did not open: database, repository or recovery.
    #[error("open the engine")]
    Engine(#[source] engine::Error),
}

/// A hub that accepts on both ports. End it with [`RunningHub::stop`]: dropping it leaves the
/// listeners' tasks behind.
#[must_use]
pub struct RunningHub {
    engine: Engine,
    api: SocketAddr,
    nbd: Vec<ListenAddress>,
    nbd_url: String,
    stop: CancellationToken,
    http: JoinHandle<()>,
    sessions: JoinSet<()>,
}

impl RunningHub {
    /// The engine behind both ports.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Where REST listens, with the port that was given for port 0.
    #[must_use]
    pub fn api_address(&self) -> SocketAddr {
        self.api
    }

    /// `http://HOST:PORT` of the REST API.
    #[must_use]
    pub fn api_url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// Where NBD listens, in the order of the configuration, with the ports that were given.
    #[must_use]
    pub fn nbd_addresses(&self) -> &[ListenAddress] {
        &self.nbd
    }

    /// URI of the first NBD listener, without an export name.
    #[must_use]
    pub fn nbd_url(&self) -> String {
        self.nbd_url.clone()
    }

    /// Ends in order: stops accepting, answers what is in flight (bounded by
    /// [`limits::HTTP_DRAIN`] and [`limits::NBD_DRAIN`]), then [`Engine::shutdown`].
    ///
    /// # Cancel safety
    /// Not cancel safe: dropped midway, the engine may not have been shut down.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // Live views would keep the HTTP server from its end.
        self.engine.end_subscriptions();
        let sessions = async { while self.sessions.join_next().await.is_some() {} };
        let (http_ended, nbd_ended) = tokio::join!(
            tokio::time::timeout(limits::HTTP_DRAIN, &mut self.http),
            tokio::time::timeout(limits::NBD_DRAIN, sessions),
        );
        if http_ended.is_err() {
            tracing::warn!("http requests were still being answered; cut");
            self.http.abort();
        }
        if nbd_ended.is_err() {
            tracing::warn!("nbd sessions were still being answered; cut");
            self.sessions.shutdown().await;
        }
        self.engine.shutdown().await;
    }
}

/// Starts a hub; both ports accept when this returns.
///
/// # Errors
/// [`StartError`]; nothing is left listening.
///
/// # Cancel safety
/// Dropped before it returns, nothing is left listening.
pub async fn start(config: ServeConfig) -> Result<RunningHub, StartError> {
    start_with_clock(config, Arc::new(SystemClock)).await
}

/// [`start`] with the caller's clock.
///
/// # Errors
/// As [`start`].
pub async fn start_with_clock(
    config: ServeConfig,
    clock: Arc<dyn Clock>,
) -> Result<RunningHub, StartError> {
    config.refuse_exposure().await?;
    let trust = config.trust();
    let listeners = bind_nbd(&config.nbd).await?;
    let bound: Vec<_> = listeners.iter().map(Listener::endpoint).collect();
    let nbd_url = bound.first().map(nbd_url).unwrap_or_default();
    let http = TcpListener::bind(config.api)
        .await
        .map_err(|source| bind_error(&config.api, source))?;
    let api = http
        .local_addr()
        .map_err(|source| bind_error(&config.api, source))?;
    let engine = Engine::open(engine_config(config, &bound)?, Arc::clone(&clock))
        .await
        .map_err(StartError::Engine)?;

    let stop = CancellationToken::new();
    let mut sessions = JoinSet::new();
    for listener in listeners {
        let (engine, stop) = (engine.clone(), stop.clone());
        sessions.spawn(async move { engine.serve_nbd(listener, stop).await });
    }
    let router = router(engine.clone(), clock, trust);
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let serve = axum::serve(http, service).with_graceful_shutdown(stop.clone().cancelled_owned());
    let http = tokio::spawn(async move {
        if let Err(error) = serve.await {
            tracing::error!(%error, "the http server ended");
        }
    });
    Ok(RunningHub {
        engine,
        api,
        nbd: bound.into_iter().map(|endpoint| endpoint.address).collect(),
        nbd_url,
        stop,
        http,
        sessions,
    })
}

async fn bind_nbd(endpoints: &[Endpoint]) -> Result<Vec<Listener>, StartError> {
    if endpoints.is_empty() {
        return Err(StartError::NoNbdListener);
    }
    let mut listeners = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        let listener = Listener::bind(&endpoint.address)
            .await
            .map_err(|source| bind_error(&nbd_url(endpoint), source))?;
        listeners.push(listener.with_tls(endpoint.tls.clone()));
    }
    Ok(listeners)
}

fn engine_config(config: ServeConfig, nbd: &[Endpoint]) -> Result<EngineConfig, StartError> {
    let nbd_advertise = match config.nbd_advertise {
        Some(told) => told,
        None => advertised(nbd).ok_or(StartError::NothingToAdvertise)?,
    };
    Ok(EngineConfig {
        data_dir: config.data_dir,
        database: config.database,
        nbd_advertise,
        node_url: config.sna_url,
        vcenter_node_urls: config.vcenter_sna_urls,
        private_exports: config.private_exports,
        credential_key: config.credential_key,
        watch: config.watch,
        extended_headers: config.extended_headers,
    })
}

/// The first TCP listener without TLS, which every client understands, else the first; "any address"
/// is no address to connect to, its loopback is.
fn advertised(nbd: &[Endpoint]) -> Option<String> {
    let (in_tls, plain): (Vec<_>, Vec<_>) = nbd.iter().partition(|endpoint| requires_tls(endpoint));
    let of_all = |endpoints: &[&Endpoint]| endpoints.iter().find_map(|one| host_and_port(one));
    of_all(&plain).or_else(|| of_all(&in_tls).map(|text| format!("nbds://{text}")))
}

fn host_and_port(endpoint: &Endpoint) -> Option<String> {
    match &endpoint.address {
        ListenAddress::Tcp(address) if address.ip().is_unspecified() => {
            let loopback: IpAddr = match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            Some(SocketAddr::new(loopback, address.port()).to_string())
        }
        ListenAddress::Tcp(address) => Some(address.to_string()),
        ListenAddress::Unix(_) => None,
    }
}

fn requires_tls(endpoint: &Endpoint) -> bool {
    matches!(endpoint.tls, Tls::Require(_))
}

/// The NBD URI of a listener, without an export name (NBD URI specification).
#[must_use]
pub fn nbd_url(endpoint: &Endpoint) -> String {
    let scheme = if requires_tls(endpoint) {
        "nbds"
    } else {
        "nbd"
    };
    match &endpoint.address {
        ListenAddress::Tcp(address) => format!("{scheme}://{address}"),
        ListenAddress::Unix(path) => format!("{scheme}+unix:///?socket={}", path.display()),
    }
}

fn bind_error(address: &impl ToString, source: std::io::Error) -> StartError {
    StartError::Bind {
        address: address.to_string(),
        source,
    }
}
