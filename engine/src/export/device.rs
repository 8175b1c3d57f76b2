//! What an export stands for: a device whose calls block.

use nbd_server::{ErrorCode, ExportError, Extent, MetaContext};

/// A device of fixed size. Calls may block and run on many threads at once.
pub(crate) trait Device: Send + Sync + 'static {
    /// Size of the device.
    fn size_bytes(&self) -> u64;
    /// Whether it takes no writes.
    fn read_only(&self) -> bool;
    /// Whether calls may wait for a disk; those that never do are not sent to another thread.
    fn blocks(&self) -> bool {
        true
    }
    /// Fills `into` from `offset`.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError>;
    /// Whether a range is known to read as zero, without reading it. `false` when that would take long to find out.
    fn reads_zero(&self, _offset: u64, _len_bytes: u64) -> Result<bool, DeviceError> {
        Ok(false)
    }
    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError>;
    /// Makes a range read as zero; `keep_allocation` wants space to stay reserved for it.
    fn zero(&self, offset: u64, len_bytes: u64, keep_allocation: bool) -> Result<(), DeviceError>;
    /// Everything that completed before the call is durable when it returns.
    fn flush(&self) -> Result<(), DeviceError>;
    /// What [`extents`](Self::extents) tells beside holes and zeroes.
    fn contexts(&self) -> Vec<MetaContext> {
        vec![MetaContext::Allocation]
    }
    /// Runs of equal state from `offset`; covers a prefix of the range, at least its first byte.
    fn extents(&self, offset: u64, len_bytes: u64) -> Result<Vec<Extent>, DeviceError>;
}

/// Why a device refused, as both sides need it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct DeviceError {
    /// What the client is told.
    pub(crate) code: ErrorCode,
    /// What the log and the job say.
    pub(crate) message: String,
    /// The storage is broken or full: no later write can be trusted to succeed, so the job ends.
    pub(crate) fatal: bool,
}

impl From<qcow2::Error> for DeviceError {
    fn from(error: qcow2::Error) -> Self {
        use qcow2::ErrorKind as Kind;
        let (code, fatal) = match error.kind() {
            Kind::NoSpace => (ErrorCode::NOSPC, true),
            Kind::Io | Kind::Corrupt | Kind::NotFound => (ErrorCode::IO, true),
            Kind::Invalid | Kind::OutOfRange => (ErrorCode::INVAL, false),
            Kind::Unsupported => (ErrorCode::NOTSUP, false),
            Kind::ReadOnly | Kind::Refused => (ErrorCode::PERM, false),
        };
        Self {
            code,
            message: with_causes(&error),
            fatal,
        }
    }
}

impl From<std::io::Error> for DeviceError {
    fn from(error: std::io::Error) -> Self {
        let full = matches!(
            error.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        );
        let code = if full {
            ErrorCode::NOSPC
        } else {
            ErrorCode::IO
        };
        Self {
            code,
            message: error.to_string(),
            fatal: true,
        }
    }
}

impl From<DeviceError> for ExportError {
    fn from(error: DeviceError) -> Self {
        Self {
            code: error.code,
            message: error.message,
        }
    }
}

/// An error with everything that led to it, for texts that stand alone (a row, a reply).
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What a chain of images tells: which of them decides and, where there is a parent, what changed since it.
pub(crate) fn chain_contexts(has_parent: bool) -> Vec<MetaContext> {
    let mut contexts = vec![MetaContext::Allocation, MetaContext::AllocationDepth];
    if has_parent {
        let bitmap = CHANGES_BITMAP.to_owned();
        // The tip holds what was written since its parent, data and zeroes alike.
        contexts.push(MetaContext::Changes { bitmap, layers: 1 });
    }
    contexts
}

/// The bitmap that stands for the changes of a point since its parent: `qemu:dirty-bitmap:changes`.
const CHANGES_BITMAP: &str = "changes";

/// Whether none of these extents has data.
pub(crate) fn all_zero(extents: &[qcow2::Extent]) -> bool {
    let has_data = |extent: &qcow2::Extent| extent.kind == qcow2::ExtentKind::Data;
    !extents.iter().any(has_data)
}

/// The state of qcow2 extents as block status tells it (NBD proto, "base:allocation"; QEMU, docs/interop/nbd.txt).
pub(crate) fn allocation(extents: &[qcow2::Extent]) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        let (hole, reads_zero, decided) = match extent.kind {
            qcow2::ExtentKind::Data => (false, false, true),
            qcow2::ExtentKind::Zero => (extent.host_offset.is_none(), true, true),
            qcow2::ExtentKind::Unallocated => (true, true, false),
            // As qemu: the layer that ends decides that nothing shines through.
            qcow2::ExtentKind::Beyond => (true, true, true),
        };
        let run = Extent {
            len_bytes: extent.len_bytes,
            hole,
            reads_zero,
            depth: if decided { extent.depth + 1 } else { 0 },
        };
        match runs.last_mut() {
            Some(last) if last.is_like(&run) => last.len_bytes += run.len_bytes,
            _ => runs.push(run),
        }
    }
    runs
}
