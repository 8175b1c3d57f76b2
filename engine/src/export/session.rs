//! One opened export: what the NBD server holds for one connection.

use std::sync::Arc;

use bytes::Bytes;
use nbd_server::{ByteRange, Content, ErrorCode, Export, ExportError, ExportInfo, Extent, Zero};

use super::device::{Device, DeviceError};
use super::gate::Gate;
use super::live::LiveExport;
use crate::limits::{EXTENT_QUERY_BYTES_MAX, ZEROES_READ_BYTES_MIN};

/// A connection's view of a served device, bound to the writer generation in which it was opened.
pub struct OpenExport {
    live: Arc<LiveExport>,
    gate: Arc<Gate>,
}

impl std::fmt::Debug for OpenExport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenExport")
            .field("info", &self.info())
            .finish_non_exhaustive()
    }
}

impl OpenExport {
    pub(crate) fn new(live: Arc<LiveExport>) -> Self {
        let gate = live.current_generation();
        live.count_opened();
        Self { live, gate }
    }

    /// Runs `work` on the device, inside the gate. The pass travels with the work: if this future is dropped while a
    /// thread is writing, the drain still waits for that thread.
    async fn run<T, F>(&self, work: F) -> Result<T, ExportError>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Device) -> Result<T, DeviceError> + Send + 'static,
    {
        self.live.count_request();
        let Some(pass) = self.gate.enter() else {
            return Err(shut_down());
        };
        if let Some(failure) = self.live.failure() {
            return Err(failure.clone().into());
        }
        let live = Arc::clone(&self.live);
        let guarded = move || {
            let outcome = work(live.device().as_ref());
            if let Err(error) = &outcome {
                live.note(error);
            }
            drop(pass);
            outcome
        };
        let outcome = if self.live.device().blocks() {
            tokio::task::spawn_blocking(guarded)
                .await
                .unwrap_or_else(|_| {
                    let error = DeviceError {
                        code: ErrorCode::IO,
                        message: "a request broke off in the middle".to_owned(),
                        fatal: true,
                    };
                    self.live.note(&error);
                    Err(error)
                })
        } else {
            guarded()
        };
        outcome.map_err(ExportError::from)
    }
}

impl Drop for OpenExport {
    fn drop(&mut self) {
        self.live.count_closed();
    }
}

impl Export for OpenExport {
    fn info(&self) -> ExportInfo {
        let device = self.live.device();
        ExportInfo {
            size_bytes: self.live.size_bytes(),
            read_only: device.read_only(),
            // All sessions share one device, and its flush covers every completed write.
            multi_conn: true,
            // Zeroing changes tables, or makes a hole; neither moves data.
            fast_zero: true,
            description: String::new(),
            contexts: device.contexts(),
        }
    }

    async fn read(&self, range: ByteRange) -> Result<Content, ExportError> {
        let len = usize::try_from(range.len_bytes).map_err(|_| too_long(range))?;
        self.run(move |device| {
            // For less, looking it up costs more than it saves.
            let worth_asking = range.len_bytes >= ZEROES_READ_BYTES_MIN;
            if worth_asking && device.reads_zero(range.offset, range.len_bytes)? {
                return Ok(Content::Zeroes);
            }
            let mut data = vec![0; len];
            device.read(range.offset, &mut data)?;
            Ok(Content::Data(Bytes::from(data)))
        })
        .await
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        self.run(move |device| device.write(offset, &data)).await
    }

    async fn zero(&self, range: ByteRange, how: Zero) -> Result<(), ExportError> {
        let keep = how == Zero::KeepAllocated;
        self.run(move |device| device.zero(range.offset, range.len_bytes, keep))
            .await
    }

    async fn trim(&self, range: ByteRange) -> Result<(), ExportError> {
        // In an increment a hole would show the parent again; trimmed space reads as zero instead (house, data path 6).
        self.run(move |device| device.zero(range.offset, range.len_bytes, false))
            .await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.run(|device| device.flush()).await
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, ExportError> {
        let len_bytes = range.len_bytes.min(EXTENT_QUERY_BYTES_MAX);
        self.run(move |device| device.extents(range.offset, len_bytes))
            .await
    }

    async fn withdrawn(&self) {
        self.live.withdrawn().cancelled().await;
    }

    async fn close(&self) {}
}

fn shut_down() -> ExportError {
    ExportError {
        code: ErrorCode::SHUTDOWN,
        message: "this export takes no more requests".to_owned(),
    }
}

fn too_long(range: ByteRange) -> ExportError {
    ExportError {
        code: ErrorCode::INVAL,
        message: format!(
            "request does not fit memory, offset={} len_bytes={}",
            range.offset, range.len_bytes
        ),
    }
}
