//! Images of ours in a folder, and everybody else who can read them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow2::{
    BackingFormat, BackingName, Chain, CreateOptions, Error, ErrorKind, FileStorage, Image,
    OpenedBacking, Opener,
};

use crate::disk::Disk;
use crate::peers::run_ok;

/// Smallest cluster that qcow2-rs can read: it reads tables in slices of 4 KiB.
const QCOW2_RS_CLUSTER: u64 = 4096;

/// A folder of images, removed with its end.
#[derive(Debug)]
pub struct Folder(tempfile::TempDir);

/// The image below another one: its name in the folder, and how to read it.
pub type Below<'a> = Option<(&'a str, BackingFormat)>;

impl Folder {
    /// An empty folder.
    ///
    /// # Panics
    /// When there is no room for one.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes a folder on disk")]
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// The path of a file in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes an image of ours.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn create(&self, name: &str, len: u64, cluster: usize, below: Below<'_>) -> Image {
        let options = CreateOptions {
            cluster_size_bytes: u32::try_from(cluster).expect("a cluster size"),
            ..CreateOptions::new(len)
        };
        self.create_with(name, &options, below)
    }

    /// Makes an image of ours with further options.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn create_with(&self, name: &str, options: &CreateOptions, below: Below<'_>) -> Image {
        let options = CreateOptions {
            backing: below.map(|(name, format)| BackingName {
                name: name.to_owned(),
                format: Some(format),
            }),
            ..options.clone()
        };
        drop(File::create_new(self.path(name)).expect("a new file"));
        Image::create(self.storage(name), &options, self.parent(below)).expect("a new image")
    }

    /// Opens an image for writing, whoever made it.
    ///
    /// # Panics
    /// When it cannot be opened.
    #[must_use]
    pub fn open(&self, name: &str, below: Below<'_>) -> Image {
        Image::open(self.storage(name), self.parent(below)).expect("an image")
    }

    /// Opens a chain for reading.
    ///
    /// # Panics
    /// When it cannot be opened.
    #[must_use]
    pub fn chain(&self, name: &str, format: BackingFormat) -> Chain {
        let file = File::open(self.path(name)).expect("an image");
        Chain::open(Arc::new(FileStorage::new(file)), name, format, self).expect("a chain")
    }

    fn parent(&self, below: Below<'_>) -> Option<Arc<Chain>> {
        below.map(|(name, format)| Arc::new(self.chain(name, format)))
    }

    fn storage(&self, name: &str) -> Arc<FileStorage> {
        let file = File::options().read(true).write(true).open(self.path(name));
        Arc::new(FileStorage::new(file.expect("an image")))
    }

    /// A raw file with the disk's bytes.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_raw(&self, name: &str, disk: &Disk) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, disk.bytes()).expect("a raw file");
        path
    }
}

impl Opener for Folder {
    fn open_backing(&self, name: &BackingName, _of: &str) -> Result<OpenedBacking, Error> {
        let file = File::open(self.path(&name.name))
            .map_err(|error| Error::io(format!("cannot open: name={}", name.name), error))?;
        let format = name
            .format
            .ok_or_else(|| Error::new(ErrorKind::Refused, "no format is recorded"))?;
        Ok(OpenedBacking {
            storage: Arc::new(FileStorage::new(file)),
            identity: name.name.clone(),
            format,
        })
    }
}

/// Everything that our reader finds in a chain.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn read_ours(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0xa5; usize::try_from(chain.virtual_size_bytes()).expect("a small disk")];
    chain.read(0, &mut bytes).expect("a read");
    bytes
}

/// Everything that imago finds in a qcow2 chain, in pieces that end anywhere.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn read_imago(image: &Path) -> Vec<u8> {
    let image = imago_image(image);
    let len = usize::try_from(image.size()).expect("a small disk");
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let mut piece = vec![0xa5; 300_007.min(len - bytes.len())];
        image.read(&mut piece, bytes.len() as u64).expect("a read");
        bytes.extend(piece);
    }
    bytes
}

/// A qcow2 chain as imago opens it: backing files by the names and formats in the headers.
///
/// # Panics
/// When it cannot be opened.
#[must_use]
pub fn imago_image(image: &Path) -> imago::FormatAccess<imago::file::File> {
    use imago::FormatDriverBuilder as _;
    let image = imago::qcow2::Qcow2::<imago::file::File>::builder_path(image)
        .open(imago::PermissiveImplicitOpenGate())
        .expect("imago opens the image");
    imago::FormatAccess::new(image)
}

/// Everything that qcow2-rs finds in a chain of one or two images (tip first), or `None` where it cannot read: clusters
/// below 4 KiB, raw images, version 2, images that are shorter than the tip.
///
/// # Panics
/// When it fails at what it can read.
#[must_use]
pub fn read_qcow2_rs(folder: &Folder, chain: &Chain) -> Option<Vec<u8>> {
    let layers = chain.layers();
    let len = chain.virtual_size_bytes();
    let readable = layers.iter().all(|(_, info)| {
        info.version == 3
            && u64::from(info.cluster_size_bytes) >= QCOW2_RS_CLUSTER
            && info.virtual_size_bytes >= len
    });
    if !readable {
        return None;
    }
    let paths: Vec<PathBuf> = layers.iter().map(|(name, _)| folder.path(name)).collect();
    let cluster = usize::try_from(layers[0].1.cluster_size_bytes).expect("a cluster size");
    let len = usize::try_from(len).expect("a small disk");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    Some(runtime.block_on(Box::pin(run_qcow2_rs(&paths, cluster, len))))
}

async fn run_qcow2_rs(paths: &[PathBuf], cluster: usize, len: usize) -> Vec<u8> {
    use qcow2_rs::dev::Qcow2DevParams;
    use qcow2_rs::tokio_io::Qcow2IoTokio;
    let mut below = None;
    for (depth, path) in paths.iter().enumerate().rev() {
        // Blocks of 512 bytes, default caches, read only, through the page cache.
        let params = Qcow2DevParams::new(9, None, None, true, false);
        if depth > 0 {
            params.mark_backing_dev(Some(true));
        }
        let io = Qcow2IoTokio::new(path, true, false).await;
        // The name in the header would be looked for in the working folder.
        let (mut image, _) = qcow2_rs::utils::qcow2_alloc_dev(path, io, &params)
            .await
            .expect("qcow2-rs opens the image");
        if let Some(below) = below.take() {
            image.set_backing_dev(Box::new(below));
        }
        below = Some(image);
    }
    let image = below.expect("a chain has a tip");
    image.qcow2_prep_io().await.expect("qcow2-rs loads tables");
    let mut bytes = vec![0xa5; len];
    // A read of several clusters hides an error of one of them.
    for (number, piece) in bytes.chunks_mut(cluster).enumerate() {
        let wanted = piece.len();
        let read = image.read_at(piece, (number * cluster) as u64).await;
        assert_eq!(read.expect("qcow2-rs reads"), wanted, "cluster {number}");
    }
    bytes
}

/// Everything that `qemu-img convert` finds in a qcow2 chain.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn read_qemu_img(folder: &Folder, name: &str) -> Vec<u8> {
    let (image, out) = (folder.path(name), folder.path("converted.raw"));
    let args = ["convert", "-f", "qcow2", "-O", "raw", "-t", "unsafe"];
    let args = args.iter().map(AsRef::as_ref);
    run_ok("qemu-img", args.chain([image.as_os_str(), out.as_os_str()]));
    std::fs::read(out).expect("what qemu-img wrote")
}

/// Sends commands to qemu-io, which must succeed at each of them.
///
/// # Panics
/// With all that qemu-io said when one fails.
pub fn qemu_io(image: &Path, read_only: bool, commands: &[String]) {
    let mut args = vec!["-f", "qcow2", "-t", "unsafe"];
    // Without it `-u` changes nothing.
    args.extend(if read_only {
        ["-r"].as_slice()
    } else {
        &["-d", "unmap"]
    });
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(image.to_str().expect("a path in UTF-8"));
    let said = run_ok("qemu-io", &args);
    assert!(
        !said.contains("failed") && !said.contains("verification"),
        "{commands:?}: {said}"
    );
}

/// Lets qemu-io read random places of a qcow2 chain, each within one value or across borders.
///
/// # Panics
/// When it reads something else.
pub fn check_by_qemu_io(image: &Path, disk: &Disk, rng: &mut fastrand::Rng) {
    let len = disk.bytes().len();
    let mut commands = Vec::new();
    while commands.len() < 60 {
        let offset = rng.usize(0..len);
        let end = len.min(offset + rng.usize(1..200_000));
        let mut at = offset;
        for (value, run) in disk.runs(offset..end) {
            commands.push(format!("read -P {value} {at} {run}"));
            at += run;
        }
    }
    qemu_io(image, true, &commands);
}
