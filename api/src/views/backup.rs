//! A backup as lists, look-ups and start answers show it.

use std::collections::BTreeMap;

use engine::{
    Backup, BackupId, BackupPage, BackupStats, ChangeIdAnswer, CompleteDisk, DiskIndex, JobStatus,
    PreparedDisk, StartedBackup, Timestamp,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::utc;

/// One backup of one VM, all its disks.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BackupView {
    /// Id of the job and of the point that it makes.
    pub backup_id: String,
    /// The VM in the inventory.
    pub vm_context_id: String,
    /// Name of the VM.
    pub vm_name: String,
    /// What was prepared per disk; filled by the start call only.
    pub disk_results: Option<Vec<DiskResultView>>,
    /// `key:nbd://host:port/export`, joined by commas; filled by the start call only.
    pub nbd_targets_string: String,
    /// `full` or `incremental`.
    pub backup_type: String,
    /// The same as `backup_type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where the images are.
    pub repository_id: String,
    /// The policy that the start call named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_id: Option<String>,
    /// `started` in the start answer; else pending, running, completed, failed or cancelled.
    pub status: String,
    /// Path of the point in the repository.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub file_path: String,
    /// Bytes received so far.
    pub bytes_transferred: u64,
    /// Bytes that the disks hold.
    pub total_bytes: u64,
    /// Number of disks.
    pub disks_count: u32,
    /// Deprecated: change ids belong to disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_id: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// What it is doing.
    pub current_phase: String,
    /// Bytes per second.
    pub transfer_speed_bps: u64,
    /// 0 to 100.
    pub progress_percent: f64,
    /// When the node last reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_telemetry_at: Option<String>,
    /// UTC.
    pub created_at: String,
    /// UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<String>,
    /// Echo of the start call.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub tags: BTreeMap<String, String>,
    /// Why the type is not the one that was asked for, or what `auto` became and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub type_reason: Option<String>,
    /// Seconds until the end; 0 when nobody can tell.
    #[serde(default)]
    pub eta_seconds: u64,
}

impl BackupView {
    /// The answer of the start call.
    pub(crate) fn started(started: StartedBackup, tags: BTreeMap<String, String>) -> Self {
        let disks = started.disks.into_iter().map(DiskResultView::from);
        Self {
            disk_results: Some(disks.collect()),
            nbd_targets_string: started.nbd_targets,
            status: "started".to_owned(),
            tags,
            ..Self::from(started.backup)
        }
    }
}

impl From<Backup> for BackupView {
    fn from(backup: Backup) -> Self {
        let kind = backup.backup_type.as_str();
        Self {
            backup_id: backup.id.to_string(),
            vm_context_id: backup.vm_context_id.to_string(),
            vm_name: backup.vm_name,
            disk_results: None,
            nbd_targets_string: String::new(),
            backup_type: kind.to_owned(),
            kind: kind.to_owned(),
            repository_id: backup.repository_id.to_string(),
            policy_id: backup.policy_id.map(Into::into),
            status: backup.status.as_str().to_owned(),
            file_path: backup.file_path,
            bytes_transferred: backup.bytes_transferred,
            total_bytes: backup.total_bytes,
            disks_count: backup.disks_count,
            change_id: backup.change_id,
            error_message: backup.error_message,
            current_phase: backup.current_phase,
            transfer_speed_bps: backup.transfer_speed_bps,
            progress_percent: backup.progress_percent,
            last_telemetry_at: backup.last_telemetry_at.map(utc),
            created_at: utc(backup.created_at),
            started_at: backup.started_at.map(utc),
            completed_at: backup.completed_at.map(utc),
            tags: BTreeMap::new(),
            type_reason: backup.type_reason,
            eta_seconds: backup.eta_seconds,
        }
    }
}

/// What was prepared for one disk.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DiskResultView {
    /// Index of the disk in the backup.
    pub disk_id: u32,
    /// Port of the NBD listener.
    pub nbd_port: u16,
    /// Name of the export.
    pub nbd_export_name: String,
    /// Image file that the export writes.
    pub qcow2_path: String,
    /// Process that serves the export: the hub itself.
    pub qemu_nbd_pid: u32,
    /// `prepared`.
    pub status: String,
    /// Always absent: a disk that cannot be prepared fails the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// Number of the disk at the hypervisor.
    pub device_key: u32,
    /// NBD URI of the export.
    pub nbd_url: String,
    /// Size of the export.
    pub capacity_bytes: u64,
}

impl From<PreparedDisk> for DiskResultView {
    fn from(disk: PreparedDisk) -> Self {
        Self {
            disk_id: disk.disk_index.get(),
            nbd_port: disk.nbd_port,
            nbd_export_name: disk.export_name.to_string(),
            qcow2_path: disk.image_path,
            qemu_nbd_pid: std::process::id(),
            status: "prepared".to_owned(),
            error_message: None,
            device_key: disk.device_key.get(),
            nbd_url: disk.nbd_url,
            capacity_bytes: disk.capacity_bytes,
        }
    }
}

/// Backups, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BackupListView {
    /// This page; never null.
    pub backups: Vec<BackupView>,
    /// How many match the filters on all pages.
    pub total: u64,
}

impl From<BackupPage> for BackupListView {
    fn from(page: BackupPage) -> Self {
        Self {
            backups: page.backups.into_iter().map(BackupView::from).collect(),
            total: page.total,
        }
    }
}

/// Sums over the completed backups of a VM in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatsView {
    /// Completed backups.
    pub backup_count: u64,
    /// Bytes that they received.
    pub total_size_bytes: u64,
    /// UTC; empty when there is none.
    pub last_backup_at: String,
}

impl From<BackupStats> for StatsView {
    fn from(stats: BackupStats) -> Self {
        Self {
            backup_count: stats.count,
            total_size_bytes: stats.received_bytes,
            last_backup_at: stats.last_at.map(utc).unwrap_or_default(),
        }
    }
}

/// The position from which a node reads changes. Every value is a string: clients decode this
/// answer into a map of strings and copy everything when they cannot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeIdView {
    /// Empty: copy everything.
    pub change_id: String,
    /// Backup that recorded it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_job_id: Option<String>,
    /// Index of the disk, in decimal.
    pub disk_id: String,
    /// What was found.
    pub message: String,
    /// Echo of the query.
    pub vm_name: String,
}

impl ChangeIdView {
    pub(crate) fn new(vm_name: String, disk: DiskIndex, answer: ChangeIdAnswer) -> Self {
        let found = answer.change_id.is_some();
        Self {
            change_id: answer
                .change_id
                .map(|id| id.to_string())
                .unwrap_or_default(),
            backup_job_id: answer.backup_id.filter(|_| found).map(|id| id.to_string()),
            disk_id: disk.to_string(),
            message: match found {
                true => "Previous change_id found".to_owned(),
                false => "No previous backup found".to_owned(),
            },
            vm_name,
        }
    }
}

/// The answer to one disk's completion.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CompletedView {
    /// `completed`.
    pub status: String,
    /// Echo of the path.
    pub backup_id: String,
    /// Echo of the request: recorded.
    pub change_id: String,
    /// A sentence for people.
    pub message: String,
    /// UTC.
    pub timestamp: String,
}

impl CompletedView {
    pub(crate) fn new(disk: CompleteDisk, now: Timestamp) -> Self {
        Self {
            status: "completed".to_owned(),
            backup_id: disk.backup_id.into(),
            change_id: disk.change_id.into(),
            message: "Backup completed successfully, change_id recorded".to_owned(),
            timestamp: utc(now),
        }
    }
}

/// A listener was too slow for what happened.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LostView {
    /// How many events it was not told.
    pub count: u64,
}

/// The answer to a deletion.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeletedView {
    /// A sentence for people.
    pub message: String,
    /// Echo of the path.
    pub backup_id: String,
}

impl DeletedView {
    pub(crate) fn new(backup_id: &BackupId) -> Self {
        Self {
            message: "backup deleted successfully".to_owned(),
            backup_id: backup_id.to_string(),
        }
    }
}

/// The answer to a cancellation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CancelledView {
    /// A sentence for people.
    pub message: String,
    /// Echo of the path.
    pub backup_id: String,
    /// `cancelled`.
    pub status: String,
}

impl CancelledView {
    pub(crate) fn new(backup_id: &BackupId) -> Self {
        Self {
            message: "backup cancelled".to_owned(),
            backup_id: backup_id.to_string(),
            status: JobStatus::Cancelled.as_str().to_owned(),
        }
    }
}
