//! A file of the operating system.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};

use crate::storage::Storage;

/// A file of the operating system.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
}

impl FileStorage {
    /// Takes an open file; the caller decided where it lives and how it was opened. Positions are never used.
    pub fn new(file: File) -> Self {
        Self { file }
    }
}

impl Storage for FileStorage {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn len_bytes(&self) -> std::io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len_bytes: u64) -> std::io::Result<()> {
        self.file.set_len(len_bytes)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }

    fn start_writeback(&self, offset: u64, len_bytes: u64) {
        // On Linux DONTNEED starts the writeback of dirty pages at once and returns without waiting. It is advice:
        // a filesystem that does not take it loses speed, not data, so that the result says nothing to us.
        if let Some(len) = NonZeroU64::new(len_bytes) {
            let _ = fadvise(&self.file, offset, Some(len), Advice::DontNeed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_the_meaning_of_the_trait() {
        crate::storage::suite::run(|| FileStorage::new(tempfile::tempfile().unwrap()));
    }
}
