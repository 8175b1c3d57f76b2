//! This client's twins of the hub's JSON. Unknown fields are ignored, so that a newer hub stays usable.

use serde::{Deserialize, Deserializer, Serialize};

/// `POST /vm-contexts`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct NewVm {
    pub(crate) vm_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vm_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vmware_vm_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vcenter_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) datacenter: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) credential_id: Option<i64>,
    pub(crate) disks: Vec<VmDisk>,
}

/// One disk of a VM to be registered.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct VmDisk {
    pub(crate) disk_id: String,
    pub(crate) capacity_bytes: u64,
    pub(crate) label: String,
}

/// `GET /vm-contexts/{vm_name}`: what a registration must repeat to mean the same VM.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct KnownVm {
    #[serde(default)]
    pub(crate) vm_path: Option<String>,
    #[serde(default)]
    pub(crate) vmware_vm_id: Option<String>,
    #[serde(default)]
    pub(crate) vcenter_host: Option<String>,
    #[serde(default)]
    pub(crate) datacenter: Option<String>,
    #[serde(default)]
    pub(crate) credential_id: Option<i64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct KnownVmAnswer {
    pub(super) context: KnownVm,
}

#[derive(Debug, Deserialize)]
pub(super) struct RepositoryList {
    pub(super) repositories: Vec<RepositoryView>,
}

/// A repository of `GET /repositories`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RepositoryView {
    pub(crate) id: String,
    #[serde(default = "yes")]
    pub(crate) enabled: bool,
}

fn yes() -> bool {
    true
}

/// `POST /backups`.
#[derive(Debug, Serialize)]
pub(crate) struct StartBackup<'a> {
    pub(crate) vm_name: &'a str,
    pub(crate) repository_id: &'a str,
    pub(crate) backup_type: &'static str,
    pub(crate) transfer: &'static str,
}

/// A backup job.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct BackupView {
    pub(crate) backup_id: String,
    pub(crate) backup_type: String,
    #[serde(default)]
    pub(crate) type_reason: Option<String>,
    #[serde(default)]
    pub(crate) status: String,
    #[serde(default)]
    pub(crate) error_message: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) disk_results: Vec<DiskResult>,
}

/// Where one disk is to be pushed.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct DiskResult {
    pub(crate) disk_id: u32,
    #[serde(default)]
    pub(crate) nbd_url: String,
}

/// `POST /backups/{id}/complete`, once per disk.
#[derive(Debug, Serialize)]
pub(crate) struct CompleteDisk<'a> {
    pub(crate) change_id: &'a str,
    pub(crate) disk_id: u32,
    pub(crate) bytes_transferred: u64,
}

/// `POST /telemetry/backup/{id}`: this client lives, and so much of one disk is done.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    pub(crate) status: &'a str,
    pub(crate) current_phase: &'a str,
    pub(crate) disks: [DiskReportView; 1],
}

/// One disk in a report.
#[derive(Debug, Serialize)]
pub(crate) struct DiskReportView {
    pub(crate) disk_index: u32,
    pub(crate) bytes_transferred: u64,
    pub(crate) total_bytes: u64,
}

/// `GET /backups/changeid`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct BaseView {
    pub(crate) change_id: String,
    #[serde(default)]
    pub(crate) backup_job_id: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct BackupDiskList {
    pub(super) disks: Vec<BackupDisk>,
}

/// What the hub counted for one disk (`GET /backups/{id}/disks`).
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct BackupDisk {
    #[serde(alias = "disk_index")]
    pub(crate) disk_id: u32,
    #[serde(default)]
    pub(crate) received_bytes: u64,
    #[serde(default)]
    pub(crate) zero_bytes: u64,
    #[serde(default)]
    pub(crate) equal_bytes: u64,
    #[serde(default)]
    pub(crate) stored_bytes: u64,
}

/// Every shape of error body: legacy `{error, details}` and RFC 9457 `{title, detail}`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ErrorBody {
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    details: Option<String>,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    detail: Option<String>,
}

impl ErrorBody {
    /// One line, `None` when the body says nothing.
    pub(super) fn text(self) -> Option<String> {
        let parts: Vec<String> = [self.error.or(self.title), self.details.or(self.detail)]
            .into_iter()
            .flatten()
            .filter(|part| !part.is_empty())
            .collect();
        (!parts.is_empty()).then(|| parts.join(": "))
    }
}

/// Legacy hubs write `null` for an empty list.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
