//! What the hub is: backups, chains, jobs, exports, and the two stores.
// SKELETON: the façade that `api` codes against. Bodies come from the engine authors.
#![allow(missing_docs, unused, async_fn_in_trait)]

pub mod catalog;
pub mod clock;
pub mod config;
pub mod error;
pub mod id;
pub mod limits;
pub mod model;

use std::path::Path;
use std::sync::Arc;

pub use catalog::Catalog;
pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use config::{EngineConfig, Secret};
pub use error::{Error, ErrorKind};
pub use id::{
    BackupDiskId, BackupId, ChangeId, ContextId, DeviceKey, DiskIndex, ExportName, RepositoryId,
    VmContextId,
};
pub use model::*;

/// The hub in process: one method per thing that it can do. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    _inner: Arc<()>,
}
impl Engine {
    /// Opens (creates, migrates) the catalog and the default repository `local` under `data_dir`, and recovers what a crash left.
    pub async fn open(config: EngineConfig, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        unimplemented!()
    }
    /// What the NBD listener serves.
    pub fn exports(&self) -> Arc<ExportRegistry> {
        unimplemented!()
    }
    /// Serves [`Engine::exports`] on a bound listener until `stop` is cancelled and its sessions have drained.
    pub async fn serve_nbd(&self, listener: Listener, stop: tokio_util::sync::CancellationToken) {
        unimplemented!()
    }
    pub async fn register_vm(&self, vm: NewVm) -> Result<(Vm, bool), Error> {
        unimplemented!()
    }
    pub async fn vms(&self) -> Result<Vec<Vm>, Error> {
        unimplemented!()
    }
    pub async fn vm(&self, name_or_id: &str) -> Result<Vm, Error> {
        unimplemented!()
    }
    pub async fn vm_disks(&self, id: &VmContextId) -> Result<Vec<VmDisk>, Error> {
        unimplemented!()
    }
    pub async fn add_credential(&self, credential: NewCredential) -> Result<Credential, Error> {
        unimplemented!()
    }
    pub async fn repositories(&self) -> Result<Vec<RepositorySummary>, Error> {
        unimplemented!()
    }
    pub async fn start_backup(&self, request: StartBackup) -> Result<StartedBackup, Error> {
        unimplemented!()
    }
    pub async fn complete_disk(&self, request: CompleteDisk) -> Result<(), Error> {
        unimplemented!()
    }
    pub async fn cancel_backup(&self, id: &BackupId) -> Result<(), Error> {
        unimplemented!()
    }
    pub async fn backups(&self, filter: BackupFilter) -> Result<Vec<Backup>, Error> {
        unimplemented!()
    }
    pub async fn backup(&self, id: &BackupId) -> Result<Backup, Error> {
        unimplemented!()
    }
    pub async fn backup_disks(&self, id: &BackupId) -> Result<Vec<BackupDisk>, Error> {
        unimplemented!()
    }
    pub async fn change_id(&self, vm_name: &str, disk: DiskIndex) -> Result<ChangeIdAnswer, Error> {
        unimplemented!()
    }
    pub async fn chain(
        &self,
        vm: &str,
        disk: DiskIndex,
        repository: Option<&str>,
    ) -> Result<ChainView, Error> {
        unimplemented!()
    }
    pub async fn chain_layers(
        &self,
        id: &BackupId,
        disk: DiskIndex,
    ) -> Result<Vec<ChainLayer>, Error> {
        unimplemented!()
    }
    /// Writes one disk of a completed point to a new raw file (thin); refuses to overwrite.
    pub async fn restore_disk(
        &self,
        id: &BackupId,
        disk: DiskIndex,
        target: &Path,
    ) -> Result<u64, Error> {
        unimplemented!()
    }
    /// Byte for byte against a raw file.
    pub async fn compare_disk(
        &self,
        id: &BackupId,
        disk: DiskIndex,
        raw: &Path,
    ) -> Result<Comparison, Error> {
        unimplemented!()
    }
    /// Whether the database answers.
    pub async fn healthy(&self) -> Result<(), Error> {
        unimplemented!()
    }
    /// Refuses new work, drains exports, fails what cannot go on, closes the catalog.
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}
/// A bound NBD listener and its address, so that `api` wires the hub without a dependency on the NBD crate.
pub use nbd_server::{ListenAddress, Listener};

/// Live exports by name; implements `nbd_server::Exports`.
pub struct ExportRegistry;

/// Work on image files without a hub (`export`, `image …`), so that `api` knows no qcow2 and no paths' rules.
pub mod standalone;
