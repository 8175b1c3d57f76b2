//! A running backup in memory: its exports, its open images, and whose turn it is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use qcow2::Image;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock::Timestamp;
use crate::export::{ExportRegistry, LiveExport};
use crate::id::{BackupId, ChangeId, DeviceKey, DiskIndex, ExportName};
use crate::model::{
    BackupType, DeclaredParent, DiskCounters, DiskShare, Meter, Progress, Signs, Telemetry, Vm,
    Watch,
};
use crate::repository::{ImagePath, Repository};

/// One backup from the moment its exports accept data until it has ended.
pub(crate) struct Job {
    pub(crate) id: BackupId,
    pub(crate) vm: Vm,
    pub(crate) backup_type: BackupType,
    pub(crate) created_at: Timestamp,
    pub(crate) repository: Arc<Repository>,
    pub(crate) disks: Vec<JobDisk>,
    /// Complete, fail and cancel take turns.
    pub(crate) turn: Mutex<Turn>,
    /// How far it is.
    pub(crate) meter: std::sync::Mutex<Meter>,
    /// Whether its client lives, and what was recorded of it last.
    pub(crate) watched: std::sync::Mutex<Watched>,
    /// Calls of its client over HTTP.
    pub(crate) calls: AtomicU64,
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
    /// Nothing more will come: its image is sealed.
    pub(crate) is_sealed: AtomicBool,
}

/// What the hub's watch knows of a job.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) watch: Watch,
    /// When progress was recorded last, or the job started.
    pub(crate) recorded_at: Timestamp,
    /// What was recorded then.
    pub(crate) recorded: Option<Progress>,
    /// What live views were told last.
    pub(crate) told: Option<Progress>,
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

    /// A call of its client came in.
    pub(crate) fn count_call(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// The signs of its client, over all disks.
    pub(crate) fn signs(&self) -> Signs {
        let calls = self.calls.load(Ordering::Relaxed);
        let of_disks = self.disks.iter().map(|disk| disk.live.signs());
        of_disks.fold(
            Signs {
                calls,
                ..Signs::default()
            },
            |sum, disk| Signs {
                opened: sum.opened + disk.opened,
                open: sum.open + disk.open,
                requests: sum.requests + disk.requests,
                calls: sum.calls,
            },
        )
    }

    /// Takes in a report of its client.
    pub(crate) fn hear(&self, report: &Telemetry, now: Timestamp) {
        self.meter().hear(report, &self.shares(), now);
    }

    /// Measures how far it is now.
    pub(crate) fn measure(&self, now: Timestamp) -> Progress {
        let mut meter = self.meter();
        meter.sample(&self.shares(), now);
        meter.shown().clone()
    }

    /// How much of one of its disks is done, in percent.
    pub(crate) fn disk_percent(&self, disk: &JobDisk) -> f64 {
        self.meter().disk_percent(&disk.share())
    }

    fn meter(&self) -> MutexGuard<'_, Meter> {
        // No code panics while holding it; a poisoned meter would still measure.
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shares(&self) -> Vec<DiskShare> {
        self.disks.iter().map(JobDisk::share).collect()
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
            written_bytes: self.image.info().file_size_bytes,
        }
    }

    fn share(&self) -> DiskShare {
        DiskShare {
            disk_index: self.index,
            capacity_bytes: self.capacity_bytes,
            received_bytes: self.image.counters().received_bytes,
            is_complete: self.is_sealed.load(Ordering::Relaxed),
        }
    }
}
