//! One hub per data folder: a second one would take the running jobs of the first for leftovers.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use super::error::file_error;
use crate::error::{Error, ErrorKind};

/// Holds the folder until it is dropped.
#[derive(Debug)]
pub(crate) struct DataLock {
    file: File,
}

impl Drop for DataLock {
    fn drop(&mut self) {
        // Closing would not be enough: a program that is being started at this moment holds the file, too, until it is
        // executed. Where unlocking fails, closing must do.
        let _ = self.file.unlock();
    }
}

impl DataLock {
    /// Makes the folder where it is missing, and takes it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] while another hub has it.
    pub(crate) fn take(data_dir: &Path) -> Result<Self, Error> {
        let details = || format!("path={}", data_dir.display());
        let what = "failed to open data folder";
        std::fs::create_dir_all(data_dir).map_err(|error| file_error(what, details(), error))?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(data_dir.join("hub.lock"))
            .map_err(|error| file_error(what, details(), error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => Err(Error::new(
                ErrorKind::Unavailable,
                "data folder belongs to another hub",
                details(),
            )),
            Err(TryLockError::Error(error)) => Err(file_error(what, details(), error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_hub() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataLock::take(folder.path()).unwrap();
        assert_eq!(
            DataLock::take(folder.path()).unwrap_err().kind,
            ErrorKind::Unavailable
        );
        // What a program that is being started has of it until it is executed keeps nobody out.
        let inherited = first.file.try_clone().unwrap();
        drop(first);
        DataLock::take(folder.path()).unwrap();
        drop(inherited);
    }
}
