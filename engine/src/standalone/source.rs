//! Opens image files that somebody names: which format they have, and which backing files they may bring along.
//!
//! A guest decides what its raw disk contains, so content alone never makes a file a qcow2: that would let the guest name
//! files of the host as backing files.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow2::{BackingFormat, BackingName, Chain, FileStorage, OpenedBacking, Opener, Storage};

use crate::error::Error;
use crate::repository::{Root, file_error, image_error, is_protocol};

/// How the bytes of an image file are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// The bytes of the disk, one after the other.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

/// An image file as it is named on a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Its format. Absent: qcow2 if name and content say so, raw if neither does; anything in between is refused.
    pub format: Option<ImageFormat>,
    /// Further folders below which backing files may lie; the image's own folder always counts.
    pub roots: Vec<PathBuf>,
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self {
            path,
            format: None,
            roots: Vec::new(),
        }
    }
}

impl From<&Source> for Source {
    fn from(source: &Source) -> Self {
        source.clone()
    }
}

impl From<&Path> for Source {
    fn from(path: &Path) -> Self {
        path.to_owned().into()
    }
}

impl From<&PathBuf> for Source {
    fn from(path: &PathBuf) -> Self {
        path.clone().into()
    }
}

/// The bytes that every qcow2 file begins with (qcow2 specification, "Header").
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// An opened image file, its format decided.
pub(crate) struct OpenedSource {
    pub(crate) file: File,
    pub(crate) format: ImageFormat,
    /// Absolute, without links.
    pub(crate) path: PathBuf,
    pub(crate) opener: FolderOpener,
}

impl Source {
    /// Opens the file; for writing too unless `read_only`.
    pub(crate) fn open(&self, read_only: bool) -> Result<OpenedSource, Error> {
        let failed = |error| {
            file_error(
                "failed to open image",
                format!("path={}", self.path.display()),
                error,
            )
        };
        let path = self.path.canonicalize().map_err(failed)?;
        let file = open_image_file(&path, read_only).map_err(failed)?;
        let format = match self.format {
            Some(format) => format,
            None => decide_format(&path, &file)
                .map_err(failed)?
                .ok_or_else(|| ambiguous(&self.path))?,
        };
        let opener = FolderOpener::new(&path, &self.roots).map_err(failed)?;
        Ok(OpenedSource {
            file,
            format,
            path,
            opener,
        })
    }
}

impl OpenedSource {
    /// The image and everything below it, for reading.
    pub(crate) fn chain(&self) -> Result<Chain, Error> {
        let format = match self.format {
            ImageFormat::Raw => BackingFormat::Raw,
            ImageFormat::Qcow2 => BackingFormat::Qcow2,
        };
        let path = self.path.display().to_string();
        let file = self
            .file
            .try_clone()
            .map_err(|error| file_error("failed to open image", format!("path={path}"), error))?;
        Chain::open(
            Arc::new(FileStorage::new(file)),
            &path,
            format,
            &self.opener,
        )
        .map_err(|error| image_error("failed to open image", format!("path={path}"), error))
    }
}

/// Opens backing files below the folder of an image, and below folders that the caller trusts. Identities are absolute
/// names without links.
#[derive(Debug, Clone)]
pub(crate) struct FolderOpener {
    roots: Vec<Arc<Root>>,
}

impl FolderOpener {
    /// An opener for the image at `path`, which is absolute and without links.
    pub(crate) fn new(path: &Path, roots: &[PathBuf]) -> io::Result<Self> {
        let trusted = path
            .parent()
            .into_iter()
            .chain(roots.iter().map(PathBuf::as_path));
        let roots = trusted.map(|root| Root::open(root).map(Arc::new));
        Ok(Self {
            roots: roots.collect::<io::Result<_>>()?,
        })
    }

    /// Opens a file by its name without links, from the first trusted folder that it lies in; `None` outside of all.
    /// Links were followed to find the name: one that takes its place meanwhile is not.
    fn open_below(&self, path: &Path) -> Option<io::Result<File>> {
        self.roots.iter().find_map(|root| {
            let name = path.strip_prefix(root.path()).ok()?.to_str()?;
            Some(root.open_file_or_device(name))
        })
    }
}

impl Opener for FolderOpener {
    fn open_backing(&self, name: &BackingName, of: &str) -> Result<OpenedBacking, qcow2::Error> {
        let refused = |text: String| qcow2::Error::new(qcow2::ErrorKind::Refused, text);
        if is_protocol(&name.name) {
            return Err(refused(format!(
                "backing name is a protocol, not a file, name={:?} of={of:?}",
                name.name
            )));
        }
        let beside = Path::new(of).parent().unwrap_or(Path::new("/"));
        let failed = |error: io::Error| {
            let text = format!(
                "failed to open the backing file, name={:?} of={of:?}: {error}",
                name.name
            );
            let missing = error.kind() == io::ErrorKind::NotFound;
            let kind = if missing {
                qcow2::ErrorKind::NotFound
            } else {
                qcow2::ErrorKind::Refused
            };
            qcow2::Error::new(kind, text)
        };
        let path = beside.join(&name.name).canonicalize().map_err(failed)?;
        let opened = self.open_below(&path).ok_or_else(|| {
            refused(format!(
                "backing file lies outside of the image's folder and of every trusted folder, path={:?} of={of:?}",
                path.display()
            ))
        })?;
        let file = opened.map_err(failed)?;
        let format = match name.format {
            Some(format) => format,
            None => match decide_format(&path, &file).map_err(failed)? {
                Some(ImageFormat::Qcow2) => BackingFormat::Qcow2,
                Some(ImageFormat::Raw) => BackingFormat::Raw,
                None => {
                    return Err(refused(format!(
                        "header does not tell the format of the backing file, path={:?} of={of:?}",
                        path.display()
                    )));
                }
            },
        };
        let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(file));
        Ok(OpenedBacking {
            storage,
            // Nobody vouches for hashes that stand beside a foreign file.
            identity: path.display().to_string(),
            format,
        })
    }
}

/// Bytes that the filesystem has given to a file, and its length.
pub(crate) fn file_sizes(file: &File) -> io::Result<(u64, u64)> {
    /// Unit of `st_blocks` (POSIX: sys/stat.h on Linux).
    const BLOCK_BYTES: u64 = 512;
    let facts = file.metadata()?;
    Ok((facts.blocks().saturating_mul(BLOCK_BYTES), facts.len()))
}

/// Opens a regular file or a block device; nothing that could block or act.
pub(crate) fn open_image_file(path: &Path, read_only: bool) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = File::options()
        .read(true)
        .write(!read_only)
        .custom_flags(nonblocking)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(file);
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "neither a file nor a block device",
    ))
}

/// The format if name and content agree on it.
fn decide_format(path: &Path, file: &File) -> io::Result<Option<ImageFormat>> {
    let mut magic = [0; 4];
    let has_magic = match file.read_exact_at(&mut magic, 0) {
        Ok(()) => magic == QCOW2_MAGIC,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(error),
    };
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
        .to_ascii_lowercase();
    let ends_in = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    let is_device = file.metadata()?.file_type().is_block_device();
    let named_raw = ends_in(&[".raw", ".img"]) || is_device;
    let named_qcow2 = ends_in(&[".qcow2", ".qcow", ".qcow2.partial"]);
    Ok(match (has_magic, named_qcow2, named_raw) {
        (true, true, _) => Some(ImageFormat::Qcow2),
        (false, _, true) => Some(ImageFormat::Raw),
        _ => None,
    })
}

fn ambiguous(path: &Path) -> Error {
    Error::invalid(
        "format of the image is not clear",
        format!(
            "name and content do not agree, say --format qcow2 or --format raw, path={}",
            path.display()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_alone_decides_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let decide = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            decide_format(&path, &File::open(&path).unwrap()).unwrap()
        };
        let magic = b"QFI\xfb....";
        assert_eq!(decide("a.qcow2", magic), Some(ImageFormat::Qcow2));
        assert_eq!(decide("a.img", b"abcd"), Some(ImageFormat::Raw));
        assert_eq!(decide("empty.raw", b""), Some(ImageFormat::Raw));
        for (name, content) in [
            ("a.raw", &magic[..]),
            ("disk", magic),
            ("a.qcow2", b"abcd"),
            ("disk", b"abcd"),
        ] {
            assert_eq!(decide(name, content), None, "name={name}");
        }
        let source = Source::from(folder.path().join("disk"));
        let refused = source.open(true).map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("--format"), "{refused}");
    }

    /// Two folders, and an image's opener that trusts the first.
    fn folders() -> (tempfile::TempDir, PathBuf, FolderOpener) {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().canonicalize().unwrap();
        for name in ["in/below", "out"] {
            std::fs::create_dir_all(at.join(name)).unwrap();
        }
        for name in ["in/top.qcow2", "in/base.raw", "in/below/base.raw"] {
            std::fs::write(at.join(name), "inside").unwrap();
        }
        std::fs::write(at.join("out/base.raw"), "outside").unwrap();
        let opener = FolderOpener::new(&at.join("in/top.qcow2"), &[]).unwrap();
        (folder, at, opener)
    }

    fn open_raw(
        opener: &FolderOpener,
        at: &Path,
        name: &str,
    ) -> Result<OpenedBacking, qcow2::Error> {
        let name = BackingName {
            name: name.to_owned(),
            format: Some(BackingFormat::Raw),
        };
        opener.open_backing(&name, &at.join("in/top.qcow2").display().to_string())
    }

    #[test]
    fn what_is_not_a_file_of_the_folder_is_never_opened() {
        let (_folder, at, opener) = folders();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, at.join("in/pipe"), pipe, mode, 0).unwrap();
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(at.join(target), at.join("in").join(name)).unwrap();
        };
        link("out/base.raw", "link");
        link("out", "folder-link");
        link("in/below", "own-link");
        link("in/loop", "loop");
        std::os::unix::fs::symlink("/dev/null", at.join("in/null")).unwrap();
        let outside = File::open(at.join("out/base.raw")).unwrap();
        let handle = std::os::fd::AsRawFd::as_raw_fd(&outside);
        let names = [
            at.join("out/base.raw").display().to_string(),
            format!("/proc/self/fd/{handle}"),
            format!(
                "/proc/self/cwd/../../../../../../{}/out/base.raw",
                at.display()
            ),
            "../out/base.raw".to_owned(),
            "below/../../out/base.raw".to_owned(),
            "json:{\"driver\":\"file\",\"filename\":\"base.raw\"}".to_owned(),
            "nbd://localhost/x".to_owned(),
            "nbd:unix:/socket".to_owned(),
            "file:base.raw".to_owned(),
            "https://localhost/base.raw".to_owned(),
        ];
        let plain = [
            "link",
            "folder-link/base.raw",
            "null",
            "pipe",
            "loop",
            "below",
            ".",
            "..",
            "",
            "/",
            "/dev/null",
            "/dev/zero",
        ];
        for name in names.iter().map(String::as_str).chain(plain) {
            let refused = open_raw(&opener, &at, name).expect_err(name);
            assert_eq!(
                refused.kind(),
                qcow2::ErrorKind::Refused,
                "{name}: {refused}"
            );
        }
        let missing = open_raw(&opener, &at, "none.raw").unwrap_err();
        assert_eq!(missing.kind(), qcow2::ErrorKind::NotFound);
        for name in [
            "base.raw",
            "own-link/base.raw",
            "below/../base.raw",
            "./below/base.raw",
        ] {
            let opened = open_raw(&opener, &at, name).unwrap();
            assert!(
                opened
                    .identity
                    .starts_with(&at.join("in").display().to_string())
            );
        }
    }

    /// Somebody swaps a file for a link, and a folder for a link, while names are resolved.
    #[test]
    fn links_that_are_swapped_in_lead_nowhere() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let (_folder, at, opener) = folders();
        for (target, name) in [("out/base.raw", "in/file-link"), ("out", "in/folder-link")] {
            std::os::unix::fs::symlink(at.join(target), at.join(name)).unwrap();
        }
        let swap = |one: &str, other: &str| {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            let (one, other) = (at.join(one), at.join(other));
            rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, other, flags).unwrap();
        };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    swap("in/base.raw", "in/file-link");
                    swap("in/below", "in/folder-link");
                }
            });
            let mut opened = 0;
            for _ in 0..4000 {
                for name in ["base.raw", "below/base.raw"] {
                    let Ok(backing) = open_raw(&opener, &at, name) else {
                        continue;
                    };
                    let mut bytes = [0; 6];
                    backing.storage.read_at(0, &mut bytes).unwrap();
                    assert_eq!(&bytes, b"inside", "{name}");
                    opened += 1;
                }
            }
            done.store(true, Ordering::Relaxed);
            assert!(opened > 0, "nothing was opened between the swaps");
        });
    }

    #[test]
    fn a_recorded_format_is_not_doubted_and_loops_are_found() {
        let (_folder, at, opener) = folders();
        std::fs::write(
            at.join("in/guest.raw"),
            b"QFI\xfb\0\0\0\x03 as the guest wrote it",
        )
        .unwrap();
        let opened = open_raw(&opener, &at, "guest.raw").unwrap();
        assert_eq!(opened.format, BackingFormat::Raw);
        let unsaid = BackingName {
            name: "guest.raw".into(),
            format: None,
        };
        let of = at.join("in/top.qcow2").display().to_string();
        let refused = opener.open_backing(&unsaid, &of).unwrap_err();
        assert_eq!(refused.kind(), qcow2::ErrorKind::Refused, "{refused}");

        let below = || {
            let nothing = Arc::new(qcow2::MemoryStorage::new());
            Arc::new(Chain::open(nothing, "nothing", BackingFormat::Raw, &opener).unwrap())
        };
        std::os::unix::fs::symlink("a.qcow2", at.join("in/again.qcow2")).unwrap();
        for (name, backing) in [("a.qcow2", "b.qcow2"), ("b.qcow2", "again.qcow2")] {
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(at.join("in").join(name));
            let options = qcow2::CreateOptions {
                cluster_size_bytes: 512,
                backing: Some(BackingName {
                    name: backing.into(),
                    format: Some(BackingFormat::Qcow2),
                }),
                ..qcow2::CreateOptions::new(512)
            };
            let storage = Arc::new(FileStorage::new(file.unwrap()));
            drop(qcow2::Image::create(storage, &options, Some(below())).unwrap());
        }
        let source = Source::from(at.join("in/a.qcow2"));
        let refused = source.open(true).unwrap().chain().unwrap_err();
        let text = format!("{refused:?}");
        assert!(text.contains("loop"), "{text}");
    }

    #[test]
    fn backing_files_stay_in_trusted_folders() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        for name in ["in", "in/below", "out"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        for name in ["in/top.qcow2", "in/below/base.raw", "out/base.raw"] {
            std::fs::write(at(name), "x").unwrap();
        }
        std::os::unix::fs::symlink(at("out/base.raw"), at("in/link.raw")).unwrap();
        let open = |roots: &[PathBuf], name: &str| {
            let opener = FolderOpener::new(&at("in/top.qcow2"), roots).unwrap();
            let name = BackingName {
                name: name.to_owned(),
                format: Some(BackingFormat::Raw),
            };
            let of = at("in/top.qcow2").display().to_string();
            opener
                .open_backing(&name, &of)
                .map(|opened| opened.identity)
                .map_err(|error| error.kind())
        };
        let refused = Err(qcow2::ErrorKind::Refused);
        assert_eq!(
            open(&[], "below/base.raw"),
            Ok(at("in/below/base.raw").display().to_string())
        );
        assert_eq!(open(&[], "../out/base.raw"), refused);
        assert_eq!(open(&[], "link.raw"), refused);
        assert_eq!(open(&[], "json:{}"), refused);
        assert_eq!(open(&[], "nbd://host/x"), refused);
        assert_eq!(open(&[], "none.raw"), Err(qcow2::ErrorKind::NotFound));
        let outside = at("out/base.raw").display().to_string();
        assert_eq!(open(&[at("out")], &outside), Ok(outside));
    }
}
