//! Exports in memory that remember what is written, and misbehave when told.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use nbd_server::exports::MemoryExport;
use nbd_server::{
    ByteRange, Content, ErrorCode, Export, ExportError, ExportInfo, ExportName, Exports, Extent,
    OpenError, Peer, Zero,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Never reached by an offset.
const NOWHERE: u64 = u64::MAX;

/// What the devices do when a write covers an offset.
#[derive(Debug)]
pub(crate) struct Faults {
    pub(crate) fail_at: AtomicU64,
    pub(crate) vanish_at: AtomicU64,
    pub(crate) hang_at: AtomicU64,
    pub(crate) hanging: Notify,
    pub(crate) healed: Notify,
    pub(crate) no_multi_conn: AtomicBool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            fail_at: NOWHERE.into(),
            vanish_at: NOWHERE.into(),
            hang_at: NOWHERE.into(),
            hanging: Notify::new(),
            healed: Notify::new(),
            no_multi_conn: false.into(),
        }
    }
}

impl Faults {
    pub(crate) fn heal(&self) {
        for fault in [&self.fail_at, &self.vanish_at, &self.hang_at] {
            fault.store(NOWHERE, Ordering::SeqCst);
        }
        self.healed.notify_waiters();
    }
}

/// One disk at the hub; lives as long as the hub, so that an increment finds what the full left.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) memory: MemoryExport,
    pub(crate) size_bytes: u64,
    pub(crate) touched: Arc<Mutex<Vec<(u64, u64)>>>,
    pub(crate) flushed: Arc<AtomicBool>,
    pub(crate) faults: Arc<Faults>,
    pub(crate) cut: CancellationToken,
    open: Arc<AtomicUsize>,
    most_open: Arc<AtomicUsize>,
}

impl Device {
    pub(crate) fn new(size_bytes: u64, faults: &Arc<Faults>) -> Self {
        Self {
            memory: MemoryExport::new(size_bytes),
            size_bytes,
            touched: Arc::default(),
            flushed: Arc::default(),
            faults: Arc::clone(faults),
            cut: CancellationToken::new(),
            open: Arc::default(),
            most_open: Arc::default(),
        }
    }

    pub(crate) fn most_open(&self) -> usize {
        self.most_open.load(Ordering::SeqCst)
    }

    async fn touch(&self, range: ByteRange) -> Result<(), ExportError> {
        let hit = |fault: &AtomicU64| {
            let at = fault.load(Ordering::SeqCst);
            (range.offset..range.end()).contains(&at)
        };
        if hit(&self.faults.fail_at) {
            return Err(ExportError::new(ErrorCode::NOSPC, "told to fail"));
        }
        if hit(&self.faults.vanish_at) {
            self.cut.cancel();
        }
        if hit(&self.faults.hang_at) {
            let healed = self.faults.healed.notified();
            self.faults.hanging.notify_one();
            healed.await;
        }
        self.flushed.store(false, Ordering::SeqCst);
        self.touched.lock().push((range.offset, range.len_bytes));
        Ok(())
    }
}

impl Export for Device {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            multi_conn: !self.faults.no_multi_conn.load(Ordering::SeqCst),
            ..self.memory.info()
        }
    }

    async fn read(&self, range: ByteRange) -> Result<Content, ExportError> {
        self.memory.read(range).await
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        let len_bytes = data.len() as u64;
        self.touch(ByteRange { offset, len_bytes }).await?;
        self.memory.write(offset, data).await
    }

    async fn zero(&self, range: ByteRange, how: Zero) -> Result<(), ExportError> {
        self.touch(range).await?;
        self.memory.zero(range, how).await
    }

    async fn trim(&self, range: ByteRange) -> Result<(), ExportError> {
        self.touch(range).await?;
        self.memory.trim(range).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.flushed.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, ExportError> {
        self.memory.extents(range).await
    }

    async fn withdrawn(&self) {
        self.cut.cancelled().await;
    }

    async fn close(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The devices by export name.
#[derive(Debug, Default)]
pub(crate) struct Devices(pub(crate) Mutex<HashMap<String, Device>>);

impl Exports for Devices {
    type Export = Device;

    async fn open(&self, name: &ExportName, _: &Peer) -> Result<Device, OpenError> {
        let device = self.0.lock().get(name.as_str()).cloned();
        let device = device.ok_or(OpenError::Unknown)?;
        let open = device.open.fetch_add(1, Ordering::SeqCst) + 1;
        device.most_open.fetch_max(open, Ordering::SeqCst);
        Ok(device)
    }

    async fn list(&self, _: &Peer) -> Vec<String> {
        self.0.lock().keys().cloned().collect()
    }
}
