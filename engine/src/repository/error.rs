//! How trouble with files becomes an error that a caller can act on.

use crate::error::{Error, ErrorKind};

/// A file operation that failed; `message` says which, `details` on what.
pub(crate) fn file_error(
    message: &str,
    details: impl Into<String>,
    error: std::io::Error,
) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        std::io::ErrorKind::AlreadyExists => ErrorKind::Conflict,
        std::io::ErrorKind::InvalidInput => ErrorKind::Invalid,
        // A read-only mount, missing rights, an IO error: the operator repairs it, then the call works.
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, message, details).with_source(error)
}

/// An image operation that failed.
pub(crate) fn image_error(message: &str, details: impl Into<String>, error: qcow2::Error) -> Error {
    use qcow2::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::NoSpace => ErrorKind::NoSpace,
        Kind::Io => ErrorKind::Unavailable,
        Kind::Corrupt | Kind::NotFound | Kind::Refused => ErrorKind::Corrupt,
        Kind::Unsupported => ErrorKind::Unsupported,
        Kind::Invalid | Kind::OutOfRange => ErrorKind::Invalid,
        Kind::ReadOnly => ErrorKind::Conflict,
    };
    Error::new(kind, message, details).with_source(error)
}
