//! Any sequence of writes, zeroes and flushes on a fresh image: it reads like a plain array, and `check` is clean.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use qcow2::{CreateOptions, Image, MemoryStorage, check};

const SIZE: usize = 48 << 10;

fuzz_target!(|data: &[u8]| {
    let Some((setting, operations)) = data.split_first() else {
        return;
    };
    let storage = Arc::new(MemoryStorage::new());
    let options = CreateOptions {
        cluster_size_bytes: 512 << (setting % 4),
        ..CreateOptions::new(SIZE as u64)
    };
    let image = Image::create(storage.clone(), &options, None).expect("a fresh image");
    let mut model = vec![0u8; SIZE];
    for operation in operations.chunks_exact(5).take(200) {
        let offset = usize::from(u16::from_le_bytes([operation[1], operation[2]])) % SIZE;
        let len = (usize::from(u16::from_le_bytes([operation[3], operation[4]])) % 4096)
            .min(SIZE - offset);
        let range = offset..offset + len;
        match operation[0] % 8 {
            0 => image.flush().expect("a flush"),
            1 | 2 => {
                let keep = operation[0] % 8 == 2;
                image
                    .write_zeroes(offset as u64, len as u64, keep)
                    .expect("zeroes");
                model[range].fill(0);
            }
            _ => {
                model[range.clone()].fill(operation[0] & 0xf8);
                image.write(offset as u64, &model[range]).expect("a write");
            }
        }
    }
    let mut read = vec![0; SIZE];
    image.read(0, &mut read).expect("a read");
    assert!(read == model, "reads what was written");
    image.flush().expect("a flush");
    let report = check(&*storage).expect("a whole image");
    assert_eq!(
        (report.corruptions, report.leaks),
        (0, 0),
        "{:?}",
        report.findings
    );
    // What is on the storage is what was flushed.
    let again = Image::open(
        Arc::new(MemoryStorage::with_bytes(storage.to_bytes())),
        None,
    )
    .expect("a whole image");
    again.read(0, &mut read).expect("a read");
    assert!(read == model, "reads back");
});
