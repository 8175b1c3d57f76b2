//! qemu-img as the oracle for every image that we write.

use std::ffi::OsStr;
use std::path::Path;

use crate::peers::{run, run_ok};

/// Requires `qemu-img check` to find nothing at all: no error, no leak.
///
/// # Panics
/// With qemu-img's report when it finds something.
pub fn assert_clean(image: &Path) {
    let output = run(
        "qemu-img",
        [
            "check".as_ref(),
            "-f".as_ref(),
            "qcow2".as_ref(),
            image.as_os_str(),
        ],
    );
    assert!(
        output.status.success(),
        "qemu-img check {}: {}\n{}{}",
        image.display(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Requires that there is no corruption; leaks are allowed (a crash may leave them).
///
/// # Panics
/// With qemu-img's report when it finds an error.
pub fn assert_not_corrupt(image: &Path) {
    let output = run(
        "qemu-img",
        [
            "check".as_ref(),
            "-f".as_ref(),
            "qcow2".as_ref(),
            image.as_os_str(),
        ],
    );
    let code = output.status.code();
    assert!(
        code == Some(0) || code == Some(3),
        "qemu-img check {}: {}\n{}{}",
        image.display(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Requires that the qcow2 chain at `image` reads like the raw file.
///
/// # Panics
/// With qemu-img's report when they differ.
pub fn assert_reads_like(image: &Path, raw: &Path) {
    let args = ["compare", "-f", "qcow2", "-F", "raw"].map(OsStr::new);
    run_ok(
        "qemu-img",
        args.into_iter().chain([image.as_os_str(), raw.as_os_str()]),
    );
}

/// `qemu-img info --backing-chain --output=json`: tip first.
///
/// # Panics
/// When qemu-img fails.
#[must_use]
pub fn backing_chain(image: &Path) -> Vec<serde_json::Value> {
    let args = ["info", "--backing-chain", "--output=json"].map(OsStr::new);
    let text = run_ok("qemu-img", args.into_iter().chain([image.as_os_str()]));
    serde_json::from_str(&text).expect("qemu-img prints a JSON array")
}
