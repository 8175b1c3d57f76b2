//! Which backing files an image of a repository may have: files of the same repository, nothing else.

use std::sync::Arc;

use qcow2::{BackingFormat, BackingName, ErrorKind, FileStorage, OpenedBacking, Opener, Storage};

use super::layout::{hashes_of, resolve_backing};
use super::root::Root;

/// Resolves backing names below a [`Root`]. An identity is a file's name relative to the root.
#[derive(Debug)]
pub(crate) struct RepositoryOpener<'a> {
    root: &'a Root,
    /// Sidecars are files that stay open; only who asks for hashes needs them.
    with_hashes: bool,
}

impl<'a> RepositoryOpener<'a> {
    /// An opener for images that are known by their name relative to `root`.
    pub(crate) fn new(root: &'a Root) -> Self {
        Self {
            root,
            with_hashes: false,
        }
    }

    /// As `new`, and opens the hashes beside the images, too.
    pub(crate) fn with_hashes(root: &'a Root) -> Self {
        Self {
            root,
            with_hashes: true,
        }
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

    fn open_hashes(&self, of: &str) -> Option<Arc<dyn Storage>> {
        if !self.with_hashes {
            return None;
        }
        // Without its sidecar a point is compared byte by byte: that is slower, and as right.
        let file = self.root.open_file(&hashes_of(of));
        let file = file.inspect_err(|error| {
            tracing::warn!(image = of, %error, "an image has lost its hashes");
        });
        Some(Arc::new(FileStorage::new(file.ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{CWD, FileType, Mode, RenameFlags};

    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open_or_create(&folder.path().join("repo")).unwrap();
        for (name, content) in [
            ("repo/vm/base.qcow2", "inside"),
            ("out/base.qcow2", "outside"),
        ] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        (folder, root)
    }

    fn open(
        root: &Root,
        name: &str,
        format: Option<BackingFormat>,
    ) -> Result<OpenedBacking, qcow2::Error> {
        let name = BackingName {
            name: name.to_owned(),
            format,
        };
        RepositoryOpener::new(root).open_backing(&name, "vm/tip.qcow2")
    }

    #[test]
    fn only_files_of_the_repository_are_opened() {
        let (folder, root) = root();
        let out = folder.path().canonicalize().unwrap().join("out");
        let vm = root.path().join("vm");
        symlink(out.join("base.qcow2"), vm.join("link")).unwrap();
        symlink(&out, vm.join("folder-link")).unwrap();
        symlink("base.qcow2", vm.join("own-link")).unwrap();
        symlink("/dev/null", vm.join("null")).unwrap();
        rustix::fs::mknodat(
            CWD,
            vm.join("pipe"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let absolute = out.join("base.qcow2").display().to_string();
        for name in [
            absolute.as_str(),
            "../../out/base.qcow2",
            "../vm/../../out/base.qcow2",
            "link",
            "folder-link/base.qcow2",
            "own-link",
            "null",
            "pipe",
            "../vm",
            "",
            ".",
            "/",
            "/dev/zero",
            "/proc/self/fd/0",
            "json:{\"file.filename\":\"base.qcow2\"}",
            "nbd://localhost/x",
            "file:base.qcow2",
        ] {
            let refused = open(&root, name, None).expect_err(name);
            assert_eq!(refused.kind(), ErrorKind::Refused, "{name}: {refused}");
        }
        let missing = open(&root, "none.qcow2", None).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let inside = vm.join("base.qcow2").display().to_string();
        for name in ["base.qcow2", "./base.qcow2", "../vm/base.qcow2", &inside] {
            assert_eq!(open(&root, name, None).unwrap().identity, "vm/base.qcow2");
        }
    }

    #[test]
    fn the_format_is_what_the_header_says() {
        let (_folder, root) = root();
        std::fs::write(root.path().join("vm/guest"), b"QFI\xfb\0\0\0\x03").unwrap();
        let raw = open(&root, "guest", Some(BackingFormat::Raw)).unwrap();
        assert_eq!(raw.format, BackingFormat::Raw);
        let unsaid = open(&root, "base.qcow2", None).unwrap();
        assert_eq!(unsaid.format, BackingFormat::Qcow2);
    }

    #[test]
    fn links_that_are_swapped_in_lead_nowhere() {
        let (folder, root) = root();
        let out = folder.path().canonicalize().unwrap().join("out");
        symlink(&out, root.path().join("folder-link")).unwrap();
        symlink(out.join("base.qcow2"), root.path().join("file-link")).unwrap();
        let swap = |one: &str, other: &str| {
            let (one, other) = (root.path().join(one), root.path().join(other));
            // A swap of the file fails while its folder is the link, which leads out.
            let _ = rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
        };
        std::fs::write(root.path().join("base.qcow2"), "inside").unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    swap("vm", "folder-link");
                    swap("base.qcow2", "file-link");
                }
            });
            let mut opened = 0;
            for _ in 0..4000 {
                for name in ["base.qcow2", "../base.qcow2"] {
                    let Ok(backing) = open(&root, name, None) else {
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
}
