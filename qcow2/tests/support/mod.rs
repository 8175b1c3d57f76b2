//! A model of a disk, random requests, and QEMU's tools.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a panic is the report; seeds are printed"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use qcow2::{BackingName, Error, ErrorKind, FileStorage, Image, OpenedBacking, Opener};

/// The seed of this run, from `SENDENSE_TEST_SEED` or of the day's chance; printed so that a failure can be replayed.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("SENDENSE_TEST_SEED")
        .ok()
        .map_or_else(|| fastrand::u64(..), |text| text.parse().expect("a number"));
    println!("SENDENSE_TEST_SEED={seed}");
    seed
}

pub(crate) fn rng(seed: u64) -> fastrand::Rng {
    fastrand::Rng::with_seed(seed)
}

/// The bytes a disk must have.
pub(crate) struct Model(Vec<u8>);

impl Model {
    pub(crate) fn new(size: u64) -> Self {
        Self(vec![0; usize::try_from(size).unwrap()])
    }

    pub(crate) fn put(&mut self, offset: usize, data: &[u8]) {
        self.0[offset..offset + data.len()].copy_from_slice(data);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Data that repeats often enough to meet itself, and is sometimes zero.
pub(crate) fn random_data(rng: &mut fastrand::Rng, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    if rng.u8(0..5) > 0 {
        let mut at = 0;
        while at < len {
            let run = rng.usize(1..70_000).min(len - at);
            let byte = rng.u8(..);
            if byte > 40 {
                data[at..at + run].fill(byte);
            }
            at += run;
        }
    }
    data
}

/// A write of other or of the same bytes, a request for zeroes, a flush or a read, on both.
pub(crate) fn random_request(rng: &mut fastrand::Rng, image: &Image, model: &mut Model) {
    let size = model.0.len();
    let offset = rng.usize(0..size);
    let len = rng.usize(1..=(size - offset).min(300_000));
    match rng.u8(0..10) {
        0 => {
            let data = model.0[offset..offset + len].to_vec();
            image.write(offset as u64, &data).unwrap();
        }
        1..=4 => {
            let data = random_data(rng, len);
            image.write(offset as u64, &data).unwrap();
            model.put(offset, &data);
        }
        5..=7 => {
            image
                .write_zeroes(offset as u64, len as u64, rng.bool())
                .unwrap();
            model.0[offset..offset + len].fill(0);
        }
        8 => image.flush().unwrap(),
        _ => {
            let mut read = vec![1; len];
            image.read(offset as u64, &mut read).unwrap();
            assert!(
                read == model.0[offset..offset + len],
                "read offset={offset} len={len}"
            );
        }
    }
}

/// A folder of a test, removed with it.
pub(crate) struct Dir(tempfile::TempDir);

impl Dir {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Opens backing files by name in one folder.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Opener for Folder {
    fn open_backing(&self, name: &BackingName, _of: &str) -> Result<OpenedBacking, Error> {
        let format = name
            .format
            .ok_or_else(|| Error::new(ErrorKind::Refused, "no format is recorded"))?;
        let file = std::fs::File::open(self.0.join(&name.name))
            .map_err(|error| Error::io(format!("cannot open: name={}", name.name), error))?;
        let storage = Arc::new(FileStorage::new(file));
        Ok(OpenedBacking {
            storage,
            identity: name.name.clone(),
            format,
        })
    }
}

/// Whether QEMU's tools are there. Without them the test is skipped aloud, and fails on CI.
pub(crate) fn has_qemu() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        assert!(
            std::env::var_os("CI").is_none(),
            "qemu-img is missing on CI"
        );
        println!("SKIPPED: qemu-img is missing");
    }
    found
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

pub(crate) fn must(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `qemu-img check` finds nothing at all, and neither does ours.
pub(crate) fn check_clean(path: &Path, seed: u64) {
    let storage = FileStorage::new(std::fs::File::open(path).unwrap());
    let report = qcow2::check(&storage).unwrap();
    assert!(report.is_clean(), "seed={seed}: {report:?}");
    let output = run("qemu-img", &["check", "-f", "qcow2", text(path)]);
    assert!(
        output.status.code() == Some(0),
        "seed={seed}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// `qemu-img compare` sees the model's bytes.
pub(crate) fn compare(dir: &Dir, path: &Path, model: &Model, seed: u64) {
    let raw = dir.path("model.raw");
    std::fs::write(&raw, model.bytes()).unwrap();
    let arguments = [
        "compare",
        "-f",
        "qcow2",
        "-F",
        "raw",
        text(path),
        text(&raw),
    ];
    let output = run("qemu-img", &arguments);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "seed={seed}: {said}");
}

/// A base with random content, written by QEMU; returns its bytes.
pub(crate) fn make_base(
    dir: &Dir,
    format: &str,
    name: &str,
    size: u64,
    rng: &mut fastrand::Rng,
) -> Vec<u8> {
    let bytes = random_data(rng, usize::try_from(size).unwrap());
    let raw = dir.path("content.raw");
    std::fs::write(&raw, &bytes).unwrap();
    let target = dir.path(name);
    must(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            format,
            text(&raw),
            text(&target),
        ],
    );
    bytes
}
