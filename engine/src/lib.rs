//! What the hub is: backups, chains, jobs, exports, and the two stores.
// SKELETON: the façade that `api` codes against. Bodies come from the engine authors; types move to `id`, `model`, `clock`, `error`.
#![allow(missing_docs, unused, async_fn_in_trait)]
use std::path::{Path, PathBuf};
use std::sync::Arc;
use time::OffsetDateTime as Timestamp;

// ---- id.rs: the registry of typed ids (newtypes over String/u32; Display, AsRef<str>, parse at the edge) ----
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackupId(pub String);
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryId(pub String);
/// `vm_replication_contexts.context_id`: the VM in the inventory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmContextId(pub String);
/// `vm_backup_contexts.context_id`: a VM in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContextId(pub String);
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeId(pub String);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskIndex(pub u32);

// ---- clock.rs ----
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Timestamp;
}
/// The one place that reads the system clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

// ---- error.rs ----
/// What the caller should do. `api` maps each to a status in one match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    Invalid,
    NotFound,
    Conflict,
    NoParent,
    Corrupt,
    NoSpace,
    Unavailable,
    NodeUnreachable,
    NodeRefused,
    Internal,
}
/// `message` is the short text that legacy clients know ("VM not found"); `details` says which and why.
#[derive(Debug, thiserror::Error)]
#[error("{message}: {details}")]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
    pub details: String,
}

// ---- config.rs ----
#[derive(Debug, Clone)]
pub struct EngineConfig {
    pub data_dir: PathBuf,
    /// `sqlite:PATH`; `None` is `data_dir/hub.db`.
    pub database: Option<String>,
    /// `HOST:PORT` that `nbd_targets` and `nbd_url` name.
    pub nbd_advertise: String,
    pub node_url: String,
}

// ---- model ----
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupType {
    Full,
    Incremental,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestedType {
    Full,
    Incremental,
    Auto,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// tell the node appliance
    Node,
    /// the caller pushes the data itself
    Direct,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStatus {
    Pending,
    Running,
    Completed,
    Failed,
    Cancelled,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskStatus {
    Pending,
    Running,
    Completed,
    Failed,
}

#[derive(Debug, Clone)]
pub struct NewVm {
    pub vm_name: String,
    pub vm_path: String,
    pub vmware_vm_id: String,
    pub vcenter_host: String,
    pub datacenter: String,
    pub credential_id: Option<i64>,
    pub disks: Vec<NewVmDisk>,
}
#[derive(Debug, Clone)]
pub struct NewVmDisk {
    pub disk_id: String,
    pub capacity_bytes: u64,
    pub label: String,
}
#[derive(Debug, Clone)]
pub struct Vm {
    pub context_id: VmContextId,
    pub vm_name: String,
    pub vm_path: String,
    pub vmware_vm_id: String,
    pub vcenter_host: String,
    pub datacenter: String,
    pub credential_id: Option<i64>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}
#[derive(Debug, Clone)]
pub struct VmDisk {
    pub disk_id: String,
    pub capacity_bytes: u64,
    pub size_gb: u64,
    pub label: String,
}
#[derive(Debug, Clone)]
pub struct NewCredential {
    pub credential_name: String,
    pub vcenter_host: String,
    pub username: String,
    pub password: String,
    pub datacenter: String,
}
#[derive(Debug, Clone)]
pub struct Credential {
    pub id: i64,
    pub credential_name: String,
    pub vcenter_host: String,
    pub username: String,
    pub datacenter: String,
}
#[derive(Debug, Clone)]
pub struct RepositorySummary {
    pub id: RepositoryId,
    pub name: String,
    pub repository_type: String,
    pub enabled: bool,
    pub path: String,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone)]
pub struct StartBackup {
    pub vm_name: String,
    pub repository_id: RepositoryId,
    pub backup_type: RequestedType,
    pub transfer: Transfer,
    pub policy_id: Option<String>,
}
#[derive(Debug, Clone)]
pub struct StartedBackup {
    pub backup: Backup,
    pub disks: Vec<PreparedDisk>,
    /// legacy `nbd_targets` string
    pub nbd_targets: String,
}
#[derive(Debug, Clone)]
pub struct PreparedDisk {
    pub disk_index: DiskIndex,
    pub device_key: u32,
    pub nbd_port: u16,
    pub export_name: String,
    pub nbd_url: String,
    pub image_path: String,
    pub capacity_bytes: u64,
}
/// A backup job as the API shows it: legacy-hub.md §1.1 BackupResponse, typed.
#[derive(Debug, Clone)]
pub struct Backup {
    pub id: BackupId,
    pub vm_context_id: VmContextId,
    pub vm_name: String,
    pub repository_id: RepositoryId,
    pub policy_id: Option<String>,
    pub backup_type: BackupType,
    /// why an `auto` request became what it is, or a downgrade happened
    pub type_reason: Option<String>,
    pub status: JobStatus,
    pub current_phase: String,
    pub file_path: String,
    pub bytes_transferred: u64,
    pub total_bytes: u64,
    pub disks_count: u32,
    pub change_id: Option<String>,
    pub error_message: Option<String>,
    pub transfer_speed_bps: u64,
    pub progress_percent: f64,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    pub last_telemetry_at: Option<Timestamp>,
}
#[derive(Debug, Clone)]
pub struct BackupDisk {
    pub disk_index: DiskIndex,
    pub device_key: u32,
    pub status: DiskStatus,
    pub capacity_bytes: u64,
    pub change_id: Option<ChangeId>,
    /// The declared parent and the change id handed to the node.
    pub parent_backup_id: Option<BackupId>,
    pub base_change_id: Option<ChangeId>,
    pub image_path: Option<String>,
    pub received_bytes: u64,
    pub zero_bytes: u64,
    pub equal_bytes: u64,
    pub stored_bytes: u64,
    pub error_message: Option<String>,
    pub completed_at: Option<Timestamp>,
}
#[derive(Debug, Clone, Default)]
pub struct BackupFilter {
    pub vm_name: Option<String>,
    pub vm_context_id: Option<String>,
    pub repository_id: Option<String>,
    pub status: Option<String>,
    pub backup_type: Option<String>,
}
#[derive(Debug, Clone)]
pub struct CompleteDisk {
    pub backup_id: BackupId,
    pub disk_index: DiskIndex,
    pub change_id: ChangeId,
}
#[derive(Debug, Clone)]
pub struct ChangeIdAnswer {
    pub change_id: Option<ChangeId>,
    pub backup_id: Option<BackupId>,
}
#[derive(Debug, Clone)]
pub struct ChainView {
    pub chain_id: String,
    pub vm_context_id: String,
    pub vm_name: String,
    pub disk_index: DiskIndex,
    pub repository_id: String,
    pub full_backup_id: String,
    pub backups: Vec<Backup>,
    pub total_size_bytes: u64,
}
/// One image of a point's chain, tip first, as `qemu-img info --backing-chain` would tell it.
#[derive(Debug, Clone)]
pub struct ChainLayer {
    pub path: String,
    pub virtual_size_bytes: u64,
    pub file_size_bytes: u64,
    pub cluster_size_bytes: u32,
    pub backing_name: Option<String>,
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    Equal { compared_bytes: u64 },
    Differs { offset: u64 },
}

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
