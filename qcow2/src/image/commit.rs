//! Making changes durable, in the order that `plan::order` decides.

use crate::error::{Error, ErrorKind, corrupt};
use crate::format::feature::INCOMPATIBLE_CORRUPT;
use crate::format::geometry::HostOffset;
use crate::format::header::INCOMPATIBLE_AT;
use crate::format::limits::MAX_FREEING_COMMITS;
use crate::format::wire;
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
    All,
    /// So many that the rest waits for the next commit.
    Part,
}

impl Image {
    /// A commit point: everything completed before the call is durable when it returns.
    ///
    /// # Errors
    /// `Corrupt` once the image was found damaged; `NoSpace` or `Io` from the storage. After a failed sync every later flush fails, too: what the system had
    /// not written may be lost, and asking again would hide that.
    pub fn flush(&self) -> Result<(), Error> {
        let result = self.commit_all(&mut self.commit.lock());
        self.fence(result)
    }

    fn commit_all(&self, state: &mut CommitState) -> Result<(), Error> {
        // Refcounts fall only when nothing durable refers to the clusters any more: that is a commit of its own.
        let mut freed = self.commit_once(state)?;
        for _ in 0..MAX_FREEING_COMMITS {
            match freed {
                Freed::Nothing => break,
                Freed::All => return self.commit_once(state).map(drop),
                Freed::Part => freed = self.commit_once(state)?,
            }
        }
        Ok(())
    }

    /// Hands on the result of a request. When it is damage, the image takes no more writes, and its header says that
    /// it is corrupt (version 2 has no place for that). Reads go on. The caller holds no commit.
    pub(super) fn fence<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result
            && error.is_damage()
        {
            let _commit = self.commit.lock();
            if self.damage.set(error.to_string()).is_ok() {
                // Nothing better can be done about a mark that cannot be written: this process knows.
                let _ = self.mark_corrupt();
            }
        }
        result
    }

    /// Whether damage was found.
    pub(super) fn check_intact(&self) -> Result<(), Error> {
        match self.damage.get() {
            None => Ok(()),
            Some(what) => Err(corrupt(format!(
                "image was found corrupt and takes no more writes: {what}"
            ))),
        }
    }

    fn mark_corrupt(&self) -> Result<(), Error> {
        if self.info.lock().version < 3 {
            return Ok(());
        }
        let mut bits = [0; 8];
        storage::read(&*self.storage, HostOffset(INCOMPATIBLE_AT), &mut bits)?;
        let marked = wire::u64_at(&bits, 0) | INCOMPATIBLE_CORRUPT;
        let bytes = wire::table_bytes(&[marked]);
        storage::write(&*self.storage, HostOffset(INCOMPATIBLE_AT), &bytes)?;
        storage::sync(&*self.storage)
    }

    /// Writes what has changed, so that it need not stay in memory.
    pub(super) fn relieve(&self) -> Result<(), Error> {
        self.commit_once(&mut self.commit.lock()).map(drop)
    }

    fn commit_once(&self, state: &mut CommitState) -> Result<Freed, Error> {
        self.check_intact()?;
        if let Some(first) = &state.failed {
            return Err(Error::new(
                ErrorKind::Io,
                format!("image failed earlier and takes no more commits: {first}"),
            ));
        }
        let (changes, commit) = self.tables.lock().begin_commit();
        let frees = commit.frees();
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
        result.map(|waits| match (frees, waits) {
            (_, true) => Freed::Part,
            (true, false) => Freed::All,
            (false, false) => Freed::Nothing,
        })
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
