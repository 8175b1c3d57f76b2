//! Holds the files of a chain against the hashes beside them.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow2::{FileStorage, ImageInfo, Subset};

use super::source::{Source, open_image_file};
use crate::blocking::blocking;
use crate::error::Error;
use crate::repository::{file_error, image_error};

pub use qcow2::{Damage, DamageKind, VerifyReport};

/// One file of a chain and what its hashes say about it.
#[derive(Debug)]
pub struct VerifiedFile {
    /// The file.
    pub path: PathBuf,
    /// What was found.
    pub outcome: Verified,
}

/// What the hashes of a file say about it.
#[derive(Debug)]
pub enum Verified {
    /// It was compared; the report says whether it is damaged.
    Compared(VerifyReport),
    /// Nobody recorded hashes of it: a raw file, one that is not sealed, one of an older hub.
    NoHashes,
    /// It could not be compared: the sidecar is missing or not the one that the image names, or a file cannot be read.
    Failed(Error),
}

/// Reads the data of every file of a chain once, the tip first, and compares it with the hashes in `FILE.hashes`.
/// `part` is a number from 1 on and how many parts there are; without it all data is read.
///
/// # Errors
///
/// `Invalid` for a part that does not exist; what opening the chain says. Damage is no error.
pub async fn verify(
    image: impl Into<Source>,
    part: Option<(u64, u64)>,
) -> Result<Vec<VerifiedFile>, Error> {
    let source = image.into();
    let (part, of) = part.unwrap_or((1, 1));
    let subset = Subset::new(part, of)
        .map_err(|error| Error::invalid("no such part of an image", error.to_string()))?;
    blocking(move || {
        let layers = source.open(true)?.chain()?.layers();
        let verified = |(identity, info): (String, ImageInfo)| {
            let path = PathBuf::from(identity);
            let outcome = if info.seal.is_some_and(|seal| seal.hashes.is_some()) {
                verify_file(&path, subset).map_or_else(Verified::Failed, Verified::Compared)
            } else {
                Verified::NoHashes
            };
            VerifiedFile { path, outcome }
        };
        Ok(layers.into_iter().map(verified).collect())
    })
    .await
}

fn verify_file(path: &Path, subset: Subset) -> Result<VerifyReport, Error> {
    let failed = |path: &Path| {
        let details = format!("path={}", path.display());
        move |error| file_error("failed to open file", details, error)
    };
    let hashes_path = PathBuf::from(format!("{}.hashes", path.display()));
    let image = open_image_file(path, true).map_err(failed(path))?;
    let hashes = open_sidecar(&hashes_path).map_err(failed(&hashes_path))?;
    let storage = |file| Arc::new(FileStorage::new(file));
    qcow2::verify(storage(image), storage(hashes), subset).map_err(|error| {
        image_error(
            "failed to verify image",
            format!("path={}", path.display()),
            error,
        )
    })
}

/// Opens a regular file that has this name itself: a link could lead anywhere.
fn open_sidecar(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "not a regular file",
    ))
}
