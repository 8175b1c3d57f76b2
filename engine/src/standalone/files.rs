//! New files that appear only when they are whole, and raw files as devices.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nbd_server::Extent;
use rustix::fs::{CWD, FallocateFlags, RenameFlags};
use rustix::io::Errno;

use super::source::open_image_file;
use crate::error::Error;
use crate::export::{Device, DeviceError};
use crate::repository::file_error;

/// A file that is being made under a temporary name beside its target; dropped unfinished, it disappears.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    finished: bool,
}

impl NewFile {
    /// Starts a new file.
    ///
    /// # Errors
    ///
    /// `Conflict` if `target` exists, or another run is making it.
    pub(crate) fn create(target: &Path) -> Result<Self, Error> {
        let failed = |error| {
            file_error(
                "failed to create file",
                format!("path={}", target.display()),
                error,
            )
        };
        if target.symlink_metadata().is_ok() {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        let name = target
            .file_name()
            .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let mut temporary_name = std::ffi::OsString::from(".");
        temporary_name.push(name);
        temporary_name.push(".partial");
        let temporary = target.with_file_name(temporary_name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&temporary)
            .map_err(failed)?;
        Ok(Self {
            file,
            temporary,
            target: target.to_owned(),
            finished: false,
        })
    }

    /// The open file.
    pub(crate) fn file(&self) -> Result<File, Error> {
        self.file.try_clone().map_err(|error| self.failed(error))
    }

    /// Makes the file durable and gives it its name; an existing file is never replaced.
    pub(crate) fn finish(mut self) -> Result<(), Error> {
        self.publish().map_err(|error| self.failed(error))?;
        self.finished = true;
        Ok(())
    }

    fn publish(&self) -> io::Result<()> {
        self.file.sync_all()?;
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(CWD, &self.temporary, CWD, &self.target, flags) {
            // Network filesystems may not know the flag; a hard link does not replace either.
            Err(Errno::INVAL | Errno::NOSYS) => {
                std::fs::hard_link(&self.temporary, &self.target)?;
                std::fs::remove_file(&self.temporary)?;
            }
            other => other?,
        }
        let directory = self
            .target
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn failed(&self, error: io::Error) -> Error {
        file_error(
            "failed to write file",
            format!("path={}", self.target.display()),
            error,
        )
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.finished {
            // It may be gone already; there is nobody to tell otherwise.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// A raw file or a block device.
#[derive(Debug)]
pub(crate) struct RawFile {
    file: File,
    len_bytes: u64,
    read_only: bool,
}

impl RawFile {
    /// Opens an existing one.
    pub(crate) fn open(path: &Path, read_only: bool) -> Result<Self, Error> {
        let file = open_image_file(path, read_only).map_err(|error| {
            file_error(
                "failed to open raw file",
                format!("path={}", path.display()),
                error,
            )
        })?;
        Self::take(file, read_only)
    }

    /// Takes one that is open already.
    pub(crate) fn take(mut file: File, read_only: bool) -> Result<Self, Error> {
        let len_bytes = file
            .seek(SeekFrom::End(0))
            .map_err(|error| file_error("failed to size raw file", String::new(), error))?;
        Ok(Self {
            file,
            len_bytes,
            read_only,
        })
    }

    /// Takes a new, empty file and gives it its size; it is one hole.
    pub(crate) fn of(file: File, len_bytes: u64) -> Result<Self, Error> {
        file.set_len(len_bytes).map_err(|error| {
            file_error(
                "failed to size file",
                format!("len_bytes={len_bytes}"),
                error,
            )
        })?;
        Ok(Self {
            file,
            len_bytes,
            read_only: false,
        })
    }

    /// Size of the device.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Where the next data and the next hole begin, at or after `offset`.
    fn seek_run(&self, offset: u64) -> Result<(bool, u64), Errno> {
        use rustix::fs::SeekFrom as Seek;
        match rustix::fs::seek(&self.file, Seek::Data(offset)) {
            Ok(data) if data > offset => Ok((true, data.min(self.len_bytes))),
            Ok(_) => {
                let hole = rustix::fs::seek(&self.file, Seek::Hole(offset))?;
                Ok((false, hole.min(self.len_bytes)))
            }
            // No data up to the end.
            Err(Errno::NXIO) => Ok((true, self.len_bytes)),
            Err(error) => Err(error),
        }
    }

    fn write_zeroes(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let end = offset + len_bytes;
        let mut at = offset;
        while at < end {
            let left = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(ZEROES.len());
            self.file.write_all_at(&ZEROES[..left], at)?;
            at += left as u64;
        }
        Ok(())
    }
}

impl Device for RawFile {
    fn size_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        Ok(self.file.read_exact_at(into, offset)?)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        Ok(self.file.write_all_at(data, offset)?)
    }

    fn zero(&self, offset: u64, len_bytes: u64, keep_allocation: bool) -> Result<(), DeviceError> {
        let how = if keep_allocation {
            FallocateFlags::ZERO_RANGE
        } else {
            FallocateFlags::PUNCH_HOLE
        };
        match rustix::fs::fallocate(
            &self.file,
            how | FallocateFlags::KEEP_SIZE,
            offset,
            len_bytes,
        ) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => {
                Ok(self.write_zeroes(offset, len_bytes)?)
            }
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(self.file.sync_data()?)
    }

    fn extents(&self, offset: u64, len_bytes: u64) -> Result<Vec<Extent>, DeviceError> {
        let (hole, end) = match self.seek_run(offset) {
            Ok(run) => run,
            // A device that does not tell: everything may be data.
            Err(Errno::INVAL) => (false, self.len_bytes),
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let len_bytes = len_bytes.min(end.saturating_sub(offset)).max(1);
        Ok(vec![Extent::flat(len_bytes, hole, hole)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_new_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("disk.raw");
        drop(NewFile::create(&target).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let new = NewFile::create(&target).unwrap();
        RawFile::of(new.file().unwrap(), 4096).unwrap();
        assert!(!target.exists());
        new.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), [0; 4096]);
        assert_eq!(
            NewFile::create(&target).unwrap_err().kind,
            ErrorKind::Conflict
        );
    }

    #[test]
    fn a_raw_file_tells_its_holes() {
        let folder = tempfile::tempdir().unwrap();
        let new = NewFile::create(&folder.path().join("disk.raw")).unwrap();
        let raw = RawFile::of(new.file().unwrap(), 1 << 20).unwrap();
        raw.write(256 << 10, &[7; 65536]).unwrap();
        let mut data = Vec::new();
        let mut at = 0;
        while at < raw.len_bytes() {
            let run = raw.extents(at, raw.len_bytes() - at).unwrap()[0];
            if !run.reads_zero {
                data.push((at, run.len_bytes));
            }
            at += run.len_bytes;
        }
        assert_eq!(data, [(256 << 10, 65536)]);
        raw.zero(256 << 10, 65536, false).unwrap();
        let mut back = vec![1; 65536];
        raw.read(256 << 10, &mut back).unwrap();
        assert!(back.iter().all(|byte| *byte == 0));
        raw.zero(0, 100, true).unwrap();
    }
}
