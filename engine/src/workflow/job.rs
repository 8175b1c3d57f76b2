//! A running backup in memory: its exports, its open images, and whose turn it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use qcow2::Image;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock::Timestamp;
use crate::export::{ExportRegistry, LiveExport};
use crate::id::{BackupId, ChangeId, DeviceKey, DiskIndex, ExportName, VmContextId};
use crate::model::{BackupType, DeclaredParent, DiskCounters};
use crate::repository::{ImagePath, Repository};

/// One backup from the moment its exports accept data until it has ended.
pub(crate) struct Job {
    pub(crate) id: BackupId,
    pub(crate) vm_context_id: VmContextId,
    pub(crate) vm_name: String,
    pub(crate) backup_type: BackupType,
    pub(crate) created_at: Timestamp,
    pub(crate) repository: Arc<Repository>,
    pub(crate) disks: Vec<JobDisk>,
    /// Complete, fail and cancel take turns.
    pub(crate) turn: Mutex<Turn>,
    /// Cancelled when the job has ended, however.
    pub(crate) ended: CancellationToken,
}

/// One disk of a running backup.
pub(crate) struct JobDisk {
    pub(crate) index: DiskIndex,
    pub(crate) device_key: DeviceKey,
    pub(crate) capacity_bytes: u64,
    pub(crate) path: ImagePath,
    pub(crate) export_name: ExportName,
    pub(crate) parent: Option<DeclaredParent>,
    pub(crate) image: Arc<Image>,
    pub(crate) live: Arc<LiveExport>,
}

/// What only the one whose turn it is may look at and change.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// Disks whose image is sealed, with the change id in the seal.
    pub(crate) sealed: BTreeMap<DiskIndex, ChangeId>,
    /// Nothing may be done any more.
    pub(crate) has_ended: bool,
}

impl Job {
    /// The disk at this position.
    pub(crate) fn disk(&self, index: DiskIndex) -> Option<&JobDisk> {
        self.disks.iter().find(|disk| disk.index == index)
    }

    /// Fences every disk: no new connection, no new request, and what was in flight is done when it returns.
    pub(crate) async fn fence(&self, exports: &ExportRegistry) {
        for disk in &self.disks {
            exports.unregister(disk.export_name.as_str());
        }
        for disk in &self.disks {
            disk.live.stop_requests().await;
        }
    }

    /// Ends the sessions of every disk.
    pub(crate) fn withdraw(&self) {
        for disk in &self.disks {
            disk.live.withdraw();
        }
    }
}

impl JobDisk {
    /// The bytes so far, as the image counts them.
    pub(crate) fn counters(&self) -> DiskCounters {
        let counted = self.image.counters();
        DiskCounters {
            received_bytes: counted.received_bytes,
            zero_bytes: counted.zero_bytes,
            equal_bytes: counted.equal_bytes,
            stored_bytes: counted.stored_bytes,
        }
    }
}
