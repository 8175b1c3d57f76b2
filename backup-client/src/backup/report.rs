//! What was done.

use std::time::Duration;

use serde::Serialize;

use crate::tracker::Everything;

/// A backup that the hub has acknowledged.
#[derive(Debug, Clone, Serialize)]
pub struct BackupReport {
    /// The job's id at the hub.
    pub backup_id: String,
    /// Name of the VM.
    pub vm_name: String,
    /// Where it is.
    pub repository_id: String,
    /// `full` or `incremental`, as the hub made it.
    pub backup_type: String,
    /// Why an automatic or changed type became what it is, in the hub's words.
    pub type_reason: Option<String>,
    /// One entry per disk, in the order given.
    pub disks: Vec<DiskReport>,
    /// What the user should know.
    pub warnings: Vec<Warning>,
    /// Wall-clock time of the whole run.
    #[serde(rename = "elapsed_seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
}

impl BackupReport {
    /// The sum of one figure over all disks.
    #[must_use]
    pub fn sum(&self, figure: impl Fn(&DiskReport) -> u64) -> u64 {
        self.disks.iter().map(figure).sum()
    }
}

/// One disk of a backup. `sent + zero + unchanged` is the size of the export.
#[derive(Debug, Clone, Serialize)]
pub struct DiskReport {
    /// Position of the disk, from 0.
    pub disk_index: u32,
    /// Its id at the hub, `disk-2000` onwards.
    pub disk_id: String,
    /// What was read.
    pub source: String,
    /// Size of the disk.
    pub size_bytes: u64,
    /// Bytes read from the source; known holes are not read.
    pub read_bytes: u64,
    /// Bytes sent as data.
    pub sent_bytes: u64,
    /// Bytes told as zero.
    pub zero_bytes: u64,
    /// Bytes left out because the hub has them.
    pub unchanged_bytes: u64,
    /// The position recorded with the hub.
    pub change_id: String,
    /// Why nothing was left out; `None` when tracking worked.
    #[serde(serialize_with = "reason_name")]
    pub everything: Option<Everything>,
    /// What the hub counted, where it tells.
    pub hub: Option<HubCounters>,
    /// Time from the first connection to the hub's acknowledgement.
    #[serde(rename = "elapsed_seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
}

/// What the hub made of the bytes that it received for one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HubCounters {
    /// Bytes of all write and zero requests.
    pub received_bytes: u64,
    /// Of these, bytes that are zero.
    pub zero_bytes: u64,
    /// Of these, bytes that the parent had already.
    pub equal_bytes: u64,
    /// Of these, bytes that take space.
    pub stored_bytes: u64,
}

/// Something that did not stop the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// A stable name, for scripts.
    pub name: &'static str,
    /// What happened, to which disk.
    pub text: String,
}

fn seconds<S: serde::Serializer>(elapsed: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(elapsed.as_secs_f64())
}

fn reason_name<S: serde::Serializer>(
    reason: &Option<Everything>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match reason {
        Some(reason) => serializer.serialize_some(reason.name()),
        None => serializer.serialize_none(),
    }
}
