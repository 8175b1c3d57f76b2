//! What a caller can watch while a backup runs.

use super::report::{DiskReport, Warning};

/// Told what happens, from the task that runs the backup; must return quickly. All methods do nothing unless
/// implemented.
pub trait Progress: Send + Sync {
    /// The hub has accepted the job.
    fn job_started(&self, backup_id: &str, backup_type: &str, type_reason: Option<&str>) {
        let _ = (backup_id, backup_type, type_reason);
    }

    /// A disk's turn begins; `total_bytes` is the size of the disk.
    fn disk_started(&self, disk_id: &str, source: &str, total_bytes: u64) {
        let _ = (disk_id, source, total_bytes);
    }

    /// So many more bytes of the current disk are dealt with: sent, zeroed or known unchanged.
    fn advanced(&self, disk_id: &str, bytes: u64) {
        let _ = (disk_id, bytes);
    }

    /// The hub has acknowledged the disk.
    fn disk_finished(&self, disk: &DiskReport) {
        let _ = disk;
    }

    /// Something that the user should know; it is in the report, too.
    fn warning(&self, warning: &Warning) {
        let _ = warning;
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}
