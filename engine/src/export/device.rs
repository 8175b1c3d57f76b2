//! What an export stands for: a device whose calls block.

use nbd_server::{ErrorCode, ExportError, Extent};

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
    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError>;
    /// Makes a range read as zero; `keep_allocation` wants space to stay reserved for it.
    fn zero(&self, offset: u64, len_bytes: u64, keep_allocation: bool) -> Result<(), DeviceError>;
    /// Everything that completed before the call is durable when it returns.
    fn flush(&self) -> Result<(), DeviceError>;
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

/// The state of qcow2 extents in the two bits of `base:allocation` (NBD proto, "base:allocation").
pub(crate) fn allocation(extents: &[qcow2::Extent]) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        let run = match extent.kind {
            qcow2::ExtentKind::Data => Extent {
                len_bytes: extent.len_bytes,
                hole: false,
                reads_zero: false,
            },
            qcow2::ExtentKind::Zero => Extent {
                len_bytes: extent.len_bytes,
                hole: extent.host_offset.is_none(),
                reads_zero: true,
            },
            qcow2::ExtentKind::Unallocated => Extent {
                len_bytes: extent.len_bytes,
                hole: true,
                reads_zero: true,
            },
        };
        match runs.last_mut() {
            Some(last) if last.hole == run.hole && last.reads_zero == run.reads_zero => {
                last.len_bytes += run.len_bytes;
            }
            _ => runs.push(run),
        }
    }
    runs
}
