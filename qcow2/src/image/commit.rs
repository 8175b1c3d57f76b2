//! Making changes durable, in the order that `plan::order` decides.

use crate::error::{Error, ErrorKind};
use crate::image::Image;
use crate::plan::order::Write;
use crate::storage;

/// Whether commits still mean anything. Held while one runs: there is one at a time.
#[derive(Debug, Default)]
pub(crate) struct CommitState {
    /// The first failure after which nobody knows what the file holds.
    failed: Option<String>,
}

/// Whether a commit let clusters go, whose refcounts are still to be written.
#[derive(Debug, PartialEq, Eq)]
enum Freed {
    Nothing,
    Some,
}

impl Image {
    /// A commit point: everything completed before the call is durable when it returns.
    ///
    /// # Errors
    /// `NoSpace` or `Io` from the storage. After a failed sync every later flush fails, too: what the system had
    /// not written may be lost, and asking again would hide that.
    pub fn flush(&self) -> Result<(), Error> {
        let mut state = self.commit.lock();
        // Refcounts fall only when nothing durable refers to the clusters any more: that is a commit of its own.
        if self.commit_once(&mut state)? == Freed::Some {
            self.commit_once(&mut state)?;
        }
        Ok(())
    }

    /// Writes what has changed, so that it need not stay in memory.
    pub(super) fn relieve(&self) -> Result<(), Error> {
        self.commit_once(&mut self.commit.lock()).map(drop)
    }

    fn commit_once(&self, state: &mut CommitState) -> Result<Freed, Error> {
        if let Some(first) = &state.failed {
            return Err(Error::new(
                ErrorKind::Io,
                format!("image failed earlier and takes no more commits: {first}"),
            ));
        }
        let (changes, commit) = self.tables.lock().begin_commit();
        let freed = if commit.frees() {
            Freed::Some
        } else {
            Freed::Nothing
        };
        let mut stages = changes.stages().into_iter();
        // A failed write of the first stage is repeated by the next commit: nobody refers to it yet.
        let first = stages.next().unwrap_or_default();
        if let Err(error) = self.write_stage(&first) {
            self.tables.lock().undo_commit(commit);
            return Err(error);
        }
        let result = storage::sync(&*self.storage)
            .and_then(|()| stages.try_for_each(|stage| self.write_and_sync(&stage)))
            .and_then(|()| self.tables.lock().end_commit(&*self.storage, commit));
        if let Err(error) = &result {
            state.failed = Some(error.to_string());
        }
        result.map(|()| freed)
    }

    fn write_and_sync(&self, stage: &[Write]) -> Result<(), Error> {
        self.write_stage(stage)?;
        storage::sync(&*self.storage)
    }

    fn write_stage(&self, stage: &[Write]) -> Result<(), Error> {
        for write in stage {
            storage::write(&*self.storage, write.at, &write.payload.to_bytes())?;
        }
        Ok(())
    }
}
