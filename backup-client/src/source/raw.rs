//! Raw files and block devices.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;

use super::spec::open_regular_or_block;
use super::{Run, Source, Unchanged};
use crate::{Error, ErrorKind};

/// A file or device whose bytes are the disk. Its position is used for seeks only, never for reads.
#[derive(Debug)]
pub(super) struct RawSource {
    label: String,
    watched: WatchedFile,
    remarks: Vec<String>,
}

impl RawSource {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let watched = WatchedFile::new(open_regular_or_block(path)?)
            .map_err(|error| Error::because(ErrorKind::Source, "cannot tell its size", error))?;
        if watched.len_bytes == 0 {
            return Err(Error::new(ErrorKind::Source, "it is empty"));
        }
        // A hint only: the backup works without it.
        let _ = fadvise(&watched.file, 0, None, Advice::Sequential);
        Ok(Self {
            label: path.display().to_string(),
            watched,
            remarks: Vec::new(),
        })
    }

    pub(super) fn with_remark(mut self, remark: &str) -> Self {
        self.remarks.push(remark.to_owned());
        self
    }
}

impl Source for RawSource {
    fn label(&self) -> &str {
        &self.label
    }

    fn size_bytes(&self) -> u64 {
        self.watched.len_bytes
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.watched.file.read_exact_at(into, offset)
    }

    fn run_at(&self, offset: u64) -> io::Result<Run> {
        let size = self.watched.len_bytes;
        let run = |end: u64, reads_zero| Run {
            len_bytes: end.min(size).saturating_sub(offset),
            reads_zero,
        };
        match seek(&self.watched.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok(run(data, true)),
            Ok(_) => match seek(&self.watched.file, SeekFrom::Hole(offset)) {
                Ok(hole) if hole > offset => Ok(run(hole, false)),
                // The file was punched or cut between the two calls; reading tells.
                _ => Ok(run(size, false)),
            },
            // No data up to the end.
            Err(Errno::NXIO) => Ok(run(size, true)),
            // Block devices and some filesystems do not know holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(run(size, false)),
            Err(error) => Err(error.into()),
        }
    }

    fn check_unchanged(&self) -> io::Result<Unchanged> {
        self.watched.check_unchanged()
    }

    fn remarks(&self) -> Vec<String> {
        self.remarks.clone()
    }
}

/// An open file together with what it said about itself at opening.
#[derive(Debug)]
pub(super) struct WatchedFile {
    pub(super) file: File,
    pub(super) len_bytes: u64,
    modified: Option<SystemTime>,
}

impl WatchedFile {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let (len_bytes, modified) = facts(&file)?;
        Ok(Self {
            file,
            len_bytes,
            modified,
        })
    }

    pub(super) fn check_unchanged(&self) -> io::Result<Unchanged> {
        let (len_bytes, modified) = facts(&self.file)?;
        if len_bytes != self.len_bytes {
            return Err(io::Error::other(format!(
                "its size changed while it was read before={} after={len_bytes}",
                self.len_bytes
            )));
        }
        Ok(if modified == self.modified {
            Unchanged::Quiet
        } else {
            Unchanged::Modified
        })
    }
}

/// Size, and for a regular file the time of its last change.
fn facts(file: &File) -> io::Result<(u64, Option<SystemTime>)> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok((metadata.len(), Some(metadata.modified()?)))
    } else {
        // A block device has no length in its metadata; its end is found by seeking there.
        Ok((seek(file, SeekFrom::End(0))?, None))
    }
}
