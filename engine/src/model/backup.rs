//! Backups, their disks and their chains, as everything above the catalog sees them.

use super::{DiskStatus, JobStatus};
use crate::clock::Timestamp;
use crate::id::{
    BackupDiskId, BackupId, ChangeId, ContextId, DeviceKey, DiskIndex, ExportName, PolicyId,
    RepositoryId, VmContextId,
};

/// Gives an enum of plain words its words: `as_str`, `Display`, `FromStr`.
macro_rules! words {
    ($name:ident, $what:literal, $($variant:ident => $word:literal),+ $(,)?) => {
        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that the database and the API use.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::error::Error;

            fn from_str(text: &str) -> Result<Self, $crate::error::Error> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::error::Error::invalid(
                        concat!("unknown ", $what),
                        format!("text={:?}", text.chars().take(80).collect::<String>()),
                    )),
                }
            }
        }
    };
}
pub(crate) use words;

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackupType {
    /// Every disk, on its own.
    Full,
    /// Changes since a declared parent.
    Incremental,
}
words!(BackupType, "backup type", Full => "full", Incremental => "incremental");

/// What a backup was asked to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestedType {
    /// Every disk, on its own.
    Full,
    /// Changes since the newest good parent, or nothing.
    Incremental,
    /// An increment where a parent is good, else a full.
    Auto,
}
words!(RequestedType, "backup type", Full => "full", Incremental => "incremental", Auto => "auto");

/// Who moves the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transfer {
    /// The node appliance is told to.
    Node,
    /// The caller pushes it itself.
    Direct,
}
words!(Transfer, "transfer", Node => "node", Direct => "direct");

/// What the hub is about to do to the files of a backup: written before the files change, cleared afterwards, so that
/// recovery can finish or undo it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Intent {
    /// Partial image files are being made.
    Creating,
    /// Partial image files are being given their final names.
    Publishing,
    /// Image files are being removed.
    Deleting,
}
words!(Intent, "intent", Creating => "creating", Publishing => "publishing", Deleting => "deleting");

/// A backup to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartBackup {
    /// Name of the VM.
    pub vm_name: String,
    /// Where the backup goes.
    pub repository_id: RepositoryId,
    /// What it is asked to be.
    pub backup_type: RequestedType,
    /// Who moves the data.
    pub transfer: Transfer,
    /// The policy that asked for it.
    pub policy_id: Option<PolicyId>,
}

/// A backup that has started: its exports accept connections.
#[derive(Debug, Clone)]
pub struct StartedBackup {
    /// The backup.
    pub backup: Backup,
    /// Where each disk goes.
    pub disks: Vec<PreparedDisk>,
    /// `{device key}:nbd://{host}:{port}/{export}` of every disk, separated by commas (legacy start call).
    pub nbd_targets: String,
}

/// Where one disk of a started backup goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedDisk {
    /// Position among the VM's disks.
    pub disk_index: DiskIndex,
    /// The hypervisor's key of the disk.
    pub device_key: DeviceKey,
    /// Port of the listener.
    pub nbd_port: u16,
    /// Name of the export.
    pub export_name: ExportName,
    /// All of that as one URL.
    pub nbd_url: String,
    /// The image that is being written.
    pub image_path: String,
    /// Size of the device in bytes.
    pub capacity_bytes: u64,
}

/// A backup job: one point in time of a VM, running or ended (`backup_jobs`).
#[derive(Debug, Clone, PartialEq)]
pub struct Backup {
    /// Its id.
    pub id: BackupId,
    /// The VM.
    pub vm_context_id: VmContextId,
    /// The VM in this repository; absent only in rows that a legacy hub wrote before it had contexts.
    pub context_id: Option<ContextId>,
    /// Name of the VM when the backup started.
    pub vm_name: String,
    /// Where it is kept.
    pub repository_id: RepositoryId,
    /// The policy that asked for it.
    pub policy_id: Option<PolicyId>,
    /// What it holds.
    pub backup_type: BackupType,
    /// Why an `auto` request became what it is, or why it holds more than was asked for.
    pub type_reason: Option<String>,
    /// Who moves the data; absent in rows of a legacy hub.
    pub transfer: Option<Transfer>,
    /// Where the job stands.
    pub status: JobStatus,
    /// What is happening to its files right now.
    pub intent: Option<Intent>,
    /// What the job is doing, in a word.
    pub current_phase: String,
    /// `repository_path`: [`PARENT_MARKER`] in a backup, an image path in a legacy per-disk row.
    pub file_path: String,
    /// Bytes received from the client.
    pub bytes_transferred: u64,
    /// Sum of the disks' capacities in bytes.
    pub total_bytes: u64,
    /// How many disks it has.
    pub disks_count: u32,
    /// Only in legacy per-disk rows; a backup has one per disk.
    pub change_id: Option<String>,
    /// Why it failed or was cancelled.
    pub error_message: Option<String>,
    /// Bytes per second over the last interval.
    pub transfer_speed_bps: u64,
    /// Seconds until the end, as far as anybody can tell; 0 is unknown.
    pub eta_seconds: u64,
    /// 0 to 100.
    pub progress_percent: f64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it started to run.
    pub started_at: Option<Timestamp>,
    /// When it ended, in whatever way.
    pub completed_at: Option<Timestamp>,
    /// When its client last reported.
    pub last_telemetry_at: Option<Timestamp>,
}

/// What `repository_path` says in the row of a backup; legacy hubs wrote further rows, one per disk, with the path of an
/// image. This, not the form of the id, tells them apart.
pub const PARENT_MARKER: &str = "/multi-disk-parent";

impl Backup {
    /// Whether the row is a backup; otherwise it is a per-disk row of a legacy hub.
    #[must_use]
    pub fn is_point(&self) -> bool {
        self.file_path == PARENT_MARKER
    }
}

/// One disk of one backup: one image file (`backup_disks`).
#[derive(Debug, Clone, PartialEq)]
pub struct BackupDisk {
    /// Its id.
    pub id: BackupDiskId,
    /// The backup it belongs to.
    pub backup_id: BackupId,
    /// Position among the VM's disks.
    pub disk_index: DiskIndex,
    /// The hypervisor's key of the disk.
    pub device_key: DeviceKey,
    /// Where the disk stands.
    pub status: DiskStatus,
    /// Size of the virtual disk in bytes; from `size_gb` in rows of a legacy hub.
    pub capacity_bytes: u64,
    /// The change-tracking position that this disk was completed with.
    pub change_id: Option<ChangeId>,
    /// The declared parent: the image below this one.
    pub parent_disk_id: Option<BackupDiskId>,
    /// The backup that the declared parent belongs to.
    pub parent_backup_id: Option<BackupId>,
    /// The change id handed to the node: the parent's.
    pub base_change_id: Option<ChangeId>,
    /// Why the disk has no parent although the backup is an increment, or why the parent is not the obvious one.
    pub parent_reason: Option<String>,
    /// Layers of its chain, itself included; absent in rows of a legacy hub.
    pub chain_depth: Option<u32>,
    /// The export it is written through; absent in rows of a legacy hub.
    pub export_name: Option<ExportName>,
    /// The image file.
    pub image_path: Option<String>,
    /// Bytes received over NBD, zeroes included.
    pub received_bytes: u64,
    /// Of those, bytes that were zero.
    pub zero_bytes: u64,
    /// Of those, bytes that the parent had already.
    pub equal_bytes: u64,
    /// Of those, bytes that were stored. Each byte received was zero, equal or stored.
    pub stored_bytes: u64,
    /// Size of the image file in bytes: what was stored, less what was stored twice, and the tables.
    pub written_bytes: u64,
    /// 0 to 100.
    pub progress_percent: f64,
    /// Why it failed.
    pub error_message: Option<String>,
    /// When it was completed.
    pub completed_at: Option<Timestamp>,
}

/// Which backups to list: all given conditions hold. An unknown word matches nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupFilter {
    /// Exact name of the VM.
    pub vm_name: Option<String>,
    /// Id of the VM.
    pub vm_context_id: Option<String>,
    /// Id of the repository.
    pub repository_id: Option<String>,
    /// A [`JobStatus`] word.
    pub status: Option<String>,
    /// A [`BackupType`] word.
    pub backup_type: Option<String>,
    /// At most so many, and never more than [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX).
    pub limit: Option<u32>,
    /// Skip so many of the newest.
    pub offset: u32,
}

/// A part of the backups that a filter lets through.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BackupPage {
    /// Newest first.
    pub backups: Vec<Backup>,
    /// How many the filter lets through on all pages.
    pub total: u64,
}

/// Sums over the completed backups of a VM in a repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackupStats {
    /// How many.
    pub count: u64,
    /// Bytes that they received.
    pub received_bytes: u64,
    /// When the newest of them was completed.
    pub last_at: Option<Timestamp>,
}

/// One disk that its client has sent completely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompleteDisk {
    /// The backup.
    pub backup_id: BackupId,
    /// The disk.
    pub disk_index: DiskIndex,
    /// The change-tracking position of the snapshot that was sent.
    pub change_id: ChangeId,
}

/// The bytes of one disk, as its export counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Bytes received over NBD, zeroes included.
    pub received_bytes: u64,
    /// Of those, bytes that were zero.
    pub zero_bytes: u64,
    /// Of those, bytes that the parent had already.
    pub equal_bytes: u64,
    /// Of those, bytes that were stored. Each byte received was zero, equal or stored.
    pub stored_bytes: u64,
    /// Size of the image file in bytes.
    pub written_bytes: u64,
}

/// The points of one disk that hang together, oldest first.
#[derive(Debug, Clone, PartialEq)]
pub struct ChainView {
    /// `{vm context id}-disk{n}-chain`.
    pub chain_id: String,
    /// The VM.
    pub vm_context_id: String,
    /// Its name.
    pub vm_name: String,
    /// The disk.
    pub disk_index: DiskIndex,
    /// Where the chain is kept.
    pub repository_id: String,
    /// The point at its base; empty if there is none.
    pub full_backup_id: String,
    /// Base first, newest last.
    pub backups: Vec<Backup>,
    /// Bytes that the chain's images take on disk.
    pub total_size_bytes: u64,
}

/// One image of a point's chain, tip first, as `qemu-img info --backing-chain` would tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainLayer {
    /// Path of the image.
    pub path: String,
    /// Size of the device it holds, in bytes.
    pub virtual_size_bytes: u64,
    /// Bytes that the file takes on disk.
    pub file_size_bytes: u64,
    /// Size of a cluster in bytes.
    pub cluster_size_bytes: u32,
    /// Name of the image below, as the file has it.
    pub backing_name: Option<String>,
}

/// How a restored disk compares with a raw file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Every byte is the same.
    Equal {
        /// How many were compared.
        compared_bytes: u64,
    },
    /// They differ.
    Differs {
        /// Offset of the first difference, in bytes.
        offset: u64,
    },
}
