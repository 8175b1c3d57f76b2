//! Any lies in a hash sidecar: errors and damage, never panics, never unbounded memory.
//!
//! The input is a script: one byte that says whether the root is made to match again, so that lies get past it, one for
//! the number of bytes cut off, then four bytes for each lie.

use std::sync::Arc;

use qcow2::{CreateOptions, Hashes, Image, MemoryStorage, Seal, Storage, Subset, verify};

const SIZE: u64 = 48 << 10;
const CLUSTER: u32 = 512;
/// Where the root is: behind the header, which it covers together with the directory.
const ROOT_AT: usize = 496;

/// Runs a script.
pub fn run(data: &[u8]) {
    let [mode, cut, lies @ ..] = data else {
        return;
    };
    let (image, mut sidecar) = make();
    for lie in lies.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([lie[0], lie[1]])) % sidecar.len();
        sidecar[at] = if lie[2] & 1 == 0 {
            lie[3]
        } else {
            sidecar[at] ^ lie[3]
        };
    }
    sidecar.truncate(sidecar.len() - usize::from(*cut) % 64);
    if mode & 1 == 1 {
        mend(&mut sidecar);
    }
    let sidecar: Arc<dyn Storage> = Arc::new(MemoryStorage::with_bytes(sidecar));
    if let Ok(hashes) = Hashes::open(sidecar.clone()) {
        for page in 0..hashes.pages().min(64) {
            if let Ok(page) = hashes.page(page) {
                let _ = page.get(u64::from(*cut));
            }
        }
        assert!(
            hashes.page(hashes.pages()).is_err(),
            "a page beyond the last"
        );
    }
    let report = verify(image, sidecar, Subset::ALL);
    if lies.is_empty() && cut % 64 == 0 {
        assert!(
            report.is_ok_and(|report| report.damages.is_empty()),
            "nothing was changed"
        );
    }
}

/// A sealed image with data, zeroes and nothing, and its sidecar.
fn make() -> (Arc<dyn Storage>, Vec<u8>) {
    let storage = Arc::new(MemoryStorage::new());
    let beside = Arc::new(MemoryStorage::new());
    let options = CreateOptions {
        cluster_size_bytes: CLUSTER,
        ..CreateOptions::new(SIZE)
    };
    let image = Image::create(storage.clone(), &options, None)
        .and_then(|image| image.with_hashes(beside.clone()))
        .expect("a fresh image");
    image.write(0, &[7; 5000]).expect("a write");
    image.write_zeroes(1024, 1024, true).expect("zeroes");
    let seal = Seal {
        point_id: "point".into(),
        ..Seal::default()
    };
    image.seal(&seal).expect("a seal");
    (storage, beside.to_bytes())
}

/// Makes the root match what header and directory say.
fn mend(sidecar: &mut [u8]) {
    let Some(header) = sidecar.first_chunk::<512>() else {
        return;
    };
    let word = |index: usize| {
        header[index * 8..index * 8 + 8]
            .iter()
            .fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let pages = word(4).div_ceil(word(3).max(1)).div_ceil(4096);
    let end = pages
        .checked_mul(16)
        .and_then(|bytes| bytes.checked_add(512)?.checked_next_multiple_of(4096));
    let end = end.and_then(|end| usize::try_from(end).ok());
    let Some(directory) = end.and_then(|end| sidecar.get(512..end)) else {
        return;
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..ROOT_AT]).update(directory);
    let root = hasher.finalize();
    sidecar[ROOT_AT..512].copy_from_slice(&root.as_bytes()[..16]);
}
