//! A file in memory, for tests and small images.

use crate::format::geometry::{to_u64, to_usize};
use crate::storage::Storage;
use crate::sync::RwLock;

/// A file in memory.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    bytes: RwLock<Vec<u8>>,
}

impl MemoryStorage {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file with content.
    pub fn with_bytes(bytes: Vec<u8>) -> Self {
        Self {
            bytes: RwLock::new(bytes),
        }
    }

    /// A copy of the content.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.read().clone()
    }
}

/// The end of a range in memory, or the error a file would give.
pub(super) fn end(offset: u64, len: usize) -> std::io::Result<usize> {
    offset
        .checked_add(to_u64(len))
        .filter(|end| *end < 1 << 48)
        .map(to_usize)
        .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::FileTooLarge))
}

pub(super) fn read(bytes: &[u8], offset: u64, into: &mut [u8]) -> std::io::Result<()> {
    let end = end(offset, into.len())?;
    let Some(found) = bytes.get(to_usize(offset)..end) else {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    };
    into.copy_from_slice(found);
    Ok(())
}

pub(super) fn write(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) -> std::io::Result<()> {
    let end = end(offset, data.len())?;
    if data.is_empty() {
        return Ok(());
    }
    if end > bytes.len() {
        bytes.resize(end, 0);
    }
    bytes[to_usize(offset)..end].copy_from_slice(data);
    Ok(())
}

impl Storage for MemoryStorage {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        read(&self.bytes.read(), offset, into)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        write(&mut self.bytes.write(), offset, data)
    }

    fn len_bytes(&self) -> std::io::Result<u64> {
        Ok(to_u64(self.bytes.read().len()))
    }

    fn set_len(&self, len_bytes: u64) -> std::io::Result<()> {
        let len = end(len_bytes, 0)?;
        self.bytes.write().resize(len, 0);
        Ok(())
    }

    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn start_writeback(&self, _offset: u64, _len_bytes: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_the_meaning_of_the_trait() {
        crate::storage::suite::run(MemoryStorage::new);
    }
}
