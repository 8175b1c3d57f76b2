//! The one error of this crate: what to do about it, and what happened.

/// What the caller should do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request or an option makes no sense: fix the caller.
    Invalid,
    /// The image uses something this crate does not do: use another tool.
    Unsupported,
    /// The bytes of the image contradict themselves: restore it from elsewhere.
    Corrupt,
    /// The range is not inside the disk.
    OutOfRange,
    /// The image does not take writes (any more).
    ReadOnly,
    /// The storage is full: make room, then try again.
    NoSpace,
    /// The storage failed: look at the source.
    Io,
    /// A rule forbids it (a loop, a depth, a sealed image, an opener's decision).
    Refused,
    /// A file is missing.
    NotFound,
}

/// An error: a kind for the program, a sentence for the reader.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    message: String,
    kind: ErrorKind,
    /// Found where the next write would have destroyed something: the image must be marked corrupt.
    damage: bool,
    #[source]
    source: Option<std::io::Error>,
}

impl Error {
    /// An error with its sentence: a lowercase fragment, variables last as `key=value`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            kind,
            damage: false,
            source: None,
        }
    }

    /// An error of the storage; the kind follows from the source (full, missing, anything else).
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                ErrorKind::NoSpace
            }
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        Self {
            message: context.into(),
            kind,
            damage: false,
            source: Some(source),
        }
    }

    #[cfg(feature = "io")]
    pub(crate) fn is_damage(&self) -> bool {
        self.damage
    }

    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

pub(crate) fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

/// `Corrupt`, and of a sort after which the image takes no more writes.
#[cfg(feature = "io")]
pub(crate) fn damage(message: impl Into<String>) -> Error {
    Error {
        damage: true,
        ..corrupt(message)
    }
}

pub(crate) fn unsupported(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}

pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, message)
}
