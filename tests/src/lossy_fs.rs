//! A filesystem in memory, mounted by FUSE: real programs and real files on it, and a disk below that loses, reorders
//! and tears what was not synced.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use qcow2::{FaultyStorage, Storage};

use crate::peers::missing;

/// Nothing is remembered by the kernel: each request reaches us.
const TTL: Duration = Duration::ZERO;
/// Files are numbered from here in the order in which they were made.
const FIRST_FILE: u64 = 2;

type Files = Arc<Mutex<BTreeMap<String, (u64, Arc<FaultyStorage>)>>>;

/// A mounted filesystem, one folder with files. Unmounted when dropped, also by a panic.
#[derive(Debug)]
pub struct LossyFs {
    files: Files,
    session: Option<BackgroundSession>,
}

impl LossyFs {
    /// Mounts it; where that cannot be, skips and fails as [`have`](crate::peers::have) does.
    ///
    /// # Panics
    /// In CI, when FUSE is missing.
    #[must_use]
    pub fn mount(folder: &Path) -> Option<Self> {
        let files = Files::default();
        let session = fuser::spawn_mount(Folder(files.clone()), folder, &Config::default());
        match session {
            Ok(session) => Some(Self {
                files,
                session: Some(session),
            }),
            Err(error) => {
                missing(&format!("FUSE (/dev/fuse, fusermount3; {error})"));
                None
            }
        }
    }

    /// What happened to a file so far, to be cut.
    ///
    /// # Panics
    /// When there is no such file.
    #[must_use]
    pub fn file(&self, name: &str) -> Arc<FaultyStorage> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files[name].1.clone()
    }
}

impl Drop for LossyFs {
    fn drop(&mut self) {
        // A panic within a panic would hide the first one.
        if let Some(session) = self.session.take()
            && let Err(error) = session.umount_and_join()
        {
            eprintln!("the lossy filesystem is left mounted: {error}");
        }
    }
}

/// What the kernel talks to.
struct Folder(Files);

impl Folder {
    fn named(&self, name: &OsStr) -> Option<(u64, Arc<FaultyStorage>)> {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(name.to_str()?).cloned()
    }

    fn numbered(&self, number: INodeNo) -> Option<Arc<FaultyStorage>> {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut files = files.values();
        let found = files.find(|(found, _)| *found == u64::from(number));
        found.map(|(_, file)| file.clone())
    }

    fn make(&self, name: &OsStr) -> Option<FileAttr> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = FIRST_FILE + files.len() as u64;
        let file = Arc::new(FaultyStorage::new());
        files.insert(name.to_str()?.to_owned(), (number, file));
        Some(attributes(number, FileType::RegularFile, 0))
    }
}

fn attributes(number: u64, kind: FileType, size: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0o777,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        flags: 0,
        blksize: 512,
    }
}

fn of_file(number: u64, file: &FaultyStorage) -> FileAttr {
    let size = file.len_bytes().unwrap_or(0);
    attributes(number, FileType::RegularFile, size)
}

impl Filesystem for Folder {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.named(name) {
            Some((number, file)) => reply.entry(&TTL, &of_file(number, &file), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.numbered(ino) {
            Some(file) => reply.attr(&TTL, &of_file(ino.into(), &file)),
            None => reply.attr(&TTL, &attributes(ino.into(), FileType::Directory, 0)),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Some(file) = self.numbered(ino) else {
            return reply.error(Errno::ENOENT);
        };
        if size.is_some_and(|size| file.set_len(size).is_err()) {
            return reply.error(Errno::EIO);
        }
        reply.attr(&TTL, &of_file(ino.into(), &file));
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.make(name) {
            Some(made) => {
                let direct = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&TTL, &made, Generation(0), FileHandle(0), direct);
            }
            None => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.numbered(ino) else {
            return reply.error(Errno::ENOENT);
        };
        let present = file.len_bytes().unwrap_or(0).saturating_sub(offset);
        let len = usize::try_from(present.min(size.into())).unwrap_or(0);
        let mut bytes = vec![0; len];
        match file.read_at(offset, &mut bytes) {
            _ if len == 0 => reply.data(&[]),
            Ok(()) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self
            .numbered(ino)
            .is_some_and(|file| file.write_at(offset, data).is_ok());
        match u32::try_from(data.len()) {
            Ok(len) if written => reply.written(len),
            _ => reply.error(Errno::EIO),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // The end of a file descriptor promises nothing.
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        match self.numbered(ino).map(|file| file.sync()) {
            Some(Ok(())) => reply.ok(),
            _ => reply.error(Errno::EIO),
        }
    }
}
