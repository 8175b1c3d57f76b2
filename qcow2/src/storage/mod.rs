//! The only IO of this crate: a trait, its implementations, and one suite of its meaning.

mod faulty;
mod file;
mod memory;
pub mod suite;

use crate::error::Error;
use crate::format::geometry::{HostOffset, to_u64, to_usize};

pub use faulty::FaultyStorage;
pub use file::FileStorage;
pub use memory::MemoryStorage;

/// Positional IO on one file. Blocking: callers decide which thread waits. Object safe, shared by
/// `Arc<dyn Storage>`; all methods may be called from many threads at once.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// Fills `into` from `offset`; reaching the end early is `UnexpectedEof`.
    ///
    /// # Errors
    /// What the operating system reports.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()>;

    /// Writes all of `data` at `offset`, growing the file where needed; a gap reads as zero.
    ///
    /// # Errors
    /// What the operating system reports.
    fn write_at(&self, offset: u64, data: &[u8]) -> std::io::Result<()>;

    /// Bytes in the file.
    ///
    /// # Errors
    /// What the operating system reports.
    fn len_bytes(&self) -> std::io::Result<u64>;

    /// Cuts the file, or grows it with zeroes.
    ///
    /// # Errors
    /// What the operating system reports.
    fn set_len(&self, len_bytes: u64) -> std::io::Result<()>;

    /// Returns when everything written before the call is durable (fdatasync).
    ///
    /// # Errors
    /// What the operating system reports; what was written before may be lost then.
    fn sync(&self) -> std::io::Result<()>;

    /// A hint: begin to write this range back now, so that a later `sync` is short.
    fn start_writeback(&self, offset: u64, len_bytes: u64);
}

pub(crate) fn read(storage: &dyn Storage, at: HostOffset, into: &mut [u8]) -> Result<(), Error> {
    storage.read_at(at.0, into).map_err(|error| {
        Error::io(
            format!(
                "image cannot be read: offset={:#x} len={}",
                at.0,
                into.len()
            ),
            error,
        )
    })
}

/// Reads and takes what lies beyond the end of the file as zeroes: writers may leave the last cluster short.
/// A range that begins beyond the end is an error all the same.
pub(crate) fn read_padded(
    storage: &dyn Storage,
    at: HostOffset,
    into: &mut [u8],
) -> Result<(), Error> {
    match storage.read_at(at.0, into) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
        result => {
            return result.map_err(|error| {
                Error::io(
                    format!(
                        "image cannot be read: offset={:#x} len={}",
                        at.0,
                        into.len()
                    ),
                    error,
                )
            });
        }
    }
    let len = len(storage)?;
    if at.0 >= len {
        return Err(crate::error::corrupt(format!(
            "image refers to bytes beyond its end: offset={:#x} file_size={len}",
            at.0
        )));
    }
    let present = to_usize((len - at.0).min(to_u64(into.len())));
    into[present..].fill(0);
    read(storage, at, &mut into[..present])
}

pub(crate) fn write(storage: &dyn Storage, at: HostOffset, data: &[u8]) -> Result<(), Error> {
    storage.write_at(at.0, data).map_err(|error| {
        Error::io(
            format!(
                "image cannot be written: offset={:#x} len={}",
                at.0,
                data.len()
            ),
            error,
        )
    })
}

pub(crate) fn sync(storage: &dyn Storage) -> Result<(), Error> {
    storage
        .sync()
        .map_err(|error| Error::io("image cannot be made durable", error))
}

pub(crate) fn len(storage: &dyn Storage) -> Result<u64, Error> {
    storage
        .len_bytes()
        .map_err(|error| Error::io("length of the image cannot be read", error))
}
