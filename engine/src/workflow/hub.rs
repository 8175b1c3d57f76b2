//! What every workflow works on: the two stores, the live exports, the running jobs.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_server::Gate;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::events::Events;
use super::hooks::{Hooks, Step};
use super::job::Job;
use super::leases::Leases;
use super::repositories::{mounted, share_password};
use super::targets::Advertised;
use crate::blocking::blocking;
use crate::catalog::Catalog;
use crate::clock::{Clock, Timestamp};
use crate::error::{Error, ErrorKind};
use crate::export::ExportRegistry;
use crate::id::{BackupId, RepositoryId};
use crate::model::{RepositorySummary, WatchLimits};
use crate::node::{CredentialKey, Nodes};
use crate::repository::{DataLock, Repository};

/// The inside of an engine.
pub(crate) struct Hub {
    pub(crate) catalog: Catalog,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) exports: Arc<ExportRegistry>,
    /// What all NBD listeners share.
    pub(crate) nbd: Gate,
    pub(crate) advertised: Advertised,
    pub(crate) nodes: Nodes,
    pub(crate) credential_key: Option<CredentialKey>,
    pub(crate) private_exports: bool,
    pub(crate) hooks: Hooks,
    pub(crate) data_dir: PathBuf,
    /// Held while a share is being mounted.
    pub(crate) mounting: tokio::sync::Mutex<()>,
    pub(crate) repositories: Mutex<HashMap<RepositoryId, Arc<Repository>>>,
    pub(crate) jobs: Mutex<HashMap<BackupId, Arc<Job>>>,
    /// Live views.
    pub(crate) events: Events,
    /// Who reads which backup's files.
    pub(crate) leases: Leases,
    /// Workflows that run to their end whatever becomes of the caller.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the hub takes no new work.
    pub(crate) stopping: CancellationToken,
    /// When the running backups were looked at last; held while they are looked at.
    pub(crate) looked_at: tokio::sync::Mutex<Timestamp>,
    pub(crate) limits: WatchLimits,
    /// Held as long as the hub lives.
    pub(crate) _lock: DataLock,
}

impl Hub {
    /// Fails when the hub takes no new work.
    pub(crate) fn accepting(&self) -> Result<(), Error> {
        if self.stopping.is_cancelled() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "hub is shutting down",
                "",
            ));
        }
        Ok(())
    }

    /// Runs a workflow to its end, even if the caller stops waiting.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only loses the answer.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        match self.tasks.spawn(work).await {
            Ok(outcome) => outcome,
            Err(error) => Err(Error::internal("workflow broke off", "").with_source(error)),
        }
    }

    /// Passes a step.
    pub(crate) async fn reached(&self, step: Step) {
        self.hooks.reached(step).await;
    }

    /// The running backup with this id.
    pub(crate) fn job(&self, id: &BackupId) -> Option<Arc<Job>> {
        self.jobs().get(id).cloned()
    }

    /// The running backups.
    pub(crate) fn jobs(&self) -> MutexGuard<'_, HashMap<BackupId, Arc<Job>>> {
        // No code panics while holding it; a poisoned map would still be whole.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files of a repository, opened once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] for an unknown repository, [`ErrorKind::Unsupported`] for a type that this hub cannot use,
    /// [`ErrorKind::Unavailable`] for a share that is not there.
    pub(crate) async fn repository(&self, id: &RepositoryId) -> Result<Arc<Repository>, Error> {
        if let Some(open) = self.usable_repository(id).await {
            return Ok(open);
        }
        let row = self.catalog.repository(id).await?;
        self.open_row(&row).await
    }

    /// Opens the files of a repository that the catalog knows; a share is mounted where it is not.
    pub(crate) async fn open_row(&self, row: &RepositorySummary) -> Result<Arc<Repository>, Error> {
        if let Some(open) = self.usable_repository(&row.id).await {
            return Ok(open);
        }
        let place = row.place.as_ref().ok_or_else(|| {
            let details = format!(
                "repository_id={} repository_type={}",
                row.id, row.repository_type
            );
            Error::new(
                ErrorKind::Unsupported,
                "repository type is not supported",
                details,
            )
        })?;
        let (path, wrapper) = (row.path.clone(), self.hooks.storage.clone());
        let opened = match place.mount() {
            None => blocking(move || Repository::open_or_create(Path::new(&path), wrapper)).await?,
            Some(share) => {
                let password = share_password(self, &row.id).await?;
                mounted(self, &share, password).await?;
                blocking(move || Repository::open_on(share, wrapper)).await?
            }
        };
        let mut repositories = self
            .repositories
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(
            repositories
                .entry(row.id.clone())
                .or_insert_with(|| Arc::new(opened)),
        ))
    }

    /// Closes a repository, for the hub; jobs that write it keep it open.
    pub(crate) fn forget_repository(&self, id: &RepositoryId) {
        let mut repositories = self
            .repositories
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        repositories.remove(id);
    }

    /// An open repository. One whose share was mounted anew is closed: it looks at the old one.
    async fn usable_repository(&self, id: &RepositoryId) -> Option<Arc<Repository>> {
        let open = {
            let repositories = self
                .repositories
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            repositories.get(id).cloned()?
        };
        let seen = Arc::clone(&open);
        if blocking(move || seen.expect_share()).await.is_err() {
            self.forget_repository(id);
            return None;
        }
        Some(open)
    }
}
