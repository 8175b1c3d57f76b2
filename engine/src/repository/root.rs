//! The folder of a repository, held open. Every file is reached from it one component at a time and
//! never through a symbolic link, so that neither a name in a database nor a link on the disk leads out.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::limits::REPOSITORY_FILES_MAX;

/// Folders are for the group to look at, not to change.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
/// The same for files.
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);
/// How a folder on the way is opened.
const DIRECTORY_FLAGS: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::RDONLY)
    .union(OFlags::CLOEXEC);

/// An open folder below which all names are resolved. Names are relative, with `/`, without `.` and `..`.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    directory: OwnedFd,
}

impl Root {
    /// Opens the folder, making it (and what leads to it) where it is missing.
    pub(crate) fn open_or_create(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Self::open(path)
    }

    /// Opens an existing folder. Symbolic links that lead to the folder itself are the operator's and followed.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let directory = rustix::fs::openat(CWD, &path, DIRECTORY_FLAGS, Mode::empty())?;
        Ok(Self { path, directory })
    }

    /// The folder's absolute name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a regular file for reading.
    pub(crate) fn open_file(&self, name: &str) -> io::Result<File> {
        self.open_kind(name, |kind| kind == FileType::RegularFile)
    }

    /// Opens a regular file or a block device for reading.
    pub(crate) fn open_file_or_device(&self, name: &str) -> io::Result<File> {
        self.open_kind(name, |kind| {
            matches!(kind, FileType::RegularFile | FileType::BlockDevice)
        })
    }

    /// Makes a new file, and the folders that lead to it; fails where the name is taken.
    pub(crate) fn create_file(&self, name: &str) -> io::Result<File> {
        let (directory, last) = self.parent(name, true)?;
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(
            &directory, last, flags, FILE_MODE,
        )?))
    }

    /// Whether something has this name; a symbolic link counts by itself.
    pub(crate) fn exists(&self, name: &str) -> io::Result<bool> {
        let found = self.parent(name, false).and_then(|(directory, last)| {
            Ok(rustix::fs::statat(
                &directory,
                last,
                AtFlags::SYMLINK_NOFOLLOW,
            )?)
        });
        match found {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives a file another name in the same folder; fails where the new name is taken.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (directory, from_last) = self.parent(from, false)?;
        let (to_directory, to_last) = self.parent(to, false)?;
        let renamed = rustix::fs::renameat_with(
            &directory,
            from_last,
            &to_directory,
            to_last,
            RenameFlags::NOREPLACE,
        );
        match renamed {
            // Network filesystems may not know the flag. Only this process makes names here, so looking first is enough.
            Err(Errno::INVAL | Errno::NOSYS) => {
                if self.exists(to)? {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                Ok(rustix::fs::renameat(
                    &directory,
                    from_last,
                    &to_directory,
                    to_last,
                )?)
            }
            other => Ok(other?),
        }
    }

    /// Removes a file; a file that is not there is fine. Returns whether it was there.
    pub(crate) fn remove(&self, name: &str) -> io::Result<bool> {
        let removed = self.parent(name, false).and_then(|(directory, last)| {
            Ok(rustix::fs::unlinkat(&directory, last, AtFlags::empty())?)
        });
        match removed {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a folder if it is empty; anything else is left alone.
    pub(crate) fn remove_directory_if_empty(&self, name: &str) {
        if name.is_empty() {
            return;
        }
        if let Ok((directory, last)) = self.parent(name, false) {
            // A folder that is in use again is the normal case, not an error.
            let _ = rustix::fs::unlinkat(&directory, last, AtFlags::REMOVEDIR);
        }
    }

    /// Makes the names in a folder durable; the empty name is the root.
    pub(crate) fn sync_directory(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.walk(name, false)?)?)
    }

    /// Names of all regular files, relative to the root; does not follow links. Bounded.
    pub(crate) fn files(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            for entry in Dir::read_from(self.walk(&folder, false)?)? {
                let entry = entry?;
                let Ok(name) = entry.file_name().to_str() else {
                    continue;
                };
                if name == "." || name == ".." {
                    continue;
                }
                let path = if folder.is_empty() {
                    name.to_owned()
                } else {
                    format!("{folder}/{name}")
                };
                match self.file_type(&path, entry.file_type())? {
                    FileType::Directory => folders.push(path),
                    FileType::RegularFile => found.push(path),
                    _ => {}
                }
                if found.len() + folders.len() > REPOSITORY_FILES_MAX {
                    return Err(io::Error::other(format!(
                        "too many files in a repository, limit={REPOSITORY_FILES_MAX}"
                    )));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Whether the folder's name still leads to this folder, and not to another filesystem that was mounted over it or came
    /// back from under it.
    pub(crate) fn is_seen(&self) -> io::Result<bool> {
        let (named, open) = (
            rustix::fs::stat(&self.path)?,
            rustix::fs::fstat(&self.directory)?,
        );
        Ok((named.st_dev, named.st_ino) == (open.st_dev, open.st_ino))
    }

    /// Total and available bytes of the filesystem; available is what an ordinary user may take.
    pub(crate) fn space(&self) -> io::Result<Space> {
        let facts = rustix::fs::fstatvfs(&self.directory)?;
        Ok(Space {
            total_bytes: facts.f_blocks.saturating_mul(facts.f_frsize),
            available_bytes: facts.f_bavail.saturating_mul(facts.f_frsize),
        })
    }

    /// Some filesystems do not tell the type while listing.
    fn file_type(&self, path: &str, told: FileType) -> io::Result<FileType> {
        if told != FileType::Unknown {
            return Ok(told);
        }
        let (directory, last) = self.parent(path, false)?;
        let facts = rustix::fs::statat(&directory, last, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileType::from_raw_mode(facts.st_mode))
    }

    fn open_kind(&self, name: &str, wanted: impl Fn(FileType) -> bool) -> io::Result<File> {
        let (directory, last) = self.parent(name, false)?;
        let check = |facts: rustix::fs::Stat| {
            if wanted(FileType::from_raw_mode(facts.st_mode)) {
                return Ok(());
            }
            let text = "not a file of the kind that images are";
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        };
        // Opening a device may do something: look first, and again at what was opened.
        check(rustix::fs::statat(
            &directory,
            last,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)?;
        // A pipe planted under an image's name must not block the opener.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&directory, last, flags, Mode::empty())?;
        check(rustix::fs::fstat(&file)?)?;
        Ok(File::from(file))
    }

    /// The folder that holds `name`, and the last component.
    fn parent<'a>(&self, name: &'a str, make: bool) -> io::Result<(OwnedFd, &'a str)> {
        let (directory, last) = name.rsplit_once('/').unwrap_or(("", name));
        if last.is_empty() || last == "." || last == ".." {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a file name",
            ));
        }
        Ok((self.walk(directory, make)?, last))
    }

    /// Opens a folder below the root, one component at a time.
    fn walk(&self, directory: &str, make: bool) -> io::Result<OwnedFd> {
        let mut at = rustix::io::fcntl_dupfd_cloexec(self.directory.as_fd(), 0)?;
        for part in directory.split('/').filter(|part| !part.is_empty()) {
            if part == "." || part == ".." {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "not a folder name",
                ));
            }
            let opened = rustix::fs::openat(&at, part, DIRECTORY_FLAGS, Mode::empty());
            at = match opened {
                Err(Errno::NOENT) if make => {
                    match rustix::fs::mkdirat(&at, part, DIRECTORY_MODE) {
                        Ok(()) => rustix::fs::fsync(&at)?,
                        Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    rustix::fs::openat(&at, part, DIRECTORY_FLAGS, Mode::empty())?
                }
                other => other?,
            };
        }
        Ok(at)
    }
}

/// What the filesystem under a repository holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) total_bytes: u64,
    pub(crate) available_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn root() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open_or_create(&folder.path().join("repo")).unwrap();
        (folder, root)
    }

    #[test]
    fn new_files_get_their_folders_and_modes_and_are_never_overwritten() {
        let (_folder, root) = root();
        let file = root.create_file("ctx/disk-0/a.qcow2.partial").unwrap();
        assert_eq!(
            file.metadata().unwrap().permissions().mode() & 0o777 & !0o022,
            0o644 & !0o022
        );
        let again = root.create_file("ctx/disk-0/a.qcow2.partial").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(root.files().unwrap(), ["ctx/disk-0/a.qcow2.partial"]);
    }

    #[test]
    fn a_rename_never_replaces() {
        let (_folder, root) = root();
        root.create_file("a").unwrap();
        root.create_file("b").unwrap();
        assert_eq!(
            root.rename("a", "b").unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        root.rename("a", "c").unwrap();
        assert_eq!(root.files().unwrap(), ["b", "c"]);
        root.sync_directory("").unwrap();
    }

    #[test]
    fn links_lead_nowhere() {
        let (folder, root) = root();
        std::fs::create_dir(folder.path().join("outside")).unwrap();
        std::fs::write(folder.path().join("outside/secret"), "x").unwrap();
        symlink(folder.path().join("outside"), root.path().join("inside")).unwrap();
        symlink(
            folder.path().join("outside/secret"),
            root.path().join("link"),
        )
        .unwrap();
        assert!(root.open_file("inside/secret").is_err());
        assert!(root.open_file("link").is_err());
        assert!(root.create_file("inside/new").is_err());
        assert!(root.remove("inside/secret").is_err());
        assert!(root.files().unwrap().is_empty());
        assert!(root.open_file("../outside/secret").is_err());
    }

    #[test]
    fn pipes_and_folders_are_not_images() {
        let (_folder, root) = root();
        rustix::fs::mknodat(CWD, root.path().join("pipe"), FileType::Fifo, FILE_MODE, 0).unwrap();
        std::fs::create_dir(root.path().join("folder")).unwrap();
        assert!(root.open_file("pipe").is_err());
        assert!(root.open_file("folder").is_err());
    }

    #[test]
    fn removing_twice_is_fine() {
        let (_folder, root) = root();
        root.create_file("x/y/a").unwrap();
        assert!(root.remove("x/y/a").unwrap());
        assert!(!root.remove("x/y/a").unwrap());
        assert!(!root.remove("no/such/folder").unwrap());
        root.remove_directory_if_empty("x/y");
        assert!(!root.exists("x/y").unwrap());
        assert!(root.space().unwrap().total_bytes > 0);
    }
}
