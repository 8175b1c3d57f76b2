//! Points between the steps of the workflows, where a test stops the world as a crash would.

use std::sync::Arc;

use crate::repository::StorageWrapper;

/// A moment after which the two stores differ from the moment before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The rows are there, with intent `creating`.
    Recorded,
    /// The partial images are there, and their exports.
    FilesMade,
    /// The intent is cleared.
    Ready,
    /// One more disk is sealed, its row not completed.
    Sealed,
    /// Its row is completed.
    DiskCompleted,
    /// Intent `publishing` is recorded.
    PublishIntended,
    /// One more image has its final name.
    OnePublished,
    /// All images have their final names, the backup is not completed.
    AllPublished,
    /// The backup failed, its files are still there.
    FailRecorded,
    /// Intent `deleting` is recorded for a completed backup.
    DeletionIntended,
    /// One more image of it is gone.
    OneDeleted,
}

/// What a test puts between the hub and the world; nothing in a real hub.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    /// Put between every new image and its file.
    pub(crate) storage: Option<Arc<StorageWrapper>>,
    /// At this step (the n-th time, counted from 1) the workflow stops for ever, after saying so.
    #[cfg(test)]
    pub(crate) halt: Option<Arc<Halt>>,
}

impl Hooks {
    /// Called by the workflows as they pass a step.
    #[cfg(not(test))]
    #[expect(clippy::unused_async, reason = "a test's version waits for ever")]
    pub(crate) async fn reached(&self, _step: Step) {}

    #[cfg(test)]
    pub(crate) async fn reached(&self, step: Step) {
        if let Some(halt) = &self.halt {
            halt.reached(step).await;
        }
    }
}

/// Where a test stops a workflow.
#[cfg(test)]
pub(crate) struct Halt {
    pub(crate) step: Step,
    pub(crate) remaining: std::sync::atomic::AtomicUsize,
    pub(crate) stopped: tokio::sync::Notify,
}

#[cfg(test)]
impl Halt {
    pub(crate) fn at(step: Step, nth: usize) -> Arc<Self> {
        let remaining = std::sync::atomic::AtomicUsize::new(nth);
        Arc::new(Self {
            step,
            remaining,
            stopped: tokio::sync::Notify::new(),
        })
    }

    async fn reached(&self, step: Step) {
        use std::sync::atomic::Ordering;
        if step == self.step && self.remaining.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.stopped.notify_one();
            std::future::pending::<()>().await;
        }
    }
}
