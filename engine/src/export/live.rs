//! One device that is being served, whatever it stands for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::device::{Device, DeviceError};
use super::gate::Gate;
use crate::id::DiskIndex;
use crate::model::Signs;

/// The first error after which a disk of a running backup cannot become a good image.
#[derive(Debug, Clone)]
pub(crate) struct StorageFailure {
    /// Which disk of the backup.
    pub(crate) disk: DiskIndex,
    /// What happened.
    pub(crate) error: DeviceError,
}

/// Tells the owner of an export about the first fatal error.
#[derive(Debug, Clone)]
pub(crate) struct FailureReport {
    /// Which disk of the backup.
    pub(crate) disk: DiskIndex,
    /// Has room for one message per disk, so that telling never waits.
    pub(crate) channel: mpsc::Sender<StorageFailure>,
}

/// A device, its current writer generation, and its end.
///
/// ```text
/// serving ──stop_requests──▶ fenced (every later request: ESHUTDOWN) ──withdraw──▶ sessions end
/// ```
pub(crate) struct LiveExport {
    device: Arc<dyn Device>,
    /// What clients see; at most the device's size, which may be rounded up to whole sectors.
    size_bytes: u64,
    /// Sessions keep the gate that was current when they opened: closing it fences exactly those.
    generation: Mutex<Arc<Gate>>,
    failure: OnceLock<DeviceError>,
    report: Option<FailureReport>,
    withdrawn: CancellationToken,
    traffic: Traffic,
}

/// What clients did with an export, counted for ever. A count is only compared with an earlier one, so that no order
/// between them matters.
#[derive(Debug, Default)]
struct Traffic {
    opened: AtomicU64,
    closed: AtomicU64,
    requests: AtomicU64,
}

impl LiveExport {
    /// Serves the first `size_bytes` of `device`. `report`, if given, is told of the first fatal error.
    pub(crate) fn new(
        device: Arc<dyn Device>,
        size_bytes: u64,
        report: Option<FailureReport>,
    ) -> Self {
        Self {
            size_bytes: size_bytes.min(device.size_bytes()),
            device,
            generation: Mutex::default(),
            failure: OnceLock::new(),
            report,
            withdrawn: CancellationToken::new(),
            traffic: Traffic::default(),
        }
    }

    /// A session has opened this export.
    pub(crate) fn count_opened(&self) {
        self.traffic.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// A session has let go of this export.
    pub(crate) fn count_closed(&self) {
        self.traffic.closed.fetch_add(1, Ordering::Relaxed);
    }

    /// A session asks for something.
    pub(crate) fn count_request(&self) {
        self.traffic.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// What clients did so far; calls over HTTP are not among it.
    pub(crate) fn signs(&self) -> Signs {
        // In this order, so that a session that ends meanwhile is not counted as open for ever less one.
        let closed = self.traffic.closed.load(Ordering::Relaxed);
        let opened = self.traffic.opened.load(Ordering::Relaxed);
        Signs {
            opened,
            open: opened.saturating_sub(closed),
            requests: self.traffic.requests.load(Ordering::Relaxed),
            calls: 0,
        }
    }

    /// The device that is served.
    pub(crate) fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Size that clients see.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The gate that a session opened now has to pass with each request.
    pub(crate) fn current_generation(&self) -> Arc<Gate> {
        Arc::clone(
            &self
                .generation
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Stops requests for good: what is in flight ends, what comes later is answered ESHUTDOWN and never applied.
    /// Connections stay open. Idempotent.
    pub(crate) async fn stop_requests(&self) {
        self.current_generation().close_and_drain().await;
    }

    /// Ends the sessions. Idempotent.
    pub(crate) fn withdraw(&self) {
        self.withdrawn.cancel();
    }

    /// Resolves when [`withdraw`](Self::withdraw) was called.
    pub(crate) fn withdrawn(&self) -> &CancellationToken {
        &self.withdrawn
    }

    /// The first fatal error, if there was one.
    pub(crate) fn failure(&self) -> Option<&DeviceError> {
        self.failure.get()
    }

    /// Remembers the first fatal error and tells the owner once.
    pub(crate) fn note(&self, error: &DeviceError) {
        if !error.fatal || self.failure.set(error.clone()).is_err() {
            return;
        }
        tracing::error!(%error, "storage failed under an export");
        if let Some(report) = &self.report {
            let failure = StorageFailure {
                disk: report.disk,
                error: error.clone(),
            };
            // The owner may be gone (the job ended); then nobody needs to know.
            let _ = report.channel.try_send(failure);
        }
    }
}
