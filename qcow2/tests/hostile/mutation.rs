//! Thousands of seeded mutations of valid images: whatever they say, what was not written reads as before.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qcow2::{CompressionType, ErrorKind, Image, MemoryStorage, Seal, Storage, check};

use crate::sample::{Bytes, COPIED, ENTRY_OFFSET, open_chain, read_all};

const COMPRESSED: u64 = 1 << 62;
/// Clusters of the disk that a run looks at.
const CLUSTERS: u64 = 520;
/// Calls that a storage serves in one run; far more than any image of this size needs.
const MAX_CALLS: u64 = 400_000;

/// A small disk that counts its calls: a hostile image may ask for writes far beyond its end, or for work without end.
#[derive(Debug)]
struct Counted {
    inner: MemoryStorage,
    space: u64,
    calls: AtomicU64,
}

impl Counted {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            space: bytes.len() as u64 + (4 << 20),
            inner: MemoryStorage::with_bytes(bytes),
            calls: AtomicU64::new(0),
        })
    }

    fn count(&self) {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        assert!(calls < MAX_CALLS, "work without end");
    }

    fn fits(&self, end: u64) -> io::Result<()> {
        if end > self.space {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Storage for Counted {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.count();
        self.inner.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.count();
        self.fits(offset.saturating_add(data.len() as u64))?;
        self.inner.write_at(offset, data)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.count();
        self.inner.len_bytes()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.count();
        self.fits(len_bytes)?;
        self.inner.set_len(len_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.count();
        self.inner.sync()
    }

    fn start_writeback(&self, _offset: u64, _len_bytes: u64) {}
}

/// Where the structures of a sample are.
struct Places {
    cluster_size: u64,
    /// First bytes of clusters that are metadata.
    clusters: Vec<u64>,
    /// First bytes of entries of the tables, and of header fields of eight bytes.
    entries: Vec<u64>,
}

fn places(bytes: &Bytes) -> Places {
    let size = bytes.cluster_size();
    let header = bytes.header();
    let mut clusters = vec![0, bytes.l1_at(), bytes.table_at(), bytes.block_at(0)];
    clusters.extend((0..u64::from(header.l1_entries)).map(|index| bytes.l2_at(index)));
    if header.snapshot_count > 0 {
        clusters.extend([bytes.snapshots_at(), bytes.snapshot_l1_at()]);
    }
    if header.autoclear != 0 {
        let directory = bytes.directory_at();
        clusters.extend([directory, bytes.u64(directory)]);
    }
    clusters.retain(|at| *at == 0 || *at + 8 <= bytes.0.len() as u64);
    let mut entries = vec![
        8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 136,
    ];
    for at in &clusters {
        // The entries that say something, and their neighbours.
        let used = (*at..(*at + size).min(bytes.0.len() as u64 - 7)).step_by(8);
        entries.extend(used.filter(|entry| bytes.u64(*entry) != 0 || entry % 64 == 0));
    }
    Places {
        cluster_size: size,
        clusters,
        entries,
    }
}

/// Tells one to three lies.
fn mutate(bytes: &mut Bytes, places: &Places, rng: &mut fastrand::Rng) {
    let whole = bytes.0.len();
    for _ in 0..rng.usize(1..4) {
        let entry = rng.choice(&places.entries).copied().unwrap();
        let near = usize::try_from(entry).unwrap() + rng.usize(0..8);
        match rng.u8(0..9) {
            0 => bytes.0[near.min(whole - 1)] ^= 1 << rng.u8(0..8),
            1 => bytes.0[near.min(whole - 1)] = rng.u8(..),
            2..=5 => bytes.put_u64(entry, lie(bytes, places, rng)),
            6 => {
                let other = rng.choice(&places.entries).copied().unwrap();
                let (one, two) = (bytes.u64(entry), bytes.u64(other));
                bytes.put_u64(entry, two);
                bytes.put_u64(other, one);
            }
            7 => {
                let at = rng.usize(0..whole);
                bytes.0[at] = rng.u8(..);
            }
            _ => bytes.put(rng.u64(20..130), &[rng.u8(..)]),
        }
    }
    if rng.u8(0..10) == 0 {
        bytes.0.truncate(rng.usize(0..whole));
    }
}

/// An entry that points where it should not.
fn lie(bytes: &Bytes, places: &Places, rng: &mut fastrand::Rng) -> u64 {
    let len = bytes.0.len() as u64;
    let other = rng.choice(&places.entries).copied().unwrap();
    let target = match rng.u8(0..8) {
        0..=2 => rng.choice(&places.clusters).copied().unwrap(),
        3 => bytes.u64(other),
        4 => len.next_multiple_of(places.cluster_size),
        5 => len / places.cluster_size * places.cluster_size,
        6 => 1 << rng.u8(9..64),
        _ => rng.u64(0..2 * len),
    };
    target
        | match rng.u8(0..6) {
            0 | 1 => COPIED,
            2 => COPIED | 1,
            3 => COMPRESSED,
            4 => 1,
            _ => 0,
        }
}

/// How each cluster of a disk reads: `None` where that is an error.
fn view(storage: &Arc<Counted>) -> Vec<Option<Vec<u8>>> {
    let Ok(chain) = open_chain(storage.clone()) else {
        return vec![];
    };
    let size = chain.virtual_size_bytes();
    let cluster = u64::from(chain.layers()[0].1.cluster_size_bytes);
    let mut found = Vec::new();
    for number in 0..size.div_ceil(cluster).min(CLUSTERS) {
        let offset = number * cluster;
        let len = cluster.min(size - offset);
        let mut data = vec![0xa5; usize::try_from(len).unwrap()];
        let read = chain.read(offset, &mut data);
        if let Ok(extents) = chain.extents(offset, len) {
            let covered: u64 = extents.iter().map(|extent| extent.len_bytes).sum();
            assert_eq!(covered, len, "extents have gaps");
        }
        found.push(read.is_ok().then_some(data));
    }
    let beyond = chain.read(size, &mut [0]).unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::OutOfRange);
    found
}

/// Guest clusters whose host cluster somebody else uses, too: data over data is not what a writer can see.
fn shared(bytes: &Bytes) -> BTreeSet<u64> {
    let header = bytes.header();
    let geometry = header.geometry;
    let len = bytes.0.len() as u64;
    let read = |at: u64| {
        let inside = at.checked_add(8).is_some_and(|end| end <= len);
        if inside { bytes.u64(at) } else { 0 }
    };
    let size = geometry.cluster_size();
    let mut uses: HashMap<u64, u64> = HashMap::new();
    let mut note = |at: u64, len: u64| {
        for cluster in at / size..(at + len).div_ceil(size) {
            *uses.entry(cluster).or_default() += 1;
        }
    };
    note(0, size);
    note(header.l1_offset.0, u64::from(header.l1_entries) * 8);
    let table_len = u64::from(header.refcount_table_clusters) * size;
    note(header.refcount_table_offset.0, table_len);
    for at in (0..table_len).step_by(8) {
        let block = read(header.refcount_table_offset.0 + at);
        if block != 0 && block < len {
            note(block, size);
        }
    }
    let mut hosts = Vec::new();
    for index in 0..u64::from(header.l1_entries) {
        let table = read(header.l1_offset.0 + index * 8) & ENTRY_OFFSET;
        if table == 0 || table >= len {
            continue;
        }
        note(table, size);
        for number in 0..size / 8 {
            let entry = read(table + number * 8);
            let guest = index * (size / 8) + number;
            if entry & COMPRESSED != 0 {
                // Whatever it is: nothing it touches is looked at.
                let offset_bits = 62 - (geometry.cluster_bits() - 8);
                let offset = entry & ((1 << offset_bits) - 1);
                note(offset, 3 * size);
                note(offset, 3 * size);
            } else if entry & ENTRY_OFFSET != 0 {
                note(entry & ENTRY_OFFSET, size);
                hosts.push((guest, (entry & ENTRY_OFFSET) / size));
            }
        }
    }
    let taken = hosts.iter().filter(|(_, host)| uses[host] > 1);
    taken.map(|(guest, _)| *guest).collect()
}

/// Random requests; returns the clusters that they touch.
fn write(image: &Image, rng: &mut fastrand::Rng, touched: &mut BTreeSet<u64>) {
    let cluster = u64::from(image.info().cluster_size_bytes);
    let size = image.virtual_size_bytes().min(CLUSTERS * cluster);
    if size == 0 {
        return;
    }
    for _ in 0..rng.usize(2..9) {
        let offset = if rng.bool() { 0 } else { rng.u64(0..size) };
        let len = rng.u64(1..=(3 * cluster).min(size - offset));
        if rng.u8(0..4) == 0 {
            let _ = image.flush();
            continue;
        }
        touched.extend(offset / cluster..(offset + len).div_ceil(cluster));
        let _ = if rng.bool() {
            image.write(offset, &vec![rng.u8(1..); usize::try_from(len).unwrap()])
        } else {
            image.write_zeroes(offset, len, rng.bool())
        };
        let _ = image.read(offset, &mut vec![0; usize::try_from(len).unwrap()]);
        let _ = image.extents(offset, len);
    }
    let _ = image.flush();
    if rng.u8(0..6) == 0 {
        let _ = image.seal(&Seal::default());
    }
}

/// What was not written reads as before, whatever the image says.
fn run(bytes: &Bytes, rng: &mut fastrand::Rng) {
    let storage = Counted::new(bytes.0.clone());
    let _ = check(&*storage);
    let before = view(&storage);
    assert!(storage.inner.to_bytes() == bytes.0, "a reader wrote");
    let mut touched = BTreeSet::new();
    for _ in 0..2 {
        let is = storage.inner.to_bytes();
        match Image::open(storage.clone(), None) {
            Ok(image) => write(&image, rng, &mut touched),
            Err(_) => assert!(storage.inner.to_bytes() == is, "refused and changed"),
        }
    }
    let _ = check(&*storage);
    if touched.is_empty() {
        return;
    }
    let shared = shared(bytes);
    let after = view(&storage);
    for (number, before) in (0..).zip(&before) {
        let Some(before) = before else { continue };
        if touched.contains(&number) || shared.contains(&number) {
            continue;
        }
        let same = after.get(usize::try_from(number).unwrap());
        assert!(
            same.is_some_and(|after| after.as_ref() == Some(before)),
            "cluster {number} changed"
        );
    }
}

fn mutations(name: &str, sample: &Bytes, count: u64, seed: u64) {
    let places = places(sample);
    for number in 0..count {
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_add(number));
        let mut bytes = sample.clone();
        mutate(&mut bytes, &places, &mut rng);
        let result = catch_unwind(AssertUnwindSafe(|| run(&bytes, &mut rng)));
        assert!(
            result.is_ok(),
            "sample={name} SENDENSE_TEST_SEED={seed} number={number}"
        );
    }
}

fn seed() -> u64 {
    let seed = std::env::var("SENDENSE_TEST_SEED")
        .ok()
        .map_or_else(|| fastrand::u64(..), |text| text.parse().unwrap());
    eprintln!("SENDENSE_TEST_SEED={seed}");
    seed
}

#[test]
fn small_clusters() {
    let seed = seed();
    let samples = [
        ("version 3", Bytes::new(512)),
        ("version 2", Bytes::version_2(512)),
        ("snapshot", Bytes::new(512).with_snapshot()),
        ("bitmap", Bytes::new(512).with_bitmap()),
        ("both", Bytes::new(512).with_snapshot().with_bitmap()),
    ];
    for (name, sample) in samples {
        mutations(name, &sample, 1000, seed);
    }
}

#[test]
fn compressed_clusters_and_subclusters() {
    let seed = seed();
    let samples = [
        ("zlib", Bytes::compressed(512, CompressionType::Zlib), 500),
        ("zstd", Bytes::compressed(4096, CompressionType::Zstd), 500),
        ("extended", Bytes::extended(), 300),
    ];
    for (name, sample, count) in samples {
        assert!(sample.is_valid(), "sample={name}");
        let disk = read_all(sample.storage()).unwrap();
        assert!(disk.iter().any(|byte| *byte != 0), "sample={name}");
        mutations(name, &sample, count, seed);
    }
}

#[test]
fn every_cluster_size() {
    let seed = seed();
    for bits in 10..=21 {
        let count = match bits {
            10..=12 => 500,
            13..=16 => 100,
            _ => 6,
        };
        mutations(&format!("bits={bits}"), &Bytes::new(1 << bits), count, seed);
    }
}
