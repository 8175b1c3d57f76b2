//! What live views are told.

use super::{Backup, words};

/// What has happened to a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackupChange {
    /// Its exports accept data.
    Started,
    /// More of it came in.
    Progress,
    /// One more disk is complete and durable.
    DiskCompleted,
    /// All of it is published.
    Completed,
    /// It ended by an error.
    Failed,
    /// It ended by a request.
    Cancelled,
    /// It is gone, with its files.
    Deleted,
}
words!(
    BackupChange, "change",
    Started => "started", Progress => "progress", DiskCompleted => "disk_completed", Completed => "completed",
    Failed => "failed", Cancelled => "cancelled", Deleted => "deleted",
);

impl BackupChange {
    /// Whether nothing but a deletion can follow.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::Failed | Self::Cancelled | Self::Deleted
        )
    }
}

/// A change of a backup, and the backup after it (before it, where it was deleted).
#[derive(Debug, Clone, PartialEq)]
pub struct BackupEvent {
    /// What has happened.
    pub change: BackupChange,
    /// The backup.
    pub backup: Backup,
}
