//! Files that belong to nothing: partial ones are removed, published ones are only reported.

use std::collections::HashSet;

use super::error::file_error;
use super::images::Repository;
use super::layout::ImagePath;
use crate::error::Error;

/// What a sweep found. Names are relative to the repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SweepReport {
    /// Partial files that were removed.
    pub(crate) removed: Vec<String>,
    /// Partial files that could not be removed, or that another process holds.
    pub(crate) kept: Vec<String>,
    /// Published images that no row knows. They may be the last copy of something: a person decides.
    pub(crate) unknown: Vec<String>,
}

impl Repository {
    /// Looks at every file. `known` are the images of all rows, in whatever state; `written` those that a backup still writes.
    pub(crate) fn sweep(
        &self,
        known: &HashSet<ImagePath>,
        written: &HashSet<ImagePath>,
    ) -> Result<SweepReport, Error> {
        let root = self.root();
        let names = root.files().map_err(|error| {
            file_error(
                "failed to list repository",
                format!("path={}", self.path().display()),
                error,
            )
        })?;
        let mut report = SweepReport::default();
        for name in names {
            match owner(root.path(), &name) {
                Some(Owner::Partial(image)) if !written.contains(&image) => {
                    let removed = !self.is_in_use(&name) && matches!(root.remove(&name), Ok(true));
                    let list = if removed {
                        &mut report.removed
                    } else {
                        &mut report.kept
                    };
                    list.push(name);
                }
                Some(Owner::Published(image)) if !known.contains(&image) => {
                    report.unknown.push(name);
                }
                _ => {}
            }
        }
        Ok(report)
    }

    /// Whether another open file holds the lock that a writer of an image takes.
    fn is_in_use(&self, name: &str) -> bool {
        let Ok(file) = self.root().open_file(name) else {
            return true;
        };
        matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock))
    }
}

enum Owner {
    Partial(ImagePath),
    Published(ImagePath),
}

/// The image that a file belongs to; `None` for what is not ours to judge, and for sidecars of published images.
fn owner(root: &std::path::Path, name: &str) -> Option<Owner> {
    let Some(stem) = name.strip_suffix(".partial") else {
        return ImagePath::parse(root, name).ok().map(Owner::Published);
    };
    let image = stem
        .strip_suffix(".json")
        .or_else(|| stem.strip_suffix(".hashes"))
        .unwrap_or(stem);
    ImagePath::parse(root, image).ok().map(Owner::Partial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_partial_files_without_a_row_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::open_or_create(folder.path(), None).unwrap();
        for name in [
            "c/disk-0/a.qcow2.partial",
            "c/disk-0/a.qcow2.json.partial",
            "c/disk-0/a.qcow2.hashes.partial",
            "c/disk-0/b.qcow2.partial",
            "c/disk-0/b.qcow2.hashes.partial",
            "c/disk-0/lost.qcow2",
            "c/disk-0/lost.qcow2.json",
            "c/disk-0/lost.qcow2.hashes",
            "c/disk-0/known.qcow2",
            "notes.txt",
            "notes.partial",
        ] {
            repository.root().create_file(name).unwrap();
        }
        let one = |name| HashSet::from([repository.parse(name).unwrap()]);
        let (known, written) = (one("c/disk-0/known.qcow2"), one("c/disk-0/b.qcow2"));
        let report = repository.sweep(&known, &written).unwrap();
        assert_eq!(
            report.removed,
            ["hashes.partial", "json.partial", "partial"]
                .map(|end| format!("c/disk-0/a.qcow2.{end}"))
        );
        assert_eq!(report.unknown, ["c/disk-0/lost.qcow2"]);
        assert!(report.kept.is_empty());
        assert_eq!(repository.root().files().unwrap().len(), 8);
        assert_eq!(
            repository.sweep(&known, &written).unwrap().removed,
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_partial_file_that_is_being_written_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::open_or_create(folder.path(), None).unwrap();
        let file = repository
            .root()
            .create_file("c/disk-0/a.qcow2.partial")
            .unwrap();
        file.lock().unwrap();
        let report = repository.sweep(&HashSet::new(), &HashSet::new()).unwrap();
        assert_eq!(report.kept, ["c/disk-0/a.qcow2.partial"]);
    }
}
