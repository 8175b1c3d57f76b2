//! Names inside a repository: pure text, no file is touched here.
//!
//! ```text
//! {root}/{vm context}/disk-{n}/backup-{vm}-disk{n}-{YYYYMMDD-HHMMSS}[-suffix].qcow2        a published image
//!                              ….qcow2.json       its manifest
//!                              ….qcow2.hashes     the hashes of its clusters, which its seal names; images of older hubs have none
//!                              ….qcow2.partial    (and .json.partial, .hashes.partial) while it is written
//! ```
//!
//! Names come from an inventory that other people fill, so every component is reduced to a safe
//! alphabet; names that come back from a database or from a qcow2 header are parsed, never joined.

use std::path::{Component, Path};

use crate::clock::Timestamp;
use crate::id::{DiskIndex, VmContextId};
use crate::limits::{IMAGE_PATH_BYTES_MAX, NAME_COMPONENT_BYTES_MAX};

/// The ending of everything that is not published yet.
const PARTIAL: &str = ".partial";
/// The ending of every image.
const IMAGE: &str = ".qcow2";

/// Where one image lives: a path below the repository's root, without `.` and `..`, ending in `.qcow2`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ImagePath(String);

/// Why a name cannot be a file of the repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameError {
    #[error("image name is empty or holds a zero byte, name={0:?}")]
    Malformed(String),
    #[error("image name is too long, len_bytes={0}")]
    TooLong(usize),
    #[error("image name leaves the repository, name={0:?}")]
    Outside(String),
    #[error("image name does not end in .qcow2, name={0:?}")]
    NotAnImage(String),
    #[error("backing name is a protocol, not a file, name={0:?}")]
    Protocol(String),
}

impl ImagePath {
    /// The path of a new image; `suffix` tells images of one second apart.
    pub(crate) fn new(
        vm_context: &VmContextId,
        vm_name: &str,
        disk: DiskIndex,
        at: Timestamp,
        suffix: Option<u32>,
    ) -> Self {
        let context = sanitised(vm_context.as_ref());
        let vm = sanitised(vm_name);
        let time = compact_utc(at);
        let suffix = suffix.map_or_else(String::new, |number| format!("-{number}"));
        Self(format!(
            "{context}/disk-{disk}/backup-{vm}-disk{disk}-{time}{suffix}{IMAGE}"
        ))
    }

    /// Reads a name that was recorded: relative to the root, or absolute below it.
    ///
    /// # Errors
    ///
    /// Any name that is not plainly a qcow2 file below `root`.
    pub(crate) fn parse(root: &Path, recorded: &str) -> Result<Self, NameError> {
        let relative = below_root(root, "", recorded)?;
        if !relative.ends_with(IMAGE) {
            return Err(NameError::NotAnImage(relative));
        }
        Ok(Self(relative))
    }

    /// The name of the published image, relative to the root.
    pub(crate) fn published(&self) -> &str {
        &self.0
    }

    /// The name of the image while it is written.
    pub(crate) fn partial(&self) -> String {
        format!("{}{PARTIAL}", self.0)
    }

    /// The name of the manifest beside the image.
    pub(crate) fn manifest(&self) -> String {
        format!("{}.json", self.0)
    }

    /// The name of the manifest before publication.
    pub(crate) fn manifest_partial(&self) -> String {
        format!("{}.json{PARTIAL}", self.0)
    }

    /// The name of the hash sidecar beside the image.
    pub(crate) fn hashes(&self) -> String {
        hashes_of(&self.0)
    }

    /// The name of the hash sidecar before publication.
    pub(crate) fn hashes_partial(&self) -> String {
        format!("{}.hashes{PARTIAL}", self.0)
    }

    /// The folder of the image, relative to the root; empty for the root itself.
    pub(crate) fn directory(&self) -> &str {
        self.0
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory)
    }

    /// What this image calls `parent` in its header: the way from its own folder, so that the
    /// repository can be moved.
    pub(crate) fn backing_name_of(&self, parent: &Self) -> String {
        let mut from: Vec<&str> = self
            .directory()
            .split('/')
            .filter(|part| !part.is_empty())
            .collect();
        let mut to: Vec<&str> = parent.0.split('/').collect();
        while to.len() > 1 && from.first() == to.first() {
            from.remove(0);
            to.remove(0);
        }
        let mut parts = vec![".."; from.len()];
        parts.extend(to);
        parts.join("/")
    }
}

/// The name of the hash sidecar beside an image.
pub(crate) fn hashes_of(image: &str) -> String {
    format!("{image}.hashes")
}

/// Resolves the backing name that the image `of` (relative to `root`) records: relative names beside
/// that image, absolute names only below `root`. Returns a path relative to the root.
///
/// # Errors
///
/// Names that are protocols (`json:`, `nbd://`), leave the root, or are malformed.
pub(crate) fn resolve_backing(root: &Path, of: &str, name: &str) -> Result<String, NameError> {
    if is_protocol(name) {
        return Err(NameError::Protocol(name.to_owned()));
    }
    let beside = of.rsplit_once('/').map_or("", |(directory, _)| directory);
    below_root(root, beside, name)
}

/// Whether a backing name is of the kind that qemu hands to a driver: everything before the first
/// slash that holds a colon (qemu: "block: path_has_protocol").
pub(crate) fn is_protocol(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or(name);
    first.contains(':')
}

/// Normalises `name` (seen from the folder `beside`) into a path relative to `root`.
fn below_root(root: &Path, beside: &str, name: &str) -> Result<String, NameError> {
    if name.is_empty() || name.contains('\0') {
        return Err(NameError::Malformed(name.to_owned()));
    }
    if name.len() > IMAGE_PATH_BYTES_MAX {
        return Err(NameError::TooLong(name.len()));
    }
    let outside = || NameError::Outside(name.to_owned());
    let path = Path::new(name);
    let (start, rest) = if path.is_absolute() {
        ("", path.strip_prefix(root).map_err(|_| outside())?)
    } else {
        (beside, path)
    };
    let mut parts: Vec<&str> = start.split('/').filter(|part| !part.is_empty()).collect();
    for component in rest.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(outside)?),
            Component::CurDir => {}
            Component::ParentDir => {
                parts.pop().ok_or_else(outside)?;
            }
            Component::RootDir | Component::Prefix(_) => return Err(outside()),
        }
    }
    if parts.is_empty() {
        return Err(outside());
    }
    Ok(parts.join("/"))
}

/// Reduces a name to `[A-Za-z0-9._-]`, without a leading dot, not empty, of bounded length.
pub(crate) fn sanitised(name: &str) -> String {
    let mut safe: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
                c
            } else {
                '_'
            }
        })
        .take(NAME_COMPONENT_BYTES_MAX)
        .collect();
    if safe.starts_with('.') {
        safe.replace_range(0..1, "_");
    }
    if safe.is_empty() {
        safe.push('_');
    }
    safe
}

/// `YYYYMMDD-HHMMSS` in UTC.
fn compact_utc(at: Timestamp) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    format!(
        "{:04}{:02}{:02}-{:02}{:02}{:02}",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn path(text: &str) -> ImagePath {
        ImagePath::parse(Path::new("/repo"), text).unwrap()
    }

    #[test]
    fn a_new_image_has_the_legacy_name() {
        let at = datetime!(2025-10-08 23:59:01 +2);
        let context = VmContextId::parse("ctx-vm1").unwrap();
        let image = ImagePath::new(&context, "pg test/1", DiskIndex::new(1), at, None);
        assert_eq!(
            image.published(),
            "ctx-vm1/disk-1/backup-pg_test_1-disk1-20251008-215901.qcow2"
        );
        let second = ImagePath::new(&context, "pg", DiskIndex::new(0), at, Some(2));
        assert_eq!(
            second.partial(),
            "ctx-vm1/disk-0/backup-pg-disk0-20251008-215901-2.qcow2.partial"
        );
        assert_eq!(
            second.manifest(),
            "ctx-vm1/disk-0/backup-pg-disk0-20251008-215901-2.qcow2.json"
        );
    }

    #[test]
    fn hostile_names_become_plain_components() {
        for (name, expected) in [
            ("../../etc", "_._.._etc"),
            ("", "_"),
            (".", "_"),
            ("a\0b", "a_b"),
            ("ü/ö", "___"),
        ] {
            assert_eq!(sanitised(name), expected, "name={name:?}");
        }
        assert_eq!(sanitised(&"x".repeat(500)).len(), NAME_COMPONENT_BYTES_MAX);
    }

    #[test]
    fn backing_names_are_relative_and_come_back() {
        let cases = [
            (
                "a/disk-0/child.qcow2",
                "a/disk-0/parent.qcow2",
                "parent.qcow2",
            ),
            (
                "a/disk-0/child.qcow2",
                "b/disk-0/parent.qcow2",
                "../../b/disk-0/parent.qcow2",
            ),
            ("child.qcow2", "a/parent.qcow2", "a/parent.qcow2"),
        ];
        for (child, parent, expected) in cases {
            let name = path(child).backing_name_of(&path(parent));
            assert_eq!(name, expected);
            assert_eq!(
                resolve_backing(Path::new("/repo"), child, &name).unwrap(),
                parent
            );
        }
    }

    #[test]
    fn absolute_backing_names_are_taken_only_below_the_root() {
        let root = Path::new("/repo");
        assert_eq!(
            resolve_backing(root, "a/c.qcow2", "/repo/b/p.qcow2").unwrap(),
            "b/p.qcow2"
        );
        for name in [
            "/etc/passwd",
            "/repo2/p.qcow2",
            "/repo/../etc/passwd",
            "../../p",
            "..",
            "",
        ] {
            assert!(
                resolve_backing(root, "a/c.qcow2", name).is_err(),
                "name={name:?}"
            );
        }
    }

    #[test]
    fn protocols_are_refused() {
        for name in [
            "json:{\"driver\":\"raw\"}",
            "nbd://h/x",
            "file:/etc/passwd",
            "http://x/y",
        ] {
            let refused = resolve_backing(Path::new("/repo"), "a/c.qcow2", name);
            assert_eq!(refused, Err(NameError::Protocol(name.to_owned())));
        }
        assert!(resolve_backing(Path::new("/repo"), "a/c.qcow2", "./a:b").is_ok());
    }

    #[test]
    fn only_images_are_image_paths() {
        let root = Path::new("/repo");
        assert!(ImagePath::parse(root, "a/b.qcow2").is_ok());
        assert!(ImagePath::parse(root, "/repo/a/b.qcow2").is_ok());
        for name in ["a/b.raw", "a/b.qcow2.partial", "/a/b.qcow2", "../b.qcow2"] {
            assert!(ImagePath::parse(root, name).is_err(), "name={name:?}");
        }
    }
}
