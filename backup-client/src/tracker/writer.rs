//! Writing a state beside the valid one, and putting it in place afterwards.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::format::{BlockHash, StateHeader};
use crate::limits::WINDOW_BYTES;

/// A state in the making: a temporary file that goes away unless it is committed.
#[derive(Debug)]
pub(crate) struct StateWriter {
    out: BufWriter<File>,
    checksum: blake3::Hasher,
    missing: u64,
    pending: PendingState,
}

impl StateWriter {
    /// `path` is where the state will be; the temporary file lies beside it.
    pub(super) fn create(path: PathBuf, header: &StateHeader) -> io::Result<Self> {
        let head = header.encode().map_err(io::Error::other)?;
        let mut temporary = path.clone().into_os_string();
        temporary.push(".partial");
        let temporary = PathBuf::from(temporary);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)?;
        let mut writer = Self {
            out: BufWriter::with_capacity(WINDOW_BYTES, file),
            checksum: blake3::Hasher::new(),
            missing: header.block_count(),
            pending: PendingState {
                temporary: Some(temporary),
                path,
            },
        };
        writer.append(&head)?;
        Ok(writer)
    }

    /// Appends the hash of the next block.
    ///
    /// # Errors
    /// Any error of the file; more hashes than blocks.
    pub(crate) fn push(&mut self, hash: &BlockHash) -> io::Result<()> {
        self.missing = self
            .missing
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("more hashes than blocks"))?;
        self.append(hash)
    }

    /// Seals the file and waits until it is durable. It becomes the state by [`PendingState::commit`].
    ///
    /// # Errors
    /// Any error of the file; fewer hashes than blocks.
    pub(crate) fn finish(mut self) -> io::Result<PendingState> {
        if self.missing != 0 {
            return Err(io::Error::other(format!(
                "fewer hashes than blocks missing={}",
                self.missing
            )));
        }
        let trailer = self.checksum.finalize();
        self.out.write_all(trailer.as_bytes())?;
        let file = self
            .out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(self.pending)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.checksum.update(bytes);
        self.out.write_all(bytes)
    }
}

/// A durable state that is not in force yet. Dropping it removes it and keeps the state before.
#[derive(Debug)]
pub(crate) struct PendingState {
    temporary: Option<PathBuf>,
    path: PathBuf,
}

impl PendingState {
    /// Replaces the state in one step that survives a crash.
    ///
    /// # Errors
    /// Any error of the directory; the state before is then still in force.
    pub(crate) fn commit(mut self) -> io::Result<()> {
        let Some(temporary) = &self.temporary else {
            return Ok(());
        };
        std::fs::rename(temporary, &self.path)?;
        self.temporary = None;
        sync_directory_of(&self.path)
    }
}

impl Drop for PendingState {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // A file that stays is overwritten by the next run.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
