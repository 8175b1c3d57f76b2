//! Which backing files a qcow2 source may open.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow2::{BackingFormat, BackingName, FileStorage, OpenedBacking, Opener};

use crate::{Error, ErrorKind};

/// Opens backing files below the directory of the first image and nowhere else: a name inside an image is data from
/// the guest's side, and following it outside would read any file of the node into the backup.
pub(super) struct TreeOpener {
    root: PathBuf,
}

impl TreeOpener {
    /// `image` is a canonical path.
    pub(super) fn beside(image: &Path) -> Result<Self, Error> {
        let root = image
            .parent()
            .ok_or_else(|| Error::new(ErrorKind::Source, "it lies in no directory"))?;
        Ok(Self {
            root: root.to_owned(),
        })
    }

    fn resolve(&self, name: &str, of: &str) -> Result<PathBuf, String> {
        // Names are relative to the image that records them (qcow2 spec, backing file name).
        let directory = Path::new(of).parent().unwrap_or(&self.root);
        let path = directory
            .join(name)
            .canonicalize()
            .map_err(|error| format!("cannot resolve backing file name={name} of={of}: {error}"))?;
        if !path.starts_with(&self.root) {
            return Err(format!(
                "backing file lies outside the directory of the source name={name} of={of} root={}",
                self.root.display()
            ));
        }
        Ok(path)
    }
}

impl Opener for TreeOpener {
    fn open_backing(&self, name: &BackingName, of: &str) -> Result<OpenedBacking, qcow2::Error> {
        let refused = |why: String| qcow2::Error::new(qcow2::ErrorKind::Refused, why);
        // An unrecorded format would have to be guessed from content that a guest may have written.
        let format: BackingFormat = name.format.ok_or_else(|| {
            refused(format!(
                "backing file has no recorded format name={} of={of}",
                name.name
            ))
        })?;
        let path = self.resolve(&name.name, of).map_err(refused)?;
        let file = File::open(&path).map_err(|error| {
            refused(format!(
                "cannot open backing file path={}: {error}",
                path.display()
            ))
        })?;
        Ok(OpenedBacking {
            storage: Arc::new(FileStorage::new(file)),
            identity: path.display().to_string(),
            format,
            // Hashes serve writers; this reads.
        })
    }
}
