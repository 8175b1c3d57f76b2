//! Which backing files an image of a repository may have: files of the same repository, nothing else.

use std::sync::Arc;

use qcow2::{BackingFormat, BackingName, ErrorKind, FileStorage, OpenedBacking, Opener, Storage};

use super::layout::resolve_backing;
use super::root::Root;

/// Resolves backing names below a [`Root`]. An identity is a file's name relative to the root.
#[derive(Debug)]
pub(crate) struct RepositoryOpener<'a> {
    root: &'a Root,
}

impl<'a> RepositoryOpener<'a> {
    /// An opener for images that are known by their name relative to `root`.
    pub(crate) fn new(root: &'a Root) -> Self {
        Self { root }
    }
}

impl Opener for RepositoryOpener<'_> {
    fn open_backing(&self, name: &BackingName, of: &str) -> Result<OpenedBacking, qcow2::Error> {
        let identity = resolve_backing(self.root.path(), of, &name.name)
            .map_err(|error| qcow2::Error::new(ErrorKind::Refused, error.to_string()))?;
        let file = self.root.open_file(&identity).map_err(|error| {
            let text =
                format!("failed to open the backing file, name={identity:?} of={of:?}: {error}");
            match error.kind() {
                std::io::ErrorKind::NotFound => qcow2::Error::new(ErrorKind::NotFound, text),
                _ => qcow2::Error::new(ErrorKind::Refused, text),
            }
        })?;
        let storage: Arc<dyn Storage> = Arc::new(FileStorage::new(file));
        // A header that does not tell the format is probed by nobody: in a repository everything is qcow2.
        Ok(OpenedBacking {
            storage,
            identity,
            format: name.format.unwrap_or(BackingFormat::Qcow2),
        })
    }
}
