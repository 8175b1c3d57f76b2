//! The life of an image file: created partial, sealed, published, or discarded.
//!
//! ```text
//! create ──▶ .partial ──seal──▶ .partial, durable, with its manifest ──publish──▶ final names, durable
//!                └───────────────────────discard──────────────────────────────────────┘
//! ```
//! Every step may be repeated: recovery runs the same ones.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use qcow2::{
    BackingFormat, BackingName, Chain, CreateOptions, Elision, FileStorage, Image, ImageInfo, Seal,
    Storage,
};

use super::error::{file_error, image_error};
use super::layout::ImagePath;
use super::manifest::Manifest;
use super::mounts::expect_mounted;
use super::opener::RepositoryOpener;
use super::root::{Root, Space};
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind};
use crate::id::{BackupId, DiskIndex, VmContextId};
use crate::limits::{IMAGE_CLUSTER_BYTES, IMAGES_PER_SECOND_MAX};
use crate::model::Mount;

/// Puts something between an image and its file; tests make it fail.
pub(crate) type StorageWrapper = dyn Fn(Arc<dyn Storage>) -> Arc<dyn Storage> + Send + Sync;

/// Image files below one folder. All methods block.
pub(crate) struct Repository {
    root: Root,
    wrapper: Option<Arc<StorageWrapper>>,
    /// The share that the folder is; nothing for a folder of this machine.
    share: Option<Mount>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// Where an image stands, and what its header says about the point it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImageState {
    /// Neither a partial nor a published file is there.
    Missing,
    /// Still partial; sealed if a seal is given.
    Partial(Option<Seal>),
    /// Under its final name.
    Published(Option<Seal>),
}

/// Which files of an image are removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Discard {
    /// Those that were never published. A published file under the row of a running backup is not ours to explain: the
    /// database may be older than the files.
    Partial,
    /// All of them; a published image only if its seal says that it is of this backup.
    Everything(BackupId),
    /// Those of a published image, unless its seal says that it is of another backup. One without a seal is a legacy hub's,
    /// or damaged; both can be deleted.
    Deleted(BackupId),
}

impl Repository {
    /// Opens the folder, making it where it is missing.
    pub(crate) fn open_or_create(
        path: &Path,
        wrapper: Option<Arc<StorageWrapper>>,
    ) -> Result<Self, Error> {
        let root = Root::open_or_create(path).map_err(|error| {
            file_error(
                "failed to open repository",
                format!("path={}", path.display()),
                error,
            )
        })?;
        Ok(Self {
            root,
            wrapper,
            share: None,
        })
    }

    /// Opens the folder that a mounted share is. Nothing is made: below a share that is not mounted lies the hub's own disk.
    ///
    /// # Errors
    ///
    /// `Unavailable` unless the share is mounted.
    pub(crate) fn open_on(
        share: Mount,
        wrapper: Option<Arc<StorageWrapper>>,
    ) -> Result<Self, Error> {
        expect_mounted(&share)?;
        let path = Path::new(&share.mount_point);
        let root = Root::open(path).map_err(|error| {
            let details = format!("path={}", path.display());
            file_error("failed to open repository", details, error)
        })?;
        let repository = Self {
            root,
            wrapper,
            share: Some(share),
        };
        repository.expect_share()?;
        Ok(repository)
    }

    /// Fails unless the open folder is the share that is mounted now. Called before whatever makes or names a file.
    ///
    /// # Errors
    ///
    /// `Unavailable`.
    pub(crate) fn expect_share(&self) -> Result<(), Error> {
        let Some(share) = &self.share else {
            return Ok(());
        };
        expect_mounted(share)?;
        let is_seen = self.root.is_seen().map_err(|error| {
            let details = format!("path={}", self.path().display());
            file_error("failed to look at repository", details, error)
        })?;
        match is_seen {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Unavailable,
                "share was mounted anew",
                format!("mount_point={}", share.mount_point),
            )),
        }
    }

    /// Makes a file and removes it: whether the hub may write here.
    ///
    /// # Errors
    ///
    /// What the filesystem says.
    pub(crate) fn try_writing(&self) -> Result<(), Error> {
        self.expect_share()?;
        // The name of the legacy hub's own test, so that what a crash leaves is known.
        let name = ".sendense_test";
        let details = || format!("path={}", self.path().display());
        self.root
            .remove(name)
            .and_then(|_| self.root.create_file(name))
            .and_then(|_| self.root.remove(name))
            .map(drop)
            .map_err(|error| file_error("repository is not writable", details(), error))
    }

    /// The folder's absolute name.
    pub(crate) fn path(&self) -> &Path {
        self.root.path()
    }

    /// The absolute name of a published image, for people and tools.
    pub(crate) fn absolute(&self, image: &ImagePath) -> String {
        self.root
            .path()
            .join(image.published())
            .display()
            .to_string()
    }

    /// Reads a recorded image name: relative to the repository, or absolute inside it.
    pub(crate) fn parse(&self, recorded: &str) -> Result<ImagePath, Error> {
        ImagePath::parse(self.root.path(), recorded)
            .map_err(|error| Error::corrupt("recorded image path is not usable", error.to_string()))
    }

    /// A name for a new image that neither a published nor a partial file has.
    pub(crate) fn free_image_path(
        &self,
        vm_context: &VmContextId,
        vm_name: &str,
        disk: DiskIndex,
        at: Timestamp,
    ) -> Result<ImagePath, Error> {
        for attempt in 0..IMAGES_PER_SECOND_MAX {
            let suffix = (attempt > 0).then_some(attempt);
            let image = ImagePath::new(vm_context, vm_name, disk, at, suffix);
            let taken = self
                .root
                .exists(image.published())
                .and_then(|published| Ok(published || self.root.exists(&image.partial())?));
            match taken {
                Ok(false) => return Ok(image),
                Ok(true) => {}
                Err(error) => {
                    let details = format!("image={}", image.published());
                    return Err(file_error(
                        "failed to look for an image name",
                        details,
                        error,
                    ));
                }
            }
        }
        Err(Error::conflict(
            "no free image name",
            format!("vm_name={vm_name} disk={disk} limit={IMAGES_PER_SECOND_MAX}"),
        ))
    }

    /// Makes an empty partial image, on top of a published one if `parent` is given, and the partial sidecar that takes
    /// its hashes. The files are locked against every other process that asks with `flock`, for as long as the image is
    /// open.
    pub(crate) fn create_image(
        &self,
        image: &ImagePath,
        virtual_size_bytes: u64,
        parent: Option<&ImagePath>,
    ) -> Result<Arc<Image>, Error> {
        self.expect_share()?;
        let what = "failed to create image";
        let details = || format!("image={}", image.partial());
        let below = parent
            .map(|parent| self.open_parent(parent).map(Arc::new))
            .transpose()?;
        let create = |name: &str| {
            self.create_locked(name)
                .map_err(|error| file_error(what, format!("file={name}"), error))
        };
        let storage = create(&image.partial())?;
        let hashes = create(&image.hashes_partial())?;
        let options = CreateOptions {
            cluster_size_bytes: IMAGE_CLUSTER_BYTES,
            backing: parent.map(|parent| BackingName {
                name: image.backing_name_of(parent),
                format: Some(BackingFormat::Qcow2),
            }),
            ..CreateOptions::new(virtual_size_bytes)
        };
        let created = Image::create(storage, &options, below)
            // Published images do not change, so that what they have need not be stored again.
            .map(|image| image.with_elision(Elision::Hash))
            .and_then(|image| image.with_hashes(hashes))
            .map_err(|error| image_error(what, details(), error))?;
        Ok(Arc::new(created))
    }

    /// Makes a file that a backup writes.
    fn create_locked(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        let file = self.root.create_file(name)?;
        lock(&file)?;
        let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(file));
        Ok(match &self.wrapper {
            Some(wrapper) => wrapper(storage),
            None => storage,
        })
    }

    /// Makes an image complete and durable under its partial name, with its hashes, its seal and its manifest. The image
    /// takes no writes afterwards. `manifest` is asked after the seal, when the size of the file is final.
    pub(crate) fn seal_image(
        &self,
        path: &ImagePath,
        image: &Image,
        seal: &Seal,
        manifest: impl FnOnce(&ImageInfo) -> Manifest,
    ) -> Result<(), Error> {
        let what = "failed to seal image";
        let details = || format!("image={}", path.partial());
        image
            .flush()
            .map_err(|error| image_error(what, details(), error))?;
        image
            .seal(seal)
            .map_err(|error| image_error(what, details(), error))?;
        let text = manifest(&image.info()).to_json().map_err(|error| {
            Error::internal("failed to write manifest", details()).with_source(error)
        })?;
        self.write_durable(&path.manifest_partial(), &text)
            .and_then(|()| self.root.sync_directory(path.directory()))
            .map_err(|error| file_error(what, details(), error))
    }

    /// Gives a sealed image and what stands beside it their final names, durably. The image comes last: once it has its
    /// name, everything has, also after a loss of power. An image that is published already is fine.
    pub(crate) fn publish_image(&self, path: &ImagePath) -> Result<(), Error> {
        self.expect_share()?;
        let hashes = match self.image_state(path)? {
            ImageState::Partial(Some(seal)) if seal.hashes.is_some() => Needed::Always,
            // An image of an older hub, or one that is published: nothing is left to be done.
            _ => Needed::IfThere,
        };
        let (manifest, image) = (path.manifest(), path.published());
        self.refuse_taken_name(path)
            .and_then(|()| self.rename_once(&path.hashes_partial(), &path.hashes(), hashes))
            .and_then(|()| self.rename_once(&path.manifest_partial(), &manifest, Needed::Always))
            .and_then(|()| self.root.sync_directory(path.directory()))
            .and_then(|()| self.rename_once(&path.partial(), image, Needed::Always))
            .and_then(|()| self.root.sync_directory(path.directory()))
            .map_err(|error| file_error("failed to publish image", format!("image={image}"), error))
    }

    /// Whether the sidecar that the seal of an image names is there, partial or published; also if it names none.
    pub(crate) fn has_its_hashes(&self, path: &ImagePath, seal: &Seal) -> Result<bool, Error> {
        let exists = |name: String| {
            self.root.exists(&name).map_err(|error| {
                file_error("failed to look for hashes", format!("file={name}"), error)
            })
        };
        Ok(seal.hashes.is_none() || exists(path.hashes())? || exists(path.hashes_partial())?)
    }

    /// Removes files of an image, durably, and folders that are empty then. What is gone already is fine.
    pub(crate) fn discard_image(&self, path: &ImagePath, what: &Discard) -> Result<(), Error> {
        let partial = [
            path.partial(),
            path.manifest_partial(),
            path.hashes_partial(),
        ];
        let published = [path.published().to_owned(), path.manifest(), path.hashes()];
        let (partial, published) = match what {
            Discard::Partial => (&partial[..], &[][..]),
            Discard::Everything(backup) if self.is_of(path, backup)? => {
                (&partial[..], &published[..])
            }
            Discard::Everything(_) => (&partial[..], &[][..]),
            // What is partial under this name, if anything, is a new image's.
            Discard::Deleted(backup) if !self.is_of_another(path, backup)? => {
                (&[][..], &published[..])
            }
            Discard::Deleted(_) => (&[][..], &[][..]),
        };
        let mut removed = false;
        for name in partial.iter().chain(published) {
            removed |= self.root.remove(name).map_err(|error| {
                file_error("failed to remove image", format!("file={name}"), error)
            })?;
        }
        if removed {
            self.root
                .sync_directory(path.directory())
                .map_err(|error| {
                    file_error(
                        "failed to remove image",
                        format!("image={}", path.published()),
                        error,
                    )
                })?;
        }
        self.root.remove_directory_if_empty(path.directory());
        if let Some((vm_directory, _)) = path.directory().rsplit_once('/') {
            self.root.remove_directory_if_empty(vm_directory);
        }
        Ok(())
    }

    /// Whether nothing but files of `backup` has the published names of an image.
    fn is_of(&self, path: &ImagePath, backup: &BackupId) -> Result<bool, Error> {
        match self.image_state(path)? {
            ImageState::Published(Some(seal)) if seal.point_id == backup.as_str() => Ok(true),
            ImageState::Published(_) => {
                tracing::error!(image = path.published(), %backup, "kept an image that is not of this backup");
                Ok(false)
            }
            ImageState::Partial(_) | ImageState::Missing => Ok(true),
        }
    }

    /// Whether the published file is an image that says it is of another backup.
    fn is_of_another(&self, path: &ImagePath, backup: &BackupId) -> Result<bool, Error> {
        match self.image_state(path)? {
            ImageState::Published(Some(seal)) if seal.point_id != backup.as_str() => {
                tracing::error!(image = path.published(), %backup, "kept an image that is of another backup");
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Where an image stands on the disk.
    pub(crate) fn image_state(&self, path: &ImagePath) -> Result<ImageState, Error> {
        if let Some(file) = self.open_if_there(path.published())? {
            return Ok(ImageState::Published(self.seal_of(file, path.published())?));
        }
        if let Some(file) = self.open_if_there(&path.partial())? {
            return Ok(ImageState::Partial(self.seal_of(file, &path.partial())?));
        }
        Ok(ImageState::Missing)
    }

    /// Makes sure that a published image is the one of `backup`: its seal says so. Images of legacy hubs have no seal.
    pub(crate) fn expect_point(&self, path: &ImagePath, backup: &BackupId) -> Result<(), Error> {
        match self.image_state(path)? {
            ImageState::Published(Some(seal)) if seal.point_id != backup.as_str() => {
                Err(Error::corrupt(
                    "image belongs to another backup",
                    format!(
                        "image={} expected={backup} found={}",
                        path.published(),
                        seal.point_id
                    ),
                ))
            }
            ImageState::Published(_) => Ok(()),
            ImageState::Missing | ImageState::Partial(_) => Err(Error::corrupt(
                "image file is missing",
                format!("image={} backup_id={backup}", path.published()),
            )),
        }
    }

    /// Opens a published point: its image and everything below.
    pub(crate) fn open_chain(&self, path: &ImagePath) -> Result<Chain, Error> {
        self.open_with(path, &RepositoryOpener::new(&self.root))
    }

    /// As `open_chain`, with the hashes beside its images: what a new image on top is compared with.
    fn open_parent(&self, path: &ImagePath) -> Result<Chain, Error> {
        self.open_with(path, &RepositoryOpener::with_hashes(&self.root))
    }

    fn open_with(&self, path: &ImagePath, opener: &RepositoryOpener<'_>) -> Result<Chain, Error> {
        let what = "failed to open image";
        let details = || format!("image={}", path.published());
        let file = self
            .root
            .open_file(path.published())
            .map_err(|error| match error.kind() {
                // The catalog says that it is there.
                io::ErrorKind::NotFound => {
                    Error::corrupt("image file is missing", details()).with_source(error)
                }
                _ => file_error(what, details(), error),
            })?;
        let storage = Arc::new(FileStorage::new(file));
        Chain::open(storage, path.published(), BackingFormat::Qcow2, opener)
            .map_err(|error| image_error(what, details(), error))
    }

    /// Bytes that an image file takes on disk.
    pub(crate) fn allocated_bytes(&self, name: &str) -> Result<u64, Error> {
        let file = self.root.open_file(name);
        let facts = file.and_then(|file| file.metadata());
        let facts = facts.map_err(|error| {
            file_error("failed to look at image", format!("file={name}"), error)
        })?;
        Ok(std::os::unix::fs::MetadataExt::blocks(&facts).saturating_mul(BLOCK_BYTES))
    }

    /// Space of the filesystem below.
    pub(crate) fn space(&self) -> Result<Space, Error> {
        let path = || format!("path={}", self.path().display());
        self.root
            .space()
            .map_err(|error| file_error("failed to look at free space", path(), error))
    }

    /// The folder, for the sweep.
    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// The seal in the header of a file, or nothing if it is not a whole image (a crash while it was written).
    fn seal_of(&self, file: File, name: &str) -> Result<Option<Seal>, Error> {
        let opener = RepositoryOpener::new(&self.root);
        let storage = Arc::new(FileStorage::new(file));
        match Chain::open(storage, name, BackingFormat::Qcow2, &opener) {
            Ok(chain) => Ok(chain
                .layers()
                .into_iter()
                .next()
                .and_then(|(_, info)| info.seal)),
            Err(error) if error.kind() == qcow2::ErrorKind::Io => Err(image_error(
                "failed to read image",
                format!("file={name}"),
                error,
            )),
            Err(error) => {
                tracing::warn!(file = name, %error, "an image cannot be opened");
                Ok(None)
            }
        }
    }

    fn open_if_there(&self, name: &str) -> Result<Option<File>, Error> {
        match self.root.open_file(name) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_error(
                "failed to open image",
                format!("file={name}"),
                error,
            )),
        }
    }

    /// Fails if another file has the name that a partial image is to get; nothing has been renamed then.
    fn refuse_taken_name(&self, path: &ImagePath) -> io::Result<()> {
        if self.root.exists(&path.partial())? && self.root.exists(path.published())? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(())
    }

    /// Renames unless it has been done before.
    fn rename_once(&self, from: &str, to: &str, needed: Needed) -> io::Result<()> {
        if self.root.exists(from)? {
            return self.root.rename(from, to);
        }
        if needed == Needed::IfThere || self.root.exists(to)? {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("neither name exists, from={from} to={to}"),
        ))
    }

    /// Writes a small file of ours, replacing one that an earlier attempt left.
    fn write_durable(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.root.remove(name)?;
        let mut file = self.root.create_file(name)?;
        file.write_all(content)?;
        file.sync_all()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needed {
    Always,
    IfThere,
}

/// Unit of `st_blocks` (POSIX: sys/stat.h on Linux).
const BLOCK_BYTES: u64 = 512;

/// Takes the whole-file lock of `flock`, which lives as long as the open file. qemu's own byte-range locks do not see it;
/// a file that ends in `.partial` is not one that people hand to qemu.
fn lock(file: &File) -> io::Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(io::Error::other(
            "another process holds the lock on the file",
        )),
        // Some network filesystems know no locks; O_EXCL has already made the file ours.
        Err(std::fs::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
            Ok(())
        }
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}
