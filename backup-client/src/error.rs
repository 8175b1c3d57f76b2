//! What went wrong, and whose part it is.

use std::fmt::Display;

/// Which side failed, so that the caller knows where to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself makes no sense; trying again will not help.
    Usage,
    /// The source cannot be read, or changed while it was read.
    Source,
    /// The tracking state on this node cannot be used.
    State,
    /// Another run works on the same VM on this node.
    Busy,
    /// The hub refused, failed or did not answer a REST call.
    Hub,
    /// The NBD side failed: connection, protocol, or an error for one request.
    Target,
    /// The caller asked to stop.
    Cancelled,
}

/// A failed operation of the client: `message` says what, where and with which values; the source says why.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Which side failed.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message and every cause under it, on one line.
    #[must_use]
    pub fn full_text(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Display) -> Self {
        Self {
            kind,
            message: message.to_string(),
            source: None,
        }
    }

    pub(crate) fn because(
        kind: ErrorKind,
        message: impl Display,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            message: message.to_string(),
            source: Some(source.into()),
        }
    }

    /// Puts where it happened in front of the message.
    pub(crate) fn context(mut self, place: impl Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }
}
