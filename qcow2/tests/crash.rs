//! A loss of power at any moment: what was flushed is there, the rest is old or new by sector, and the file is never
//! more wrong than some leaked clusters.
//!
//! `SENDENSE_CRASH_CUTS` says how many cuts, `SENDENSE_TEST_SEED` which ones. A failure names the seed of its own trace,
//! which is then the first to run again, to the byte.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a panic is the report; seeds are printed"
)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use qcow2::{
    BackingFormat, BackingName, Chain, CreateOptions, Elision, Error, ErrorKind, FaultyStorage,
    Image, MemoryLimits, MemoryStorage, OpenedBacking, Opener, Seal, Storage, check,
};

const SECTOR: usize = 512;
/// Made by qemu-img 10: clusters of 512 bytes, 64 KiB with two L2 tables, data, zeroes, one internal snapshot, and data
/// written after it under the first table.
const SNAPSHOT: &[u8] = include_bytes!("data/snapshot.qcow2");

/// The image below, which is `base` to others.
#[derive(Debug, Clone)]
struct Base {
    /// What it reads as; empty where there is no image below.
    bytes: Vec<u8>,
    file: Vec<u8>,
    format: BackingFormat,
}

impl Base {
    fn none() -> Self {
        Self::raw(Vec::new())
    }

    fn raw(bytes: Vec<u8>) -> Self {
        Self {
            file: bytes.clone(),
            bytes,
            format: BackingFormat::Raw,
        }
    }

    /// An image with data, zeroes and a hole.
    fn qcow2(mut bytes: Vec<u8>) -> Self {
        bytes.truncate(bytes.len() / SECTOR * SECTOR);
        let storage = Arc::new(MemoryStorage::new());
        let options = CreateOptions {
            cluster_size_bytes: 2048,
            ..CreateOptions::new(bytes.len() as u64)
        };
        let image = Image::create(storage.clone(), &options, None).unwrap();
        let third = bytes.len() / 3;
        bytes[third..third * 2].fill(0);
        image.write(0, &bytes[..third]).unwrap();
        image.write(third as u64 * 2, &bytes[third * 2..]).unwrap();
        let zeroes = 5000.min(third);
        bytes[..zeroes].fill(0);
        image.write_zeroes(0, zeroes as u64, true).unwrap();
        image.flush().unwrap();
        Self {
            bytes,
            file: storage.to_bytes(),
            format: BackingFormat::Qcow2,
        }
    }

    fn name(&self) -> Option<BackingName> {
        (!self.bytes.is_empty()).then(|| BackingName {
            name: "base".into(),
            format: Some(self.format),
        })
    }

    fn open(&self) -> Option<Arc<Chain>> {
        let opened = self.open_backing(&self.name()?, "tip").unwrap();
        let chain = Chain::open(opened.storage, "base", self.format, &Self::none());
        Some(Arc::new(chain.unwrap()))
    }
}

impl Opener for Base {
    fn open_backing(&self, name: &BackingName, _of: &str) -> Result<OpenedBacking, Error> {
        Ok(OpenedBacking {
            storage: Arc::new(MemoryStorage::with_bytes(self.file.clone())),
            identity: name.name.clone(),
            format: self.format,
        })
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn seed() -> u64 {
    let seed = number("SENDENSE_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("SENDENSE_TEST_SEED={seed}");
    seed
}

/// How little is kept in memory, so that commits come unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tight {
    Nothing,
    DirtyTables,
    DirtyRefcounts,
    PendingFrees,
    TableCache,
    RefcountCache,
}

impl Tight {
    fn limits(self) -> MemoryLimits {
        let usual = MemoryLimits::default();
        match self {
            Self::Nothing => usual,
            Self::DirtyTables => MemoryLimits {
                dirty_l2_bytes: 0,
                ..usual
            },
            Self::DirtyRefcounts => MemoryLimits {
                dirty_refcount_bytes: 0,
                ..usual
            },
            Self::PendingFrees => MemoryLimits {
                pending_frees: 3,
                ..usual
            },
            Self::TableCache => MemoryLimits {
                cached_l2_bytes: 0,
                ..usual
            },
            Self::RefcountCache => MemoryLimits {
                cached_refcount_bytes: 0,
                ..usual
            },
        }
    }
}

/// What a disk may hold after a cut, from a position of the log on.
struct Promise {
    from: usize,
    flushed: Vec<u8>,
    later: Vec<Change>,
}

/// A request after the flush.
struct Change {
    /// Position of the log before it.
    before: usize,
    offset: usize,
    data: Vec<u8>,
}

impl Promise {
    /// Whether a sector may hold this after a cut. A guest sector lies within one host sector, so that it is old or
    /// new as a whole.
    fn allows(&self, sector: Range<usize>, found: &[u8], cut: usize) -> bool {
        let mut now = self.flushed[sector.clone()].to_vec();
        let mut known = now == found;
        for change in self.later.iter().filter(|change| change.before <= cut) {
            let start = sector.start.max(change.offset);
            let end = sector.end.min(change.offset + change.data.len());
            if start < end && !known {
                let new = &change.data[start - change.offset..end - change.offset];
                now[start - sector.start..end - sector.start].copy_from_slice(new);
                known = now == found;
            }
        }
        known
    }
}

/// An image that is written, and what it promised at each moment.
struct Run {
    storage: Arc<FaultyStorage>,
    image: Image,
    parent: Option<Arc<Chain>>,
    base: Base,
    disk: Vec<u8>,
    promises: Vec<Promise>,
    /// Positions before and after the seal.
    seal: Option<Range<usize>>,
    /// Commits within requests that asked for none.
    forced: u64,
    context: String,
}

impl Run {
    fn new(storage: Arc<FaultyStorage>, image: Image, base: Base, context: String) -> Self {
        let mut disk = vec![0; usize::try_from(image.virtual_size_bytes()).unwrap()];
        image.read(0, &mut disk).unwrap();
        let promise = Promise {
            from: storage.position(),
            flushed: disk.clone(),
            later: Vec::new(),
        };
        Self {
            parent: base.open(),
            storage,
            image,
            base,
            disk,
            promises: vec![promise],
            seal: None,
            forced: 0,
            context,
        }
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        let write = |image: &Image| image.write(offset as u64, data);
        self.request(offset, data, write);
    }

    fn zero(&mut self, range: Range<usize>, keep: bool) {
        let zeroes = vec![0; range.len()];
        let zero = |image: &Image| image.write_zeroes(range.start as u64, range.len() as u64, keep);
        self.request(range.start, &zeroes, zero);
    }

    fn request(&mut self, offset: usize, data: &[u8], send: impl Fn(&Image) -> Result<(), Error>) {
        let change = Change {
            before: self.storage.position(),
            offset,
            data: data.to_vec(),
        };
        let syncs = self.storage.syncs();
        send(&self.image).unwrap();
        self.forced += u64::from(self.storage.syncs() > syncs);
        self.disk[offset..offset + data.len()].copy_from_slice(data);
        self.promises.last_mut().unwrap().later.push(change);
    }

    fn flush(&mut self) {
        self.image.flush().unwrap();
        self.promise();
    }

    /// Until the flush has returned, the older promise holds.
    fn promise(&mut self) {
        self.promises.push(Promise {
            from: self.storage.position(),
            flushed: self.disk.clone(),
            later: Vec::new(),
        });
    }

    fn seal(&mut self) {
        let before = self.storage.position();
        self.image.seal(&self.a_seal()).unwrap();
        self.seal = Some(before..self.storage.position());
        self.promise();
    }

    /// A seal that lies in several sectors where the first cluster has several.
    fn a_seal(&self) -> Seal {
        let clusters = self.image.info().cluster_size_bytes;
        let len = if clusters >= 2048 { 1000 } else { 10 };
        Seal {
            point_id: "point".into(),
            parent_id: Some("parent".into()),
            change_id: Some("e".repeat(len)),
            hashes: None,
        }
    }

    fn random_request(&mut self, rng: &mut fastrand::Rng, most: usize) {
        let size = self.disk.len();
        let offset = rng.usize(0..size);
        let len = rng.usize(1..=(size - offset).min(most));
        match rng.u8(0..24) {
            0..4 => self.flush(),
            // What the parent has, of which some need not be stored.
            4..8 => {
                let mut data = vec![0; len];
                let below = self.base.bytes.get(offset..).unwrap_or_default();
                let common = below.len().min(len);
                data[..common].copy_from_slice(&below[..common]);
                self.write(offset, &data);
            }
            8..16 => self.write(offset, &vec![rng.u8(..); len]),
            _ => self.zero(offset..offset + len, rng.bool()),
        }
    }

    /// Cuts anywhere and requires that all promises were kept. Returns whether something was lost.
    fn check_cut(&self, rng: &mut fastrand::Rng, from: usize) -> bool {
        let end = self.storage.position();
        let at = rng.usize(from..=end);
        let context = format!("{} cut={at}/{end}", self.context);
        let cut: Arc<dyn Storage> = Arc::new(self.storage.cut(at, rng.u64(..)));
        let report = check(&*cut).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(report.corruptions, 0, "{context}: {report:?}");

        let read = self.read(&cut, at, &context);
        let promise = self.promises.iter().rev().find(|found| found.from <= at);
        let promise = promise.expect("the first one is before every cut");
        for start in (0..read.len()).step_by(SECTOR) {
            let sector = start..read.len().min(start + SECTOR);
            let known = promise.allows(sector.clone(), &read[sector], at);
            assert!(known, "{context}: sector at {start} is neither old nor new");
        }
        read != self.disk
    }

    /// Reads what is left; the survivor takes writes and is whole again, unless it is sealed.
    fn read(&self, cut: &Arc<dyn Storage>, at: usize, context: &str) -> Vec<u8> {
        let chain = Chain::open(cut.clone(), "tip", BackingFormat::Qcow2, &self.base).unwrap();
        let seal = chain.layers()[0].1.seal.clone();
        let begun = self.seal.as_ref().is_some_and(|seal| seal.start <= at);
        let done = self.seal.as_ref().is_some_and(|seal| seal.end <= at);
        assert!(seal.is_none() || begun, "{context}: a seal from nowhere");
        assert!(seal.is_some() || !done, "{context}: the seal is gone");
        let mut read = vec![0; self.disk.len()];
        if let Some(seal) = seal {
            assert_eq!(seal, self.a_seal(), "{context}");
            chain.read(0, &mut read).unwrap();
            return read;
        }
        let image = Image::open(cut.clone(), self.parent.clone()).unwrap();
        image.read(0, &mut read).unwrap();
        image.write(3, b"after the cut").unwrap();
        image.flush().unwrap();
        let report = check(&**cut).unwrap();
        assert_eq!(report.corruptions, 0, "{context}: after a write {report:?}");
        read
    }
}

/// A random trace on a random image, all from one seed.
fn random_run(seed: u64) -> (Run, Tight) {
    let mut rng = fastrand::Rng::with_seed(seed);
    // Small clusters more often: more happens in them.
    let bits = if rng.u8(0..8) == 0 { 14..22 } else { 9..14 };
    let cluster = 1_u32 << rng.u32(bits);
    // The last cluster of the disk is cut short, or the only one is.
    let size = rng.usize(100..600) * SECTOR;
    let version = if rng.u8(0..4) == 0 { 2 } else { 3 };
    let refcount_bits = if version == 2 { 16 } else { 1 << rng.u32(0..7) };
    let tight = [
        Tight::Nothing,
        Tight::DirtyTables,
        Tight::DirtyRefcounts,
        Tight::PendingFrees,
        Tight::TableCache,
        Tight::RefcountCache,
    ][rng.usize(0..6)];
    let mut base = Base::none();
    if rng.bool() {
        // Shorter or longer than the disk.
        let len = size - 700 + rng.usize(0..1400);
        let bytes = (0..len).map(|at| at.to_le_bytes()[1] | 1).collect();
        base = [Base::raw, Base::qcow2][rng.usize(0..2)](bytes);
    }
    let options = CreateOptions {
        cluster_size_bytes: cluster,
        version,
        refcount_bits,
        backing: base.name(),
        ..CreateOptions::new(size as u64)
    };
    let context = format!(
        "SENDENSE_TEST_SEED={seed} cluster={cluster} version={version} \
         refcount_bits={refcount_bits} parent={:?} tight={tight:?}",
        base.name()
    );
    let storage = Arc::new(FaultyStorage::new());
    let image = Image::create(storage.clone(), &options, base.open())
        .unwrap()
        .with_elision(Elision::Read)
        .with_memory_limits(tight.limits());
    let mut run = Run::new(storage, image, base, context);
    for _ in 0..rng.usize(10..60) {
        run.random_request(&mut rng, 20_000);
    }
    if rng.u8(0..4) == 0 {
        run.seal();
    }
    (run, tight)
}

#[test]
fn any_cut_leaves_what_was_flushed() {
    let wanted = number("SENDENSE_CRASH_CUTS").unwrap_or(10_000);
    let seed = seed();
    let (mut cuts, mut lost, mut seals) = (0, 0, 0);
    let mut forced = BTreeMap::new();
    for round in 0.. {
        let (run, tight) = random_run(seed.wrapping_add(round));
        *forced.entry(tight).or_insert(0) += run.forced;
        // Without tight limits only tables of the largest clusters fill their share of the memory so soon.
        let largest = run.image.info().cluster_size_bytes >= 1 << 20;
        assert!(
            tight != Tight::Nothing || run.forced == 0 || largest,
            "forced={forced:?}"
        );
        seals += u64::from(run.seal.is_some());
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_add(round));
        // Large clusters make large files, which take time to cut.
        let large = run.image.info().cluster_size_bytes >= 1 << 18;
        for cut in 0..if large { 10 } else { 50 } {
            let seal = run.seal.as_ref().map(|seal| seal.start);
            let from = seal.filter(|_| cut % 2 == 0);
            lost += u64::from(run.check_cut(&mut rng, from.unwrap_or(run.promises[0].from)));
            cuts += 1;
        }
        if cuts >= wanted {
            break;
        }
    }
    println!("cuts={cuts} lost={lost} seals={seals} forced={forced:?}");
    // What the cuts are about did happen.
    if wanted >= 5000 {
        assert!(lost > cuts / 10 && seals > 10, "lost={lost} seals={seals}");
        for tight in [
            Tight::DirtyTables,
            Tight::DirtyRefcounts,
            Tight::PendingFrees,
        ] {
            assert!(forced[&tight] > 10, "{forced:?}");
        }
    }
}

/// Tables and blocks that were dropped from memory, also those of a new image, are read again: nothing else differs.
#[test]
fn small_caches_are_emptied_and_filled_again() {
    let mut reads = Vec::new();
    for tight in [Tight::Nothing, Tight::TableCache, Tight::RefcountCache] {
        let mut rng = fastrand::Rng::with_seed(7);
        let storage = Arc::new(FaultyStorage::new());
        let options = CreateOptions {
            cluster_size_bytes: 512,
            refcount_bits: 64,
            ..CreateOptions::new(300 << 10)
        };
        let image = Image::create(storage.clone(), &options, None)
            .unwrap()
            .with_memory_limits(tight.limits());
        let mut run = Run::new(storage, image, Base::none(), format!("{tight:?}"));
        for _ in 0..150 {
            run.random_request(&mut rng, 20_000);
        }
        reads.push(run.storage.reads());
        for _ in 0..200 {
            run.check_cut(&mut rng, run.promises[0].from);
        }
    }
    let more = reads[1..].iter().all(|with| *with > reads[0] + 50);
    assert!(more, "evictions: {reads:?}");
}

/// A seed is enough to repeat a failure: it gives the same file, event by event.
#[test]
fn a_seed_gives_the_same_run_twice() {
    let seed = seed();
    for round in 0..10 {
        let runs = [(); 2].map(|()| random_run(seed.wrapping_add(round)).0.storage);
        let end = runs[0].position();
        assert_eq!(end, runs[1].position());
        for at in (0..=end).rev().step_by(end / 20 + 1) {
            let [one, other] = [0, 1].map(|run| runs[run].cut(at, seed).to_bytes());
            assert!(one == other, "seed={seed} round={round} at={at}");
        }
    }
}

/// The refcount table is full and moves while the power fails.
#[test]
fn a_cut_while_the_refcount_table_moves() {
    const CLUSTERS: usize = 1900;
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let storage = Arc::new(FaultyStorage::new());
    let options = CreateOptions {
        cluster_size_bytes: 512,
        // 64 clusters for each block, 64 blocks in the table.
        refcount_bits: 64,
        ..CreateOptions::new(CLUSTERS as u64 * 512)
    };
    let image = Image::create(storage.clone(), &options, None).unwrap();
    let table_at = || {
        let mut place = [0; 12];
        storage.read_at(48, &mut place).unwrap();
        place
    };
    let old_place = table_at();
    let context = format!("SENDENSE_TEST_SEED={seed}");
    let mut run = Run::new(storage.clone(), image, Base::none(), context);
    run.write(0, &[1; CLUSTERS * 512]);
    run.flush();
    // Let go and written again without a flush: the clusters from before are not free yet.
    run.zero(0..CLUSTERS * 512, false);
    run.write(0, &[2; CLUSTERS * 512]);
    let from = storage.position();
    for value in 3..13 {
        let first = rng.usize(0..CLUSTERS - 50) * 512;
        let len = rng.usize(20..50) * 512;
        run.zero(first..first + len, false);
        run.write(first, &vec![value; len]);
    }
    run.flush();
    assert_ne!(table_at(), old_place, "the table has moved");
    for _ in 0..10 {
        run.random_request(&mut rng, 10_000);
    }
    run.flush();
    let lost = (0..400).filter(|_| run.check_cut(&mut rng, from)).count();
    assert!(lost > 20, "lost={lost}");
}

/// An internal snapshot that QEMU made reads as before after any cut.
#[test]
fn a_cut_never_damages_a_snapshot() {
    let seed = seed();
    let snapshot = read_snapshot(SNAPSHOT.to_vec());
    assert!(snapshot[..3000] == [1; 3000] && snapshot[9000..11_000] == [2; 2000]);
    for round in 0..30 {
        let seed = seed.wrapping_add(round);
        let mut rng = fastrand::Rng::with_seed(seed);
        let storage = Arc::new(FaultyStorage::with_bytes(SNAPSHOT.to_vec()));
        let image = Image::open(storage.clone(), None).unwrap();
        let context = format!("SENDENSE_TEST_SEED={seed}");
        let mut run = Run::new(storage, image, Base::none(), context);
        for _ in 0..rng.usize(5..30) {
            run.random_request(&mut rng, 4000);
        }
        for _ in 0..30 {
            run.check_cut(&mut rng, run.promises[0].from);
            let at = rng.usize(run.promises[0].from..=run.storage.position());
            let cut = run.storage.cut(at, rng.u64(..)).to_bytes();
            assert!(read_snapshot(cut) == snapshot, "{} cut={at}", run.context);
        }
    }
}

/// The disk of the first snapshot, read as if its L1 table was the image's.
fn read_snapshot(mut bytes: Vec<u8>) -> Vec<u8> {
    // Header: L1 size at 36, L1 offset at 40, snapshots at 64. Snapshot: L1 offset first, then its size.
    let at = u64::from_be_bytes(bytes[64..72].try_into().unwrap());
    let at = usize::try_from(at).unwrap();
    bytes.copy_within(at + 8..at + 12, 36);
    bytes.copy_within(at..at + 8, 40);
    let storage = Arc::new(MemoryStorage::with_bytes(bytes));
    let opener = Base::none();
    let chain = Chain::open(storage, "snapshot", BackingFormat::Qcow2, &opener).unwrap();
    let mut read = vec![0; usize::try_from(chain.virtual_size_bytes()).unwrap()];
    chain.read(0, &mut read).unwrap();
    read
}

#[test]
fn a_full_disk_is_an_error_and_not_the_end() {
    for writes in 0..12 {
        let storage = Arc::new(FaultyStorage::new());
        let options = CreateOptions {
            cluster_size_bytes: 4096,
            ..CreateOptions::new(1 << 20)
        };
        let image = Image::create(storage.clone(), &options, None).unwrap();
        image.write(0, &[1; 10_000]).unwrap();
        storage.fail_after(writes, std::io::ErrorKind::StorageFull);
        let mut failed = false;
        for at in 0..4 {
            let result = image.write(20_000 + at * 9000, &[2; 9000]);
            if let Err(error) = result {
                assert_eq!(error.kind(), ErrorKind::NoSpace);
                failed = true;
            }
        }
        assert!(failed || writes > 3, "writes={writes}");
        storage.heal();
        image.write(20_000, &[3; 9000]).unwrap();
        image.flush().unwrap();
        let report = check(&*storage).unwrap();
        assert!(report.is_clean(), "writes={writes}: {report:?}");
        let mut read = vec![0; 10_000];
        image.read(0, &mut read).unwrap();
        assert!(read.iter().all(|byte| *byte == 1));
    }
}

/// Writes and zeroes on different sectors of one cluster, at once: none may be lost.
#[test]
fn requests_on_one_cluster_do_not_lose_each_other() {
    const CLUSTER: u64 = 4096;
    const CLUSTERS: u64 = 256;
    for keep in [false, true] {
        let storage = Arc::new(FaultyStorage::new());
        let options = CreateOptions {
            cluster_size_bytes: 4096,
            ..CreateOptions::new(CLUSTER * CLUSTERS)
        };
        let image = Image::create(storage.clone(), &options, None).unwrap();
        for round in 1..20_u8 {
            // Zero but allocated, the state in which others lose writes.
            image.write_zeroes(0, CLUSTER * CLUSTERS, keep).unwrap();
            let start = std::sync::Barrier::new(4);
            std::thread::scope(|scope| {
                for thread in 0..4_u64 {
                    let (image, start) = (&image, &start);
                    scope.spawn(move || {
                        start.wait();
                        for cluster in 0..CLUSTERS {
                            let at = cluster * CLUSTER + thread * 1024;
                            if thread % 2 == 0 {
                                image.write(at, &[round; 1024]).unwrap();
                            } else {
                                image.write_zeroes(at, 1024, cluster % 2 == 0).unwrap();
                            }
                            if thread == 3 && cluster % 50 == 0 {
                                image.flush().unwrap();
                            }
                        }
                    });
                }
            });
            let mut read = vec![0; 4096];
            for cluster in 0..CLUSTERS {
                image.read(cluster * CLUSTER, &mut read).unwrap();
                for (part, byte) in read.chunks(1024).zip([round, 0, round, 0]) {
                    assert!(part.iter().all(|found| *found == byte), "cluster={cluster}");
                }
            }
        }
        image.flush().unwrap();
        let report = check(&*storage).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}
