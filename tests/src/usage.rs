//! What a process of ours takes, read from `/proc`.

use std::fs;
use std::process::Child;

/// Memory that is resident now.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn resident_bytes(process: &Child) -> u64 {
    status(process, "VmRSS:")
}

/// The most memory that was ever resident.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn peak_bytes(process: &Child) -> u64 {
    status(process, "VmHWM:")
}

/// Open files and sockets.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn descriptors(process: &Child) -> usize {
    fs::read_dir(format!("/proc/{}/fd", process.id()))
        .expect("a process of ours")
        .count()
}

fn status(process: &Child, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", process.id()));
    let text = text.expect("a process of ours");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib.and_then(|kib| kib.parse().ok()).expect("a number");
    kib << 10
}
