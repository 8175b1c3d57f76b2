//! Raw files that stand for the disks of a VM: data, runs of one value, holes; and a guest that writes on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MIB: u64 = 1 << 20;

/// A raw file with runs of random data, repeated data and holes.
///
/// # Panics
/// When it exists or cannot be written.
pub fn make(path: &Path, size: u64, rng: &mut fastrand::Rng) {
    let file = File::create_new(path).expect("a new file");
    file.set_len(size).expect("space");
    let mut offset = 0;
    while offset < size {
        let len = rng.u64(1..=2 * MIB).min(size - offset);
        let mut data = vec![rng.u8(..); usize::try_from(len).expect("a short run")];
        if rng.bool() {
            rng.fill(&mut data);
        }
        file.write_all_at(&data, offset).expect("space");
        offset += len + rng.u64(0..MIB);
    }
}

/// Writes `count` times somewhere, zeroes or random data; returns offset and length of each write.
///
/// # Panics
/// When the file is smaller than 100,000 bytes or cannot be written.
pub fn scribble(path: &Path, count: u32, rng: &mut fastrand::Rng) -> Vec<(u64, u64)> {
    let file = File::options().write(true).open(path).expect("a disk");
    let size = file.metadata().expect("a disk").len();
    let mut write = |_| {
        let mut data = vec![0; rng.usize(1..100_000)];
        if rng.bool() {
            rng.fill(&mut data);
        }
        let len = u64::try_from(data.len()).expect("a short write");
        let offset = rng.u64(0..size - len);
        file.write_all_at(&data, offset).expect("space");
        (offset, len)
    };
    (0..count).map(&mut write).collect()
}
