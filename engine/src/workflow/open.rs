//! Opens a hub: the data folder, the catalog, the default repository; then recovers.

use std::sync::{Arc, Mutex};

use nbd_server::{Gate, ServerLimits};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::events::Events;
use super::hooks::Hooks;
use super::hub::Hub;
use super::leases::Leases;
use super::recover::recover;
use super::targets::Advertised;
use super::watch::watch;
use crate::blocking::blocking;
use crate::catalog::{Catalog, NewLocalRepository};
use crate::clock::Clock;
use crate::config::EngineConfig;
use crate::descriptors;
use crate::error::Error;
use crate::export::ExportRegistry;
use crate::id::RepositoryId;
use crate::node::{CredentialKey, Nodes};
use crate::repository::{DataLock, Repository};

/// Id and name of the repository that every hub has.
pub(super) const DEFAULT_REPOSITORY: &str = "local";

/// Opens everything and recovers what a crash left.
pub(crate) async fn open(
    config: EngineConfig,
    clock: Arc<dyn Clock>,
    hooks: Hooks,
) -> Result<Arc<Hub>, Error> {
    let advertised = Advertised::parse(&config.nbd_advertise)?;
    let nodes = Nodes::new(&config)?;
    let credential_key = config
        .credential_key
        .as_ref()
        .map(CredentialKey::parse)
        .transpose()?;
    let (data_dir, wrapper) = (config.data_dir.clone(), hooks.storage.clone());
    let (lock, repository) = blocking(move || {
        let lock = DataLock::take(&data_dir)?;
        let path = data_dir.join("repositories").join(DEFAULT_REPOSITORY);
        Ok((lock, Repository::open_or_create(&path, wrapper)?))
    })
    .await?;
    let catalog = Catalog::open(&config.database_url()).await?;
    let id = RepositoryId::parse(DEFAULT_REPOSITORY)?;
    let row = NewLocalRepository {
        id: id.clone(),
        name: DEFAULT_REPOSITORY.to_owned(),
        path: repository.path().display().to_string(),
    };
    catalog.ensure_repository(&row, clock.now()).await?;
    let limits = ServerLimits {
        extended_headers: config.extended_headers,
        ..ServerLimits::default()
    };
    let limits = limits.within_descriptors(descriptors::current());
    let looked_at = tokio::sync::Mutex::new(clock.now());
    let hub = Arc::new(Hub {
        catalog,
        clock,
        exports: Arc::new(ExportRegistry::default()),
        nbd: Gate::new(limits),
        advertised,
        nodes,
        credential_key,
        private_exports: config.private_exports,
        hooks,
        data_dir: config.data_dir,
        mounting: tokio::sync::Mutex::default(),
        repositories: Mutex::new([(id, Arc::new(repository))].into()),
        jobs: Mutex::default(),
        events: Events::default(),
        leases: Leases::default(),
        tasks: TaskTracker::new(),
        stopping: CancellationToken::new(),
        looked_at,
        limits: config.watch,
        _lock: lock,
    });
    recover(&hub).await?;
    watch(&hub);
    Ok(hub)
}
