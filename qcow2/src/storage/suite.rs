//! The meaning of [`Storage`] as one function, to be run on every implementation (also on yours).

use crate::storage::Storage;

/// Runs all checks, each on a fresh, empty storage.
///
/// # Panics
/// If the implementation does not do what the trait says.
pub fn run<S: Storage>(mut fresh: impl FnMut() -> S) {
    reads_back(&fresh());
    grows_with_zeroes(&fresh());
    ends_early(&fresh());
    is_shared(&fresh());
}

fn reads_back(storage: &dyn Storage) {
    assert_eq!(
        storage.len_bytes().ok(),
        Some(0),
        "a fresh storage is empty"
    );
    storage.write_at(3, b"abcdef").expect("write");
    storage.write_at(5, b"XY").expect("overwrite");
    storage.start_writeback(0, 4096);
    storage.sync().expect("sync");
    let mut into = [0; 6];
    storage.read_at(3, &mut into).expect("read");
    assert_eq!(&into, b"abXYef");
    storage.write_at(0, b"").expect("an empty write is nothing");
    storage
        .read_at(9, &mut [])
        .expect("an empty read at the end is nothing");
    assert_eq!(storage.len_bytes().ok(), Some(9));
}

fn grows_with_zeroes(storage: &dyn Storage) {
    storage.write_at(1000, &[7]).expect("write after a gap");
    let mut into = [9; 1001];
    storage.read_at(0, &mut into).expect("read");
    assert!(into[..1000].iter().all(|byte| *byte == 0) && into[1000] == 7);
    storage.set_len(10).expect("cut");
    storage.set_len(1001).expect("grow");
    storage.read_at(0, &mut into).expect("read");
    assert!(
        into.iter().all(|byte| *byte == 0),
        "what was cut does not come back"
    );
}

fn ends_early(storage: &dyn Storage) {
    storage.write_at(0, &[1; 10]).expect("write");
    for offset in [5, 10, 1 << 40] {
        let error = storage
            .read_at(offset, &mut [0; 6])
            .expect_err("read beyond the end");
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}

fn is_shared(storage: &dyn Storage) {
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            scope.spawn(move || {
                for round in 0..16 {
                    let offset = (u64::from(thread) + 4 * round) * 100;
                    storage.write_at(offset, &[thread + 1; 100]).expect("write");
                }
            });
        }
    });
    for block in 0..64_u8 {
        let mut into = [0; 100];
        storage
            .read_at(u64::from(block) * 100, &mut into)
            .expect("read");
        assert_eq!(into, [block % 4 + 1; 100]);
    }
}
