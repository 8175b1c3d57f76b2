//! Rows as the database has them, and what they mean.

use sqlx::FromRow;

use super::timestamp::{from_optional_text, from_text};
use crate::error::Error;
use crate::id::{
    BackupDiskId, BackupId, ChangeId, ContextId, DeviceKey, DiskIndex, ExportName, PolicyId,
    RepositoryId, VmContextId,
};
use crate::model::{Backup, BackupDisk, BackupType, DiskState, DiskStatus, JobState, JobStatus};

/// Bytes of a GiB: legacy rows know a disk's size only in these.
const GIB: u64 = 1 << 30;

/// `SELECT` of [`JobRow`]s from `backup_jobs j`, with the rest of the statement.
macro_rules! select_jobs {
    ($rest:literal) => {
        select_jobs!("", $rest)
    };
    ($with:literal, $rest:literal) => {
        concat!(
            $with,
            " SELECT j.id, j.vm_backup_context_id, j.vm_context_id, j.vm_name, j.repository_id, j.policy_id, j.backup_type, ",
            "j.status, j.repository_path, j.change_id, j.bytes_transferred, j.total_bytes, j.error_message, j.current_phase, ",
            "j.transfer_speed_bps, j.eta_seconds, j.progress_percent, j.last_telemetry_at, j.created_at, j.started_at, j.completed_at, ",
            "j.transfer, j.type_reason, j.intent, j.version, ",
            "(SELECT COUNT(*) FROM backup_disks n WHERE n.backup_job_id = j.id) AS disks_count ",
            $rest
        )
    };
}

/// `SELECT` of [`DiskRow`]s from `backup_disks d` and its parent `p`, with the rest of the statement.
macro_rules! select_disks {
    ($rest:literal) => {
        select_disks!("", $rest)
    };
    ($with:literal, $rest:literal) => {
        concat!(
            $with,
            " SELECT d.id, d.backup_job_id, d.disk_index, d.vmware_disk_key, d.size_gb, d.disk_change_id, d.qcow2_path, ",
            "d.status, d.error_message, d.completed_at, d.capacity_bytes, d.parent_disk_id, d.base_change_id, d.parent_reason, ",
            "d.chain_depth, d.export_name, d.bytes_transferred, d.received_bytes, d.zero_bytes, d.equal_bytes, d.stored_bytes, ",
            "d.written_bytes, d.progress_percent, ",
            "p.backup_job_id AS parent_backup_id ",
            $rest
        )
    };
}
pub(super) use {select_disks, select_jobs};

/// A row of `backup_jobs`.
#[derive(Debug, FromRow)]
pub(super) struct JobRow {
    pub(super) id: String,
    pub(super) vm_backup_context_id: Option<String>,
    pub(super) vm_context_id: String,
    vm_name: String,
    repository_id: String,
    policy_id: Option<String>,
    backup_type: String,
    status: String,
    repository_path: String,
    change_id: Option<String>,
    bytes_transferred: i64,
    total_bytes: i64,
    error_message: Option<String>,
    current_phase: String,
    transfer_speed_bps: i64,
    eta_seconds: i64,
    progress_percent: f64,
    last_telemetry_at: Option<String>,
    created_at: String,
    started_at: Option<String>,
    completed_at: Option<String>,
    transfer: Option<String>,
    type_reason: Option<String>,
    intent: Option<String>,
    pub(super) version: i64,
    disks_count: i64,
}

impl JobRow {
    /// The job's state with its data. A legacy row may lack the times of its state; then its creation counts.
    pub(super) fn state(&self) -> Result<JobState, Error> {
        let created_at = from_text("created_at", &self.created_at)?;
        let started_at =
            from_optional_text("started_at", self.started_at.as_deref())?.unwrap_or(created_at);
        let at =
            from_optional_text("completed_at", self.completed_at.as_deref())?.unwrap_or(started_at);
        let reason = self.error_message.clone().unwrap_or_default();
        Ok(match word::<JobStatus>("status", &self.status)? {
            JobStatus::Pending => JobState::Pending,
            JobStatus::Running => JobState::Running { started_at },
            JobStatus::Completed => JobState::Completed { started_at, at },
            JobStatus::Failed => JobState::Failed { at, reason },
            JobStatus::Cancelled => JobState::Cancelled { at, reason },
        })
    }
}

impl TryFrom<JobRow> for Backup {
    type Error = Error;

    fn try_from(row: JobRow) -> Result<Self, Error> {
        Ok(Self {
            id: stored("id", BackupId::parse_stored(&row.id))?,
            vm_context_id: stored("vm_context_id", VmContextId::parse(&row.vm_context_id))?,
            context_id: optional(
                row.vm_backup_context_id.as_deref(),
                "vm_backup_context_id",
                ContextId::parse,
            )?,
            vm_name: row.vm_name,
            repository_id: stored("repository_id", RepositoryId::parse(&row.repository_id))?,
            policy_id: optional(row.policy_id.as_deref(), "policy_id", PolicyId::parse)?,
            backup_type: backup_type(&row.backup_type)?,
            type_reason: row.type_reason,
            transfer: row
                .transfer
                .as_deref()
                .map(|text| word("transfer", text))
                .transpose()?,
            status: word("status", &row.status)?,
            intent: row
                .intent
                .as_deref()
                .map(|text| word("intent", text))
                .transpose()?,
            current_phase: row.current_phase,
            file_path: row.repository_path,
            bytes_transferred: unsigned("bytes_transferred", row.bytes_transferred)?,
            total_bytes: unsigned("total_bytes", row.total_bytes)?,
            disks_count: small("disks_count", row.disks_count)?,
            change_id: row.change_id.filter(|text| !text.is_empty()),
            error_message: row.error_message,
            transfer_speed_bps: unsigned("transfer_speed_bps", row.transfer_speed_bps)?,
            // A legacy hub stored what a client said, which may be negative.
            eta_seconds: u64::try_from(row.eta_seconds).unwrap_or(0),
            progress_percent: row.progress_percent,
            created_at: from_text("created_at", &row.created_at)?,
            started_at: from_optional_text("started_at", row.started_at.as_deref())?,
            completed_at: from_optional_text("completed_at", row.completed_at.as_deref())?,
            last_telemetry_at: from_optional_text(
                "last_telemetry_at",
                row.last_telemetry_at.as_deref(),
            )?,
        })
    }
}

/// A row of `backup_disks` with the backup of its parent.
#[derive(Debug, FromRow)]
pub(super) struct DiskRow {
    id: i64,
    backup_job_id: String,
    disk_index: i64,
    vmware_disk_key: i64,
    size_gb: i64,
    disk_change_id: Option<String>,
    qcow2_path: Option<String>,
    status: String,
    error_message: Option<String>,
    completed_at: Option<String>,
    capacity_bytes: Option<i64>,
    parent_disk_id: Option<i64>,
    base_change_id: Option<String>,
    parent_reason: Option<String>,
    chain_depth: Option<i64>,
    export_name: Option<String>,
    bytes_transferred: i64,
    received_bytes: Option<i64>,
    zero_bytes: Option<i64>,
    equal_bytes: Option<i64>,
    stored_bytes: Option<i64>,
    written_bytes: Option<i64>,
    progress_percent: f64,
    parent_backup_id: Option<String>,
}

impl TryFrom<DiskRow> for BackupDisk {
    type Error = Error;

    fn try_from(row: DiskRow) -> Result<Self, Error> {
        let capacity_bytes = match row.capacity_bytes {
            Some(bytes) => unsigned("capacity_bytes", bytes)?,
            None => unsigned("size_gb", row.size_gb)?.saturating_mul(GIB),
        };
        Ok(Self {
            id: BackupDiskId::new(row.id),
            backup_id: stored("backup_job_id", BackupId::parse_stored(&row.backup_job_id))?,
            disk_index: DiskIndex::new(small("disk_index", row.disk_index)?),
            device_key: stored(
                "vmware_disk_key",
                DeviceKey::new(small("vmware_disk_key", row.vmware_disk_key)?),
            )?,
            status: word("status", &row.status)?,
            capacity_bytes,
            change_id: optional(
                row.disk_change_id.as_deref(),
                "disk_change_id",
                ChangeId::parse,
            )?,
            parent_disk_id: row.parent_disk_id.map(BackupDiskId::new),
            parent_backup_id: optional(
                row.parent_backup_id.as_deref(),
                "parent_backup_id",
                BackupId::parse_stored,
            )?,
            base_change_id: optional(
                row.base_change_id.as_deref(),
                "base_change_id",
                ChangeId::parse,
            )?,
            parent_reason: row.parent_reason,
            chain_depth: row
                .chain_depth
                .map(|depth| small("chain_depth", depth))
                .transpose()?,
            export_name: optional(row.export_name.as_deref(), "export_name", ExportName::parse)?,
            image_path: row.qcow2_path.filter(|path| !path.is_empty()),
            received_bytes: unsigned(
                "received_bytes",
                row.received_bytes.unwrap_or(row.bytes_transferred),
            )?,
            zero_bytes: unsigned("zero_bytes", row.zero_bytes.unwrap_or(0))?,
            equal_bytes: unsigned("equal_bytes", row.equal_bytes.unwrap_or(0))?,
            stored_bytes: unsigned("stored_bytes", row.stored_bytes.unwrap_or(0))?,
            written_bytes: unsigned("written_bytes", row.written_bytes.unwrap_or(0))?,
            // A legacy hub stored what a client said.
            progress_percent: row.progress_percent.clamp(0.0, 100.0),
            error_message: row.error_message,
            completed_at: from_optional_text("completed_at", row.completed_at.as_deref())?,
        })
    }
}

/// The state of a disk with its data; `None` for a completed legacy disk without a change id, which no event concerns.
pub(super) fn disk_state(disk: &BackupDisk) -> Option<DiskState> {
    Some(match disk.status {
        DiskStatus::Pending => DiskState::Pending,
        DiskStatus::Running => DiskState::Running,
        DiskStatus::Completed => DiskState::Completed {
            at: disk.completed_at?,
            change_id: disk.change_id.clone()?,
        },
        DiskStatus::Failed => DiskState::Failed {
            reason: disk.error_message.clone().unwrap_or_default(),
        },
    })
}

/// `differential` exists in the legacy schema; nothing ever wrote it, and it stands on a parent as an increment does.
pub(super) fn backup_type(text: &str) -> Result<BackupType, Error> {
    if text == "differential" {
        Ok(BackupType::Incremental)
    } else {
        word("backup_type", text)
    }
}

pub(super) fn word<T: std::str::FromStr<Err = Error>>(
    column: &'static str,
    text: &str,
) -> Result<T, Error> {
    stored(column, text.parse())
}

/// A value that the database should never have held is damage, not a bad request.
pub(super) fn stored<T>(column: &'static str, parsed: Result<T, Error>) -> Result<T, Error> {
    parsed.map_err(|source| {
        Error::corrupt(
            "database error",
            format!("a row has an impossible value column={column}"),
        )
        .with_source(source)
    })
}

/// A text that may be missing; legacy rows have `''` where they mean nothing.
pub(super) fn optional<T>(
    text: Option<&str>,
    column: &'static str,
    parse: impl FnOnce(&str) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    text.filter(|text| !text.is_empty())
        .map(|text| stored(column, parse(text)))
        .transpose()
}

pub(super) fn unsigned(column: &'static str, value: i64) -> Result<u64, Error> {
    u64::try_from(value).map_err(|_| out_of_range(column, value))
}

pub(super) fn small(column: &'static str, value: i64) -> Result<u32, Error> {
    u32::try_from(value).map_err(|_| out_of_range(column, value))
}

fn out_of_range(column: &'static str, value: i64) -> Error {
    Error::corrupt(
        "database error",
        format!("a row has an impossible value column={column} value={value}"),
    )
}

/// A number for the database, whose integers end at 2^63.
pub(super) fn signed(field: &'static str, value: u64) -> Result<i64, Error> {
    i64::try_from(value).map_err(|_| {
        Error::invalid(
            "number is too large",
            format!("field={field} value={value}"),
        )
    })
}
