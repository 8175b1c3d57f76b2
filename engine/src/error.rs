//! The one error of this crate's edge.

use std::error::Error as StdError;
use std::fmt;

/// What the caller should do. `api` maps each to a status in one match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Change the request: it can never succeed as it is.
    Invalid,
    /// Name something else: what the request names does not exist.
    NotFound,
    /// Look at the current state, then decide: something else is in the way (a running job, a name taken, an ended job).
    Conflict,
    /// Take a full backup first: no completed backup can be the parent of this increment.
    NoParent,
    /// Stop and look: stored data is not what it should be. Retrying does not help.
    Corrupt,
    /// Free space or grow the repository, then retry.
    NoSpace,
    /// Present a token that is known, or none where none is asked for.
    Unauthenticated,
    /// Ask somebody who may: this caller is known and may not.
    Forbidden,
    /// Retry later: the database, a repository or the hub itself is not ready.
    Unavailable,
    /// Check the node and the way to it, then retry: it did not answer.
    NodeUnreachable,
    /// Read the node's answer: it refused.
    NodeRefused,
    /// Configure or build the hub differently: this build does not do that.
    Unsupported,
    /// Report a bug.
    Internal,
}

impl ErrorKind {
    /// The kind as a stable word, for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::NoParent => "no_parent",
            Self::Corrupt => "corrupt",
            Self::NoSpace => "no_space",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::Unavailable => "unavailable",
            Self::NodeUnreachable => "node_unreachable",
            Self::NodeRefused => "node_refused",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why the engine could not do it.
///
/// `message` is the short text that legacy clients know ("VM not found"); `details` says which and why, variables last
/// as `key=value`. The cause, where there is one, is the [`source`](StdError::source) and is not repeated in the text.
#[derive(Debug)]
pub struct Error {
    /// What the caller should do.
    pub kind: ErrorKind,
    /// Short, stable text.
    pub message: String,
    /// Which one, and why. May be empty.
    pub details: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` with its short text and its details.
    pub fn new(kind: ErrorKind, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            details: details.into(),
            source: None,
        }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// A request that can never succeed as it is.
    pub fn invalid(message: impl Into<String>, details: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message, details)
    }

    /// Something that does not exist.
    pub fn not_found(message: impl Into<String>, details: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message, details)
    }

    /// Something else is in the way.
    pub fn conflict(message: impl Into<String>, details: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message, details)
    }

    /// Something that this caller may not do.
    pub fn forbidden(message: impl Into<String>, details: impl Into<String>) -> Self {
        Self::new(ErrorKind::Forbidden, message, details)
    }

    /// Stored data is not what it should be.
    pub fn corrupt(message: impl Into<String>, details: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message, details)
    }

    /// A bug.
    pub fn internal(message: impl Into<String>, details: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message, details)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.details.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.message, self.details)
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_details_but_not_the_source() {
        let cause = std::io::Error::other("the cause");
        let error = Error::not_found("VM not found", "vm_name=web").with_source(cause);
        assert_eq!(error.to_string(), "VM not found: vm_name=web");
        assert_eq!(
            error.source().map(ToString::to_string).as_deref(),
            Some("the cause")
        );
        assert_eq!(
            Error::invalid("missing change_id", "").to_string(),
            "missing change_id"
        );
    }
}
