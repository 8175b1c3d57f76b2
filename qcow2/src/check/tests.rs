//! Checks and repairs of images in memory, in windows of a few clusters as in one.

use std::sync::Arc;

use crate::check::repair::repair_in_windows;
use crate::check::walk::Walker;
use crate::check::{CheckReport, Repair, Survey, check, repair, survey};
use crate::format::geometry::{to_u64, to_usize};
use crate::format::wire;
use crate::image::open_file;
use crate::storage::Storage;
use crate::{CreateOptions, Error, ErrorKind, FaultyStorage, Image, MemoryStorage, Seal};

const LEN: u64 = 300 * 1024;

fn options(cluster_size_bytes: u32) -> CreateOptions {
    CreateOptions {
        cluster_size_bytes,
        ..CreateOptions::new(LEN)
    }
}

/// An image with random content, as a file and as it reads.
fn image(cluster_size: u32, rng: &mut fastrand::Rng) -> (Vec<u8>, Vec<u8>) {
    let storage = Arc::new(MemoryStorage::new());
    let image = Image::create(storage.clone(), &options(cluster_size), None).unwrap();
    for _ in 0..20 {
        let offset = rng.u64(0..LEN - 20_000);
        let data = vec![rng.u8(..); rng.usize(1..20_000)];
        image.write(offset, &data).unwrap();
    }
    image.flush().unwrap();
    drop(image);
    (storage.to_bytes(), content(&storage).unwrap())
}

fn content(storage: &MemoryStorage) -> Result<Vec<u8>, Error> {
    // A dirty image is no reason not to read it.
    let storage = Arc::new(MemoryStorage::with_bytes(storage.to_bytes()));
    let chain = crate::Chain::open(storage, "tip", crate::BackingFormat::Qcow2, &Nobody)?;
    let mut bytes = vec![0; to_usize(LEN)];
    chain.read(0, &mut bytes)?;
    Ok(bytes)
}

struct Nobody;

impl crate::Opener for Nobody {
    fn open_backing(
        &self,
        name: &crate::BackingName,
        _of: &str,
    ) -> Result<crate::OpenedBacking, Error> {
        Err(Error::new(ErrorKind::NotFound, name.name.clone()))
    }
}

/// Damages refcounts, their table or the flags that depend on them; nothing that the guest reads.
fn damage(bytes: &mut [u8], rng: &mut fastrand::Rng) {
    let cluster = 1_usize << wire::u32_at(bytes, 20);
    let table = to_usize(wire::u64_at(bytes, 48));
    let l1 = to_usize(wire::u64_at(bytes, 40));
    let block = to_usize(wire::u64_at(bytes, table));
    // What is counted behind the file is nobody's concern until the file reaches there.
    let counts = (cluster / 2).min(bytes.len().div_ceil(cluster));
    for _ in 0..rng.usize(1..4) {
        match rng.u8(0..8) {
            // Counts, of 16 bits each.
            0..=3 => bytes[block + rng.usize(0..counts) * 2 + 1] = rng.u8(0..3),
            4 => bytes[block..block + counts * 2].fill(rng.u8(0..2)),
            // The flag of the first entry that has one.
            5 => {
                let entry = (l1..).step_by(8).find(|at| wire::u64_at(bytes, *at) != 0);
                bytes[entry.unwrap()] ^= 0x80;
            }
            6 => {
                let place = [0, 512, 1 << 40, to_u64(l1)][rng.usize(0..4)];
                bytes[table..table + 8].copy_from_slice(&place.to_be_bytes());
            }
            // Dirty and corrupt.
            _ => bytes[79] |= rng.u8(0..4),
        }
    }
}

fn survey_of(storage: &dyn Storage, window_clusters: u64) -> Survey {
    let opened = open_file(storage).unwrap();
    let walker = Walker::new(storage, &opened).unwrap();
    survey(&walker, window_clusters).unwrap()
}

fn seed() -> u64 {
    let text = std::env::var("SENDENSE_TEST_SEED").ok();
    let seed = text.map_or_else(|| fastrand::u64(..), |text| text.parse().unwrap());
    println!("SENDENSE_TEST_SEED={seed}");
    seed
}

#[test]
fn windows_of_any_size_find_the_same() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut found = 0;
    for round in 0..60 {
        let (mut bytes, _) = image(512 << (round % 4), &mut rng);
        damage(&mut bytes, &mut rng);
        let storage = MemoryStorage::with_bytes(bytes);
        let mut whole = survey_of(&storage, 1 << 20);
        found += whole.report.corruptions + whole.report.leaks;
        for window in [8, 24, 256] {
            let mut parts = survey_of(&storage, window);
            // Told in another order.
            whole.report.findings.sort();
            parts.report.findings.sort();
            if whole.report.findings.len() == crate::format::limits::MAX_FINDINGS {
                parts.report.findings.clone_from(&whole.report.findings);
            }
            assert_eq!(parts.report, whole.report, "window={window}");
            assert_eq!(parts.facts, whole.facts, "window={window}");
        }
        repair_in_windows(&storage, Repair::All, 24).unwrap();
        let report = check(&storage).unwrap();
        assert!(report.is_clean(), "round={round}: {report:?}");
    }
    assert!(found > 100, "the damages damage: {found}");
}

#[test]
fn a_power_cut_during_a_repair_is_no_worse() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let (mut cuts, mut unfinished) = (0, 0);
    for round in 0..40 {
        let (mut bytes, before) = image(512 << (round % 4), &mut rng);
        damage(&mut bytes, &mut rng);
        let storage = FaultyStorage::new();
        storage.write_at(0, &bytes).unwrap();
        storage.sync().unwrap();
        let (start, damaged) = (storage.position(), check(&storage).unwrap());
        repair(&storage, Repair::All).unwrap();
        for _ in 0..12 {
            let at = rng.usize(start..=storage.position());
            let left = storage.cut(at, rng.u64(..));
            let context = format!("round={round} at={at}");
            assert_eq!(content(&left).unwrap(), before, "{context}");
            let report = check(&left).unwrap();
            unfinished += usize::from(!report.is_clean() && report != damaged);
            let second = repair(&left, Repair::All).unwrap();
            assert!(second.after.is_clean(), "{context}: {second:?}");
            assert_eq!(content(&left).unwrap(), before, "{context}");
            write_on(left, &context);
            cuts += 1;
        }
    }
    assert!(cuts >= 400);
    assert!(unfinished > 5, "cuts in the middle: {unfinished}");
}

/// A repaired image takes writes and is clean behind them.
fn write_on(storage: MemoryStorage, context: &str) {
    let storage = Arc::new(storage);
    let image = Image::open(storage.clone(), None).unwrap();
    image.write(0, &vec![9; to_usize(LEN)]).unwrap();
    image.flush().unwrap();
    drop(image);
    let report = check(&*storage).unwrap();
    assert!(report.is_clean(), "{context}: {report:?}");
    assert!(content(&storage).unwrap().iter().all(|byte| *byte == 9));
}

#[test]
fn leaks_alone_are_repaired_where_that_is_asked() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let (mut bytes, _) = image(4096, &mut rng);
    let table = to_usize(wire::u64_at(&bytes, 48));
    let block = to_usize(wire::u64_at(&bytes, table));
    // The header is counted too often, the L1 table not at all.
    bytes[block + 1] = 5;
    let l1 = to_usize(wire::u64_at(&bytes, 40)) / 4096;
    bytes[block + l1 * 2 + 1] = 0;
    let storage = MemoryStorage::with_bytes(bytes);
    let figures = |report: &CheckReport| (report.corruptions, report.leaks);
    assert_eq!(figures(&check(&storage).unwrap()), (1, 1));
    let done = repair(&storage, Repair::Leaks).unwrap();
    assert_eq!((done.leaks_fixed, done.corruptions_fixed), (1, 0));
    assert_eq!(figures(&done.after), (1, 0));
    let done = repair(&storage, Repair::All).unwrap();
    assert_eq!((done.leaks_fixed, done.corruptions_fixed), (0, 1));
    assert!(done.after.is_clean());
}

#[test]
fn a_sealed_image_is_not_repaired() {
    let storage = Arc::new(MemoryStorage::new());
    let image = Image::create(storage.clone(), &options(4096), None).unwrap();
    let seal = Seal {
        point_id: "p1".into(),
        ..Seal::default()
    };
    image.seal(&seal).unwrap();
    drop(image);
    let before = storage.to_bytes();
    let error = repair(&*storage, Repair::All).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("point_id=p1"), "{error}");
    assert!(storage.to_bytes() == before);
}

#[test]
fn nothing_is_lowered_while_references_may_be_hidden() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let (mut bytes, _) = image(4096, &mut rng);
    let l1 = to_usize(wire::u64_at(&bytes, 40));
    // One bit of the place of an L2 table: what the table leads to is found by nobody, and must not be given away.
    bytes[l1 + 6] ^= 2;
    let storage = MemoryStorage::with_bytes(bytes.clone());
    let found = check(&storage).unwrap();
    assert!(found.corruptions > 0 && found.leaks > 0, "{found:?}");
    for what in [Repair::Leaks, Repair::All] {
        let done = repair(&storage, what).unwrap();
        assert_eq!(done.leaks_fixed, 0, "{done:?}");
    }
}

#[test]
fn new_refcounts_do_not_go_where_an_entry_points_to() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let (mut bytes, _) = image(4096, &mut rng);
    let end = to_u64(bytes.len()).next_multiple_of(4096);
    let l1 = to_usize(wire::u64_at(&bytes, 40));
    let l2 = to_usize(wire::u64_at(&bytes, l1) & !(1 << 63));
    let table = to_usize(wire::u64_at(&bytes, 48));
    bytes[l2..l2 + 8].copy_from_slice(&(end + 4096).to_be_bytes());
    bytes[table + 7] |= 1;
    let storage = MemoryStorage::with_bytes(bytes.clone());
    let done = repair(&storage, Repair::All).unwrap();
    assert!(done.after.corruptions >= 2, "{done:?}");
    assert!(storage.to_bytes() == bytes, "nothing was written");
}

/// Counts the calls that read.
#[derive(Debug)]
struct Counted(MemoryStorage, std::sync::atomic::AtomicU64);

impl Storage for Counted {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.0.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write_at(offset, data)
    }

    fn len_bytes(&self) -> std::io::Result<u64> {
        self.0.len_bytes()
    }

    fn set_len(&self, len_bytes: u64) -> std::io::Result<()> {
        self.0.set_len(len_bytes)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.0.sync()
    }

    fn start_writeback(&self, _offset: u64, _len_bytes: u64) {}
}

/// 65,536 entries of one L1 table name one L2 table: it is walked no more often than the file has clusters.
#[test]
fn a_small_file_cannot_ask_for_endless_work() {
    let storage = Arc::new(MemoryStorage::new());
    let options = CreateOptions {
        cluster_size_bytes: 512,
        ..CreateOptions::new(65_536 * 64 * 512)
    };
    let image = Image::create(storage.clone(), &options, None).unwrap();
    image.write(0, &[1; 512]).unwrap();
    image.flush().unwrap();
    drop(image);
    let mut bytes = storage.to_bytes();
    let l1_at = to_usize(wire::u64_at(&bytes, 40));
    let entry = bytes[l1_at..l1_at + 8].to_vec();
    for index in 1..65_536 {
        bytes[l1_at + index * 8..][..8].copy_from_slice(&entry);
    }
    let clusters = to_u64(bytes.len() / 512);
    assert!(clusters < 10_000, "clusters={clusters}");
    let storage = Counted(MemoryStorage::with_bytes(bytes), 0.into());
    let report = check(&storage).unwrap();
    assert!(report.corruptions > 0);
    let reads = storage.1.into_inner();
    assert!(reads < 3 * clusters, "reads={reads} clusters={clusters}");
}
