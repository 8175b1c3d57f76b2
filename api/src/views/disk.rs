//! The disks of one backup.

use engine::{BackupDisk, BackupId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::utc;

/// The disks of one backup, by index.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BackupDiskListView {
    /// Echo of the path.
    pub backup_id: String,
    /// Never null.
    pub disks: Vec<BackupDiskView>,
    /// Length of `disks`.
    pub count: usize,
}

impl BackupDiskListView {
    pub(crate) fn new(backup_id: &BackupId, disks: Vec<BackupDisk>) -> Self {
        Self {
            backup_id: backup_id.to_string(),
            count: disks.len(),
            disks: disks.into_iter().map(BackupDiskView::from).collect(),
        }
    }
}

/// One disk at one point in time.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BackupDiskView {
    /// Index of the disk in the backup.
    pub disk_index: u32,
    /// Number of the disk at the hypervisor.
    pub device_key: u32,
    /// pending, running, completed or failed.
    pub status: String,
    /// Size of the disk.
    pub capacity_bytes: u64,
    /// The hypervisor's position at this backup.
    pub change_id: Option<String>,
    /// The declared parent, absent for a full backup.
    pub parent_backup_id: Option<String>,
    /// The position from which the changes were read.
    pub base_change_id: Option<String>,
    /// Image file.
    pub image_path: Option<String>,
    /// Bytes that came over the wire, zeroes included.
    pub received_bytes: u64,
    /// Of these, bytes that were zero.
    pub zero_bytes: u64,
    /// Of these, bytes that the parent had already.
    pub equal_bytes: u64,
    /// Of these, bytes that were stored: every byte is zero, equal or stored.
    pub stored_bytes: u64,
    /// Size of the image file.
    #[serde(default)]
    pub written_bytes: u64,
    /// 0 to 100.
    #[serde(default)]
    pub progress_percent: f64,
    /// Why it failed.
    pub error_message: Option<String>,
    /// UTC.
    pub completed_at: Option<String>,
}

impl From<BackupDisk> for BackupDiskView {
    fn from(disk: BackupDisk) -> Self {
        Self {
            disk_index: disk.disk_index.get(),
            device_key: disk.device_key.get(),
            status: disk.status.as_str().to_owned(),
            capacity_bytes: disk.capacity_bytes,
            change_id: disk.change_id.map(|id| id.to_string()),
            parent_backup_id: disk.parent_backup_id.map(|id| id.to_string()),
            base_change_id: disk.base_change_id.map(|id| id.to_string()),
            image_path: disk.image_path,
            received_bytes: disk.received_bytes,
            zero_bytes: disk.zero_bytes,
            equal_bytes: disk.equal_bytes,
            stored_bytes: disk.stored_bytes,
            written_bytes: disk.written_bytes,
            progress_percent: disk.progress_percent,
            error_message: disk.error_message,
            completed_at: disk.completed_at.map(utc),
        }
    }
}
