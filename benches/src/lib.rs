//! Fixtures for the benches: data, files, images.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use qcow2::{
    BackingFormat, BackingName, Chain, CreateOptions, FileStorage, Image, OpenedBacking, Opener,
};

/// One megabyte.
pub const MIB: usize = 1 << 20;

/// Bytes of a cluster of the hub's images.
pub const CLUSTER: usize = 64 << 10;

/// Random bytes from a fixed seed: nothing elides or compresses them.
#[must_use]
pub fn noise(len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    fastrand::Rng::with_seed(42).fill(&mut data);
    data
}

/// Options of the hub's images.
#[must_use]
pub fn options(virtual_size_bytes: u64, backing: Option<&str>) -> CreateOptions {
    CreateOptions {
        backing: backing.map(|name| BackingName {
            name: name.to_owned(),
            format: Some(BackingFormat::Qcow2),
        }),
        ..CreateOptions::new(virtual_size_bytes)
    }
}

/// A new image at `path` in the page cache's file system.
///
/// # Panics
/// When it cannot be made: a bench has nothing to say then.
#[must_use]
pub fn create(path: &Path, options: &CreateOptions, parent: Option<Arc<Chain>>) -> Image {
    Image::create(Arc::new(FileStorage::new(new_file(path))), options, parent)
        .expect("a fresh image")
}

/// A new, empty file; one of an earlier round goes first.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn new_file(path: &Path) -> File {
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .expect("a fresh file")
}

/// Opens the chain whose tip is at `path`.
///
/// # Panics
/// When it cannot be opened.
#[must_use]
pub fn chain(path: &Path) -> Chain {
    let folder = Folder(path.parent().expect("a file in a folder").to_owned());
    let tip = Arc::new(FileStorage::new(File::open(path).expect("the tip")));
    Chain::open(
        tip,
        &path.display().to_string(),
        BackingFormat::Qcow2,
        &folder,
    )
    .expect("a chain")
}

/// Opens backing files beside the image.
struct Folder(std::path::PathBuf);

impl Opener for Folder {
    fn open_backing(&self, name: &BackingName, _of: &str) -> Result<OpenedBacking, qcow2::Error> {
        let path = self.0.join(&name.name);
        let file = File::open(&path).map_err(|error| {
            qcow2::Error::new(
                qcow2::ErrorKind::NotFound,
                format!("open path={}: {error}", path.display()),
            )
        })?;
        Ok(OpenedBacking {
            storage: Arc::new(FileStorage::new(file)),
            identity: path.display().to_string(),
            format: name.format.unwrap_or(BackingFormat::Qcow2),
        })
    }
}
