//! Hashes beside an image: they are right whatever was written how, a damaged sidecar is never believed, and a sealed
//! image is never without the whole of it.

#![expect(clippy::unwrap_used, reason = "a panic is the report")]

#[expect(dead_code, reason = "other tests use the rest of it")]
mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use qcow2::{
    BackingFormat, BackingName, Chain, ClusterHash, CompressionType, CreateOptions, Damage,
    DamageKind, Digest, Elision, ErrorKind, ExtentKind, FaultyStorage, Hashes, Image,
    MemoryStorage, OpenedBacking, Opener, Seal, Storage, Subset, VerifyReport, verify,
};
use support::{Folder, Model, random_data, random_request, rng, seed};

fn options(size: u64, cluster: u32, backing: Option<&str>) -> CreateOptions {
    let backing = backing.map(|name| BackingName {
        name: name.into(),
        format: Some(BackingFormat::Raw),
    });
    CreateOptions {
        cluster_size_bytes: cluster,
        backing,
        ..CreateOptions::new(size)
    }
}

fn seal_of(point: &str) -> Seal {
    Seal {
        point_id: point.into(),
        ..Seal::default()
    }
}

/// A parent that is the bytes of a disk.
fn raw_parent(bytes: Vec<u8>) -> Arc<Chain> {
    let storage = Arc::new(MemoryStorage::with_bytes(bytes));
    let folder = Folder("/nonexistent".into());
    Arc::new(Chain::open(storage, "base", BackingFormat::Raw, &folder).unwrap())
}

fn digest(bytes: &[u8]) -> ClusterHash {
    let hash = blake3::hash(bytes);
    ClusterHash::Data(Digest(*hash.as_bytes().first_chunk().unwrap()))
}

/// What the hashes must be, from what the image says of itself.
fn expected(image: &Image, cluster: u64) -> Vec<ClusterHash> {
    let size = image.virtual_size_bytes();
    let one = |at: u64| {
        let len = cluster.min(size - at);
        let extents = image.extents(at, len).unwrap();
        let own: Vec<_> = extents.iter().filter(|extent| extent.depth == 0).collect();
        match own.first().map(|extent| extent.kind) {
            None | Some(ExtentKind::Unallocated | ExtentKind::Beyond) => ClusterHash::Nothing,
            Some(ExtentKind::Zero) => ClusterHash::Zero,
            Some(ExtentKind::Data) => {
                let mut bytes = vec![0; usize::try_from(len).unwrap()];
                image.read(at, &mut bytes).unwrap();
                digest(&bytes)
            }
        }
    };
    (0..size.div_ceil(cluster))
        .map(|it| one(it * cluster))
        .collect()
}

fn found(hashes: &Hashes) -> Vec<ClusterHash> {
    let pages = (0..hashes.pages()).map(|page| hashes.page(page).unwrap());
    pages
        .flat_map(|page| page.iter().collect::<Vec<_>>())
        .collect()
}

/// Random requests, whole clusters among them, on random sizes, with and without a parent, and with a sidecar that
/// fails for a while: the sidecar says what the image holds.
#[test]
fn every_hash_is_that_of_what_the_image_holds() {
    let seed = seed();
    let mut rng = rng(seed);
    let mut kinds: HashMap<_, u32> = HashMap::new();
    for round in 0..120 {
        let cluster = 512_u32 << rng.u32(0..9);
        let sectors = rng.u64(1..6000);
        let size = sectors * 512;
        let base = rng
            .bool()
            .then(|| random_data(&mut rng, usize::try_from(size).unwrap()));
        let mut model = Model::new(size);
        let parent = base.map(|bytes| {
            model.put(0, &bytes);
            raw_parent(bytes)
        });
        let version = rng.u32(2..=3);
        let compression = match version {
            3 if rng.bool() => CompressionType::Zstd,
            _ => CompressionType::Zlib,
        };
        let options = CreateOptions {
            version,
            compression,
            ..options(size, cluster, parent.is_some().then_some("base"))
        };
        let storage = Arc::new(FaultyStorage::new());
        let sidecar = Arc::new(FaultyStorage::new());
        sidecar.write_at(0, &[0xa5; 70_000]).unwrap();
        let image = Image::create(storage.clone(), &options, parent).unwrap();
        let elision = if rng.bool() {
            Elision::Read
        } else {
            Elision::Off
        };
        let image = image
            .with_elision(elision)
            .with_hashes(sidecar.clone())
            .unwrap();
        if rng.u8(0..4) == 0 {
            sidecar.fail_after(rng.u64(0..20), std::io::ErrorKind::StorageFull);
        }
        for _ in 0..rng.usize(0..40) {
            if rng.bool() {
                let index = rng.u64(0..size.div_ceil(cluster.into()));
                let at = usize::try_from(index * u64::from(cluster)).unwrap();
                let count = usize::try_from(cluster).unwrap() * rng.usize(1..5);
                let count = count.min(model.bytes().len() - at);
                let data = random_data(&mut rng, count);
                let written = match rng.bool() {
                    true => image.write_compressed(at as u64, &data),
                    false => image.write(at as u64, &data),
                };
                written.unwrap();
                model.put(at, &data);
            } else {
                random_request(&mut rng, &image, &mut model);
            }
        }
        if rng.u8(0..8) == 0 {
            // A write that fails in the middle leaves something that only reading tells.
            storage.fail_after(rng.u64(0..4), std::io::ErrorKind::StorageFull);
            let at = rng.u64(0..size);
            let _ = image.write(at, &vec![7; usize::try_from(size - at).unwrap()]);
            storage.heal();
        }
        sidecar.heal();
        let expected = expected(&image, cluster.into());
        image.seal(&seal_of("point-1")).unwrap();
        let context = format!("seed={seed} round={round} cluster={cluster} size={size}");
        let report = verify(storage, sidecar.clone(), Subset::ALL).unwrap();
        assert_eq!(report.damages, [], "{context}");
        let hashes = Hashes::open(sidecar).unwrap();
        assert_eq!(
            Some(hashes.root()),
            image.info().seal.unwrap().hashes,
            "{context}"
        );
        assert_eq!(hashes.identity(), "point-1");
        assert_eq!(hashes.virtual_size_bytes(), size);
        assert_eq!(hashes.cluster_size_bytes(), u64::from(cluster));
        let hashes = found(&hashes);
        assert!(hashes == expected, "{context}");
        for hash in hashes {
            *kinds.entry(std::mem::discriminant(&hash)).or_default() += 1;
        }
    }
    assert_eq!(kinds.len(), 3, "seed={seed}: {kinds:?}");
}

/// Threads write parts of clusters and whole ones at once: the last word on each has the hash.
#[test]
fn hashes_follow_concurrent_writes() {
    const CLUSTER: u64 = 512;
    const CLUSTERS: u64 = 9000;
    let sidecar = Arc::new(MemoryStorage::new());
    let options = options(CLUSTER * CLUSTERS, 512, None);
    let image = Image::create(Arc::new(MemoryStorage::new()), &options, None).unwrap();
    let image = image.with_hashes(sidecar.clone()).unwrap();
    let start = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let (image, start) = (&image, &start);
            scope.spawn(move || {
                start.wait();
                for cluster in 0..CLUSTERS {
                    let at = cluster * CLUSTER;
                    match thread {
                        0 | 1 => image.write(at, &[thread + 1; 512]).unwrap(),
                        2 => image.write(at + 100, &[9; 100]).unwrap(),
                        _ if cluster % 3 == 0 => image.write_zeroes(at, 300, true).unwrap(),
                        _ => {}
                    }
                }
            });
        }
    });
    let expected = expected(&image, CLUSTER);
    image.seal(&seal_of("p")).unwrap();
    assert!(found(&Hashes::open(sidecar).unwrap()) == expected);
}

/// Counts the bytes that are read.
#[derive(Debug, Default)]
struct Counting {
    inner: MemoryStorage,
    read: AtomicU64,
}

impl Storage for Counting {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.read.fetch_add(into.len() as u64, Ordering::Relaxed);
        self.inner.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.inner.write_at(offset, data)
    }

    fn len_bytes(&self) -> std::io::Result<u64> {
        self.inner.len_bytes()
    }

    fn set_len(&self, len_bytes: u64) -> std::io::Result<()> {
        self.inner.set_len(len_bytes)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.inner.sync()
    }

    fn start_writeback(&self, _offset: u64, _len_bytes: u64) {}
}

/// Sealed images and their sidecars, by name.
#[derive(Default)]
struct Shelf(HashMap<String, (Arc<Counting>, Option<Arc<Counting>>)>);

impl Opener for Shelf {
    fn open_backing(&self, name: &BackingName, _of: &str) -> Result<OpenedBacking, qcow2::Error> {
        Ok(OpenedBacking {
            storage: self.0[&name.name].0.clone(),
            identity: name.name.clone(),
            format: BackingFormat::Qcow2,
        })
    }

    fn open_hashes(&self, of: &str) -> Option<Arc<dyn Storage>> {
        let sidecar = self.0[of].1.clone()?;
        Some(sidecar)
    }
}

impl Shelf {
    fn chain(&self, name: &str) -> Arc<Chain> {
        let tip = self.0[name].0.clone();
        Arc::new(Chain::open(tip, name, BackingFormat::Qcow2, self).unwrap())
    }

    /// A sealed image on top of another, written by `with`.
    fn add(
        &mut self,
        name: &str,
        below: Option<&str>,
        options: &CreateOptions,
        with: impl FnOnce(&Image),
    ) {
        let (storage, sidecar) = (Arc::new(Counting::default()), Arc::new(Counting::default()));
        let backing = below.map(|name| BackingName {
            name: name.into(),
            format: Some(BackingFormat::Qcow2),
        });
        let options = CreateOptions {
            backing,
            ..options.clone()
        };
        let parent = below.map(|name| self.chain(name));
        let image = Image::create(storage.clone(), &options, parent).unwrap();
        let image = image.with_hashes(sidecar.clone()).unwrap();
        with(&image);
        image.seal(&seal_of(name)).unwrap();
        self.0.insert(name.into(), (storage, Some(sidecar)));
    }

    /// An image on top of another, with nothing in it.
    fn increment(&self, below: &str, options: &CreateOptions, elision: Elision) -> Image {
        let backing = Some(BackingName {
            name: below.into(),
            format: Some(BackingFormat::Qcow2),
        });
        let options = CreateOptions {
            backing,
            ..options.clone()
        };
        let storage = Arc::new(MemoryStorage::new());
        let image = Image::create(storage, &options, Some(self.chain(below))).unwrap();
        image.with_elision(elision)
    }
}

/// Not zero anywhere.
fn busy(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from(at / 512 % 255 + 1).unwrap())
        .collect()
}

/// The same again is left out without a look at the parent's data, and what differs is stored.
#[test]
fn hashes_tell_what_the_parent_has_without_reading_it() {
    const SIZE: usize = (8 << 20) + 512;
    let mut bytes = busy(SIZE);
    let options = options(SIZE as u64, 65_536, None);
    let mut shelf = Shelf::default();
    shelf.add("full", None, &options, |image| {
        image.write(0, &bytes).unwrap();
    });
    bytes[3 << 20] ^= 1;
    shelf.add("next", Some("full"), &options, |image| {
        image.write(3 << 20, &bytes[3 << 20..4 << 20]).unwrap();
    });
    bytes[7 << 20] ^= 1;
    bytes[SIZE - 1] ^= 1;
    let mut counters = Vec::new();
    let elisions = [
        (Elision::Hash, 3 << 16),
        (Elision::Read, SIZE as u64 + (3 << 16)),
    ];
    for (elision, most) in elisions {
        let image = shelf.increment("next", &options, elision);
        let before: u64 = shelf
            .0
            .values()
            .map(|it| it.0.read.load(Ordering::Relaxed))
            .sum();
        for (index, part) in bytes.chunks(256 << 10).enumerate() {
            image.write((index * (256 << 10)) as u64, part).unwrap();
        }
        let after: u64 = shelf
            .0
            .values()
            .map(|it| it.0.read.load(Ordering::Relaxed))
            .sum();
        // L2 tables, and for the one that compares bytes all of the data.
        assert!(
            after - before <= most,
            "{elision:?} read={}",
            after - before
        );
        let mut read = vec![0; SIZE];
        image.read(0, &mut read).unwrap();
        assert!(read == bytes);
        counters.push(image.counters());
    }
    assert_eq!(counters[0], counters[1]);
    assert_eq!(counters[0].stored_bytes, 65_536 + 512);
    assert_eq!(counters[0].equal_bytes, SIZE as u64 - 65_536 - 512);
}

/// A hash says something about a cluster only if it covers just its bytes, and nothing above changed one of them.
#[test]
fn a_hash_of_other_bytes_decides_nothing() {
    let bytes = busy(8 * 4096);
    let sized = |sectors: u64, cluster| options(sectors * 512, cluster, None);
    let mut shelf = Shelf::default();
    shelf.add("full", None, &sized(64, 4096), |image| {
        image.write(0, &bytes).unwrap();
    });
    shelf.add("short", None, &sized(61, 4096), |image| {
        image.write(0, &bytes[..61 * 512]).unwrap();
    });
    shelf.add("fine", Some("full"), &sized(64, 512), |image| {
        image.write(2 * 4096, &[7; 512]).unwrap();
    });
    // Below, sectors of the disk, what is stored of the bytes of the full one.
    for (below, sectors, stored) in [
        ("full", 64, 0),
        ("full", 61, 0),
        ("short", 61, 0),
        ("short", 64, 4096),
        ("fine", 64, 4096),
    ] {
        for elision in [Elision::Hash, Elision::Read] {
            let image = shelf.increment(below, &sized(sectors, 4096), elision);
            let data = &bytes[..usize::try_from(sectors * 512).unwrap()];
            image.write(0, data).unwrap();
            let context = format!("below={below} sectors={sectors} {elision:?}");
            assert_eq!(image.counters().stored_bytes, stored, "{context}");
            let mut read = vec![0; data.len()];
            image.read(0, &mut read).unwrap();
            assert!(read == data, "{context}");
        }
    }
    // What the end of the shorter disk is followed by reads as zero.
    let mut data = bytes[..61 * 512].to_vec();
    data.resize(64 * 512, 0);
    let image = shelf.increment("short", &sized(64, 4096), Elision::Hash);
    image.write(0, &data).unwrap();
    assert_eq!(image.counters().stored_bytes, 0);
}

/// Chains of layers of many sizes, some without hashes, with those of another image or with damaged ones: whatever
/// decides, the bytes and the counters are those of a comparison of the bytes.
#[test]
fn elision_by_hash_and_by_bytes_agree() {
    let seed = seed();
    let mut rng = rng(seed);
    let mut equal_bytes = 0;
    for round in 0..60 {
        let context = format!("seed={seed} round={round}");
        let cluster = 512_u32 << rng.u32(0..6);
        let mut model = Model::new(0);
        let mut shelf = Shelf::default();
        let names = ["a", "b", "c", "d"];
        let depth = rng.usize(1..=3);
        let draw = |rng: &mut fastrand::Rng| {
            let cluster = if rng.u8(0..4) == 0 {
                512 << rng.u32(0..6)
            } else {
                cluster
            };
            options(rng.u64(50..900) * 512, cluster, None)
        };
        let usual = draw(&mut rng);
        let size_of = |rng: &mut fastrand::Rng| match rng.u8(0..4) {
            0 => draw(rng),
            _ => usual.clone(),
        };
        for level in 0..depth {
            let options = size_of(&mut rng);
            let mut now = Model::new(options.virtual_size_bytes);
            let shared = now.bytes().len().min(model.bytes().len());
            now.put(0, &model.bytes()[..shared]);
            model = now;
            let below = level.checked_sub(1).map(|below| names[below]);
            shelf.add(names[level], below, &options, |image| {
                for _ in 0..rng.usize(1..20) {
                    random_request(&mut rng, image, &mut model);
                }
            });
        }
        for level in 0..depth {
            match rng.u8(0..8) {
                0 => shelf.0.get_mut(names[level]).unwrap().1 = None,
                1 => {
                    let other = shelf.0[names[rng.usize(0..depth)]].1.clone();
                    shelf.0.get_mut(names[level]).unwrap().1 = other;
                }
                2 => {
                    let Some(sidecar) = &shelf.0[names[level]].1 else {
                        continue;
                    };
                    let at = rng.u64(0..sidecar.len_bytes().unwrap());
                    let mut byte = [0];
                    sidecar.read_at(at, &mut byte).unwrap();
                    sidecar.write_at(at, &[byte[0] ^ 0x10]).unwrap();
                }
                _ => {}
            }
        }
        let options = size_of(&mut rng);
        let size = usize::try_from(options.virtual_size_bytes).unwrap();
        let tip = names[depth - 1];
        let mut images =
            [Elision::Hash, Elision::Read].map(|it| shelf.increment(tip, &options, it));
        if rng.bool() {
            images = images.map(|image| image.with_hashes(Arc::new(MemoryStorage::new())).unwrap());
        }
        let mut now = Model::new(size as u64);
        let shared = size.min(model.bytes().len());
        now.put(0, &model.bytes()[..shared]);
        for _ in 0..30 {
            let at = rng.usize(0..size);
            let len = rng.usize(1..=size - at);
            let data = if rng.u8(0..3) == 0 {
                random_data(&mut rng, len)
            } else {
                // As the parent has it, but for a byte.
                let mut data = vec![0; len];
                let shared = model.bytes().len().saturating_sub(at).min(len);
                data[..shared]
                    .copy_from_slice(&model.bytes()[model.bytes().len().min(at)..][..shared]);
                data[rng.usize(0..len)] ^= rng.u8(0..2);
                data
            };
            for image in &images {
                image.write(at as u64, &data).unwrap();
            }
            now.put(at, &data);
        }
        for image in &images {
            let mut read = vec![0; size];
            image.read(0, &mut read).unwrap();
            assert!(read == now.bytes(), "{context}");
        }
        assert_eq!(images[0].counters(), images[1].counters(), "{context}");
        equal_bytes += images[0].counters().equal_bytes;
    }
    assert!(equal_bytes > 0, "nothing was left out: seed={seed}");
}

/// What was hashed when it came is not read when the image is sealed; what was not is, and nothing else.
#[test]
fn only_what_is_not_known_is_read_at_the_seal() {
    const SIZE: u64 = 64 << 20;
    let storage = Arc::new(Counting::default());
    let sidecar = Arc::new(MemoryStorage::new());
    let image = Image::create(storage.clone(), &options(SIZE, 65_536, None), None).unwrap();
    let image = image.with_hashes(sidecar).unwrap();
    for at in (0..SIZE / 2).step_by(256 << 10) {
        image.write(at, &vec![5; 256 << 10]).unwrap();
    }
    for cluster in [3, 4, 700] {
        image.write(cluster * 65_536 + 1, &[6; 100]).unwrap();
    }
    image.flush().unwrap();
    let before = storage.read.load(Ordering::Relaxed);
    image.seal(&seal_of("p")).unwrap();
    let read = storage.read.load(Ordering::Relaxed) - before;
    // Three clusters of data, and the first cluster of the file twice for the header.
    assert!((3 * 65_536..6 * 65_536).contains(&read), "read={read}");
}

/// Two pages with something in them, one without, the last one short; in the last cluster half of it is the disk's.
fn sealed() -> (Vec<u8>, Vec<u8>) {
    const CLUSTER: u64 = 1024;
    let size = (2 * 4096 + 3) * CLUSTER + 512;
    let (storage, sidecar) = (
        Arc::new(MemoryStorage::new()),
        Arc::new(MemoryStorage::new()),
    );
    let image = Image::create(storage.clone(), &options(size, 1024, None), None).unwrap();
    let image = image.with_hashes(sidecar.clone()).unwrap();
    image.write(0, &[1; 5000]).unwrap();
    image.write_zeroes(1024, 1024, true).unwrap();
    image.write(size - 1500, &[2; 1500]).unwrap();
    image.seal(&seal_of("point-1")).unwrap();
    (storage.to_bytes(), sidecar.to_bytes())
}

/// As [`sealed`], small and compressed: clusters of the file that several share, and one that is stored as it is.
fn sealed_compressed() -> (Vec<u8>, Vec<u8>) {
    const CLUSTER: usize = 4096;
    let (storage, sidecar) = (
        Arc::new(MemoryStorage::new()),
        Arc::new(MemoryStorage::new()),
    );
    let options = options(20 * CLUSTER as u64 - 512, 4096, None);
    let image = Image::create(storage.clone(), &options, None).unwrap();
    let image = image.with_hashes(sidecar.clone()).unwrap();
    let mut data = busy(20 * CLUSTER - 512);
    rng(1).fill(&mut data[7 * CLUSTER..8 * CLUSTER]);
    image.write_compressed(0, &data).unwrap();
    image.write(3 * CLUSTER as u64 + 1, &[1; 100]).unwrap();
    image.seal(&seal_of("point-1")).unwrap();
    (storage.to_bytes(), sidecar.to_bytes())
}

fn open(sidecar: Vec<u8>) -> Result<Vec<ClusterHash>, qcow2::Error> {
    let hashes = Hashes::open(Arc::new(MemoryStorage::with_bytes(sidecar)))?;
    let mut all = Vec::new();
    for page in 0..hashes.pages() {
        all.extend(hashes.page(page)?.iter());
    }
    Ok(all)
}

/// A changed bit or a missing end is found, wherever it is; only a page that is not there has nothing to find.
#[test]
fn a_damaged_sidecar_is_refused_wherever_it_is_damaged() {
    let (_, whole) = sealed();
    let entries = 4096;
    assert_eq!(whole.len(), entries + (2 * 4096 + 4) * 16);
    let all = open(whole.clone()).unwrap();
    for at in 0..whole.len() {
        let is_hole = (entries + 65_536..entries + 2 * 65_536).contains(&at);
        if (at > 8192 && at % 61 > 0 && at < whole.len() - 200) || is_hole && at % 997 > 0 {
            continue;
        }
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        match open(damaged) {
            Ok(found) => assert!(is_hole && found == all, "at={at}"),
            Err(error) => {
                let kind = error.kind();
                let kinds = [ErrorKind::Corrupt, ErrorKind::Unsupported];
                assert!(kinds.contains(&kind) && !is_hole, "at={at}: {error}");
            }
        }
    }
    for len in (0..whole.len()).step_by(211).chain([whole.len() - 1]) {
        assert!(open(whole[..len].to_vec()).is_err(), "len={len}");
    }
    let mut longer = whole;
    longer.push(0);
    assert!(open(longer).is_err());
}

proptest! {
    /// Any bytes, with a header that is right as far as the case goes: an error or hashes, never a panic, and no more
    /// memory than a page needs.
    #[test]
    fn any_bytes_are_refused_or_read(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..9000),
        known in 0_usize..60,
        words in proptest::collection::vec(any::<u64>(), 3),
    ) {
        let (_, whole) = sealed();
        let known = known.min(bytes.len());
        bytes[..known].copy_from_slice(&whole[..known]);
        let _ = open(bytes.clone());
        // Sizes that lie.
        if bytes.len() >= 48 {
            bytes[..24].copy_from_slice(&whole[..24]);
            for (index, word) in words.iter().enumerate() {
                bytes[24 + index * 8..32 + index * 8].copy_from_slice(&word.to_be_bytes());
            }
            let _ = open(bytes);
        }
    }
}

#[test]
fn sizes_that_lie_cost_nothing() {
    let (_, whole) = sealed();
    for (cluster, size) in [
        (512_u64, 1_u64 << 43),
        (1 << 21, u64::MAX),
        (1 << 21, 1 << 55),
    ] {
        let mut bytes = whole.clone();
        bytes[24..32].copy_from_slice(&cluster.to_be_bytes());
        bytes[32..40].copy_from_slice(&size.to_be_bytes());
        let error = open(bytes).unwrap_err();
        assert!(error.to_string().contains("="), "{error}");
    }
}

#[test]
fn names_and_states_that_cannot_be_are_refused() {
    let fresh = || {
        let image = Image::create(
            Arc::new(MemoryStorage::new()),
            &options(1 << 20, 65_536, None),
            None,
        );
        image
            .unwrap()
            .with_hashes(Arc::new(MemoryStorage::new()))
            .unwrap()
    };
    for point in ["", &"x".repeat(256)] {
        let error = fresh().seal(&seal_of(point)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    let image = fresh();
    image.seal(&seal_of(&"x".repeat(255))).unwrap();
    assert_eq!(
        image.write(0, &[1]).unwrap_err().kind(),
        ErrorKind::ReadOnly
    );
    // Working state is nothing that a reader takes for hashes.
    let sidecar = Arc::new(MemoryStorage::new());
    let image = Image::create(
        Arc::new(MemoryStorage::new()),
        &options(1 << 20, 65_536, None),
        None,
    );
    let image = image.unwrap().with_hashes(sidecar.clone()).unwrap();
    image.write(0, &[1; 65_536]).unwrap();
    assert!(open(sidecar.to_bytes()).is_err());
}

/// Positions in both files, after each of their events.
type Moments = Arc<Mutex<Vec<[usize; 2]>>>;

/// A file whose changes have their place in the order of both files.
#[derive(Debug)]
struct Joint {
    files: [Arc<FaultyStorage>; 2],
    own: usize,
    moments: Moments,
}

impl Joint {
    fn pair() -> ([Arc<Self>; 2], Moments) {
        let files = [
            Arc::new(FaultyStorage::new()),
            Arc::new(FaultyStorage::new()),
        ];
        let moments = Arc::new(Mutex::new(vec![[0, 0]]));
        let one = |own| {
            Arc::new(Self {
                files: files.clone(),
                own,
                moments: moments.clone(),
            })
        };
        ([one(0), one(1)], moments)
    }

    fn after<T>(&self, done: T) -> T {
        let moment = [self.files[0].position(), self.files[1].position()];
        self.moments.lock().unwrap().push(moment);
        done
    }

    fn file(&self) -> &FaultyStorage {
        &self.files[self.own]
    }
}

impl Storage for Joint {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.file().read_at(offset, into)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.after(self.file().write_at(offset, data))
    }

    fn len_bytes(&self) -> std::io::Result<u64> {
        self.file().len_bytes()
    }

    fn set_len(&self, len_bytes: u64) -> std::io::Result<()> {
        self.after(self.file().set_len(len_bytes))
    }

    fn sync(&self) -> std::io::Result<()> {
        self.after(self.file().sync())
    }

    fn start_writeback(&self, _offset: u64, _len_bytes: u64) {}
}

/// The power fails for both files at one moment: there is no seal, or there is all of the sidecar that it names.
#[test]
fn a_cut_leaves_no_seal_or_the_whole_sidecar() {
    let seed = seed();
    let mut rng = rng(seed);
    let (mut open_cuts, mut sealed_cuts) = (0, 0);
    for _ in 0..25 {
        let ([file, sidecar], moments) = Joint::pair();
        let cluster = 512_u32 << rng.u32(1..4);
        let size = rng.u64(10..5000) * 1024;
        let image = Image::create(file.clone(), &options(size, cluster, None), None).unwrap();
        let created = moments.lock().unwrap().len();
        let image = image.with_hashes(sidecar.clone()).unwrap();
        let mut model = Model::new(size);
        for _ in 0..10 {
            random_request(&mut rng, &image, &mut model);
        }
        let expected = expected(&image, cluster.into());
        image.seal(&seal_of("p")).unwrap();
        let moments = moments.lock().unwrap().clone();
        for _ in 0..40 {
            // Most of them around the seal.
            let first = if rng.bool() {
                created
            } else {
                moments.len().saturating_sub(8).max(created)
            };
            let moment = moments[rng.usize(first..moments.len())];
            let context = format!("seed={seed} moment={moment:?}");
            let [image, hashes] =
                [0, 1].map(|own| Arc::new(file.files[own].cut(moment[own], rng.u64(..))));
            let folder = Folder("/nonexistent".into());
            let chain = Chain::open(image, "p", BackingFormat::Qcow2, &folder).unwrap();
            let Some(seal) = chain.layers().remove(0).1.seal else {
                open_cuts += 1;
                continue;
            };
            sealed_cuts += 1;
            let hashes = Hashes::open(hashes).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(seal.hashes, Some(hashes.root()), "{context}");
            assert!(found(&hashes) == expected, "{context}");
        }
    }
    assert!(
        open_cuts > 50 && sealed_cuts > 50,
        "open={open_cuts} sealed={sealed_cuts}"
    );
}

fn verified(image: &[u8], sidecar: &[u8], subset: Subset) -> Result<VerifyReport, qcow2::Error> {
    let [image, sidecar] =
        [image, sidecar].map(|bytes| Arc::new(MemoryStorage::with_bytes(bytes.to_vec())));
    verify(image, sidecar, subset)
}

/// Where the data of each cluster of a one-layer image lies: guest offset, host offset, bytes.
fn data_clusters(image: &[u8], cluster: u64) -> Vec<(u64, u64, u64)> {
    let storage = Arc::new(MemoryStorage::with_bytes(image.to_vec()));
    let folder = Folder("/nonexistent".into());
    let chain = Chain::open(storage, "i", BackingFormat::Qcow2, &folder).unwrap();
    let size = chain.virtual_size_bytes();
    let extents = chain.extents(0, size).unwrap();
    let data = extents
        .iter()
        .filter(|extent| extent.kind == ExtentKind::Data);
    let of_one = |extent: &qcow2::Extent| {
        let (from, host) = (extent.offset, extent.host_offset.unwrap());
        let end = from + extent.len_bytes;
        (from..end)
            .step_by(usize::try_from(cluster).unwrap())
            .map(move |at| (at, host + (at - from), cluster.min(end - at)))
            .collect::<Vec<_>>()
    };
    data.flat_map(of_one).collect()
}

#[test]
fn a_changed_byte_of_data_is_named() {
    let (image, sidecar) = sealed();
    let clusters = data_clusters(&image, 1024);
    let clean = verified(&image, &sidecar, Subset::ALL).unwrap();
    let checked_clusters = clusters.len() as u64;
    assert_eq!(
        clean,
        VerifyReport {
            checked_clusters,
            ..VerifyReport::default()
        }
    );
    assert!(checked_clusters >= 6);
    for (offset, host, len_bytes) in clusters {
        for at in [0, len_bytes - 1] {
            let mut damaged = image.clone();
            damaged[usize::try_from(host + at).unwrap()] ^= 0x40;
            let report = verified(&damaged, &sidecar, Subset::ALL).unwrap();
            let kind = DamageKind::Content;
            assert_eq!(
                report.damages,
                [Damage {
                    offset,
                    len_bytes,
                    kind
                }]
            );
            assert_eq!(
                (report.damaged_clusters, report.mapping_differences),
                (1, 0)
            );
        }
    }
}

/// An entry that lost its data, became zero, or turned up from nowhere; a file that ends early; a page of hashes that is
/// damaged.
#[test]
fn what_is_missing_is_named() {
    let (image, sidecar) = sealed();
    let clusters = data_clusters(&image, 1024);
    let word = |at: u64| {
        let at = usize::try_from(at).unwrap();
        u64::from_be_bytes(*image[at..].first_chunk().unwrap())
    };
    // The first L2 table: cluster 0 is data, cluster 1 zero, cluster 9 nothing.
    let table = word(word(40)) & 0x00ff_ffff_ffff_fe00;
    let with = |cluster: u64, entry: u64, part: u64| {
        let mut changed = image.clone();
        let at = usize::try_from(table + cluster * 8).unwrap();
        changed[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        verified(&changed, &sidecar, Subset::new(part, 2).unwrap()).unwrap()
    };
    let data = word(table);
    for (cluster, entry) in [
        (0, 0),
        (0, 1),
        (0, data | 0x1e),
        (1, 0),
        (1, data),
        (9, 1),
        (9, data),
    ] {
        let report = with(cluster, entry, 2);
        let offset = cluster * 1024;
        let damage = Damage {
            offset,
            len_bytes: 1024,
            kind: DamageKind::Mapping,
        };
        assert_eq!(
            report.damages,
            [damage],
            "cluster={cluster} entry={entry:#x}"
        );
        assert_eq!(report.mapping_differences, 1);
    }
    assert_eq!(with(0, data, 1).damages, []);
    // Data beyond the end of the file; the part that does not read it does not know.
    assert_eq!(with(0, data + (1 << 30), 2).damages, []);
    let kind = DamageKind::Unreadable;
    let damage = Damage {
        offset: 0,
        len_bytes: 1024,
        kind,
    };
    assert_eq!(with(0, data + (1 << 30), 1).damages, [damage]);

    let last = clusters.iter().map(|cluster| cluster.1).max().unwrap();
    let cut = &image[..usize::try_from(last).unwrap()];
    let report = verified(cut, &sidecar, Subset::ALL).unwrap();
    assert_eq!(report.damaged_clusters, 1, "{report:?}");

    let mut damaged = sidecar.clone();
    damaged[4096 + 5] ^= 1;
    let report = verified(&image, &damaged, Subset::ALL).unwrap();
    let kind = DamageKind::Hashes;
    assert_eq!(
        report.damages,
        [Damage {
            offset: 0,
            len_bytes: 4096 * 1024,
            kind
        }]
    );
    assert_eq!(report.damaged_clusters, 4096);
}

/// Each part reads its own, all parts read all; more faults are counted than are kept.
#[test]
fn parts_make_a_whole() {
    const SIZE: u64 = 6 << 20;
    let (storage, sidecar) = (
        Arc::new(MemoryStorage::new()),
        Arc::new(MemoryStorage::new()),
    );
    let image = Image::create(storage.clone(), &options(SIZE, 4096, None), None).unwrap();
    let image = image.with_hashes(sidecar.clone()).unwrap();
    image.write(0, &busy(6 << 20)).unwrap();
    image.seal(&seal_of("p")).unwrap();
    let (mut image, sidecar) = (storage.to_bytes(), sidecar.to_bytes());
    // Every second cluster.
    for (_, host, _) in data_clusters(&image, 4096).iter().step_by(2) {
        image[usize::try_from(host + 7).unwrap()] ^= 1;
    }
    let clusters = SIZE / 4096;
    let (mut checked, mut damaged) = (0, 0);
    for part in 1..=5 {
        let report = verified(&image, &sidecar, Subset::new(part, 5).unwrap()).unwrap();
        assert_eq!(report.checked_clusters + report.skipped_clusters, clusters);
        assert!(report.checked_clusters < clusters / 3 && report.checked_clusters > 0);
        checked += report.checked_clusters;
        damaged += report.damaged_clusters;
    }
    assert_eq!((checked, damaged), (clusters, clusters / 2));
    let report = verified(&image, &sidecar, Subset::ALL).unwrap();
    assert_eq!(
        (report.damaged_clusters, report.damages.len()),
        (clusters / 2, 100)
    );
    assert!(Subset::new(0, 5).is_err() && Subset::new(6, 5).is_err());
}

#[test]
fn a_sidecar_of_another_image_is_refused() {
    let (image, sidecar) = sealed();
    let (storage, other) = (
        Arc::new(MemoryStorage::new()),
        Arc::new(MemoryStorage::new()),
    );
    let size = (2 * 4096 + 3) * 1024 + 512;
    let open = Image::create(storage.clone(), &options(size, 1024, None), None).unwrap();
    let open = open.with_hashes(other.clone()).unwrap();
    let unsealed = storage.to_bytes();
    open.seal(&seal_of("point-1")).unwrap();
    let error = verified(&image, &other.to_bytes(), Subset::ALL).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let error = verified(&unsealed, &sidecar, Subset::ALL).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

/// Any damage anywhere in the file: an error or a report, never a panic; and no data that changed is called good.
#[test]
fn no_damage_is_called_good() {
    let seed = seed();
    let mut rng = rng(seed);
    for (image, sidecar) in [sealed(), sealed_compressed()] {
        let report = verified(&image, &sidecar, Subset::ALL).unwrap();
        assert!(report.damages.is_empty() && report.checked_clusters > 0);
        let storage = Arc::new(MemoryStorage::with_bytes(image.clone()));
        let folder = Folder("/nonexistent".into());
        let whole = Chain::open(storage, "i", BackingFormat::Qcow2, &folder).unwrap();
        let mut bytes = vec![0; usize::try_from(whole.virtual_size_bytes()).unwrap()];
        whole.read(0, &mut bytes).unwrap();
        for _ in 0..400 {
            let mut damaged = image.clone();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(0..damaged.len());
                damaged[at] ^= rng.u8(1..);
            }
            let report = verified(&damaged, &sidecar, Subset::ALL);
            let storage = Arc::new(MemoryStorage::with_bytes(damaged));
            let chain = Chain::open(storage, "i", BackingFormat::Qcow2, &folder);
            let mut read = vec![0; bytes.len()];
            let same = chain.is_ok_and(|chain| {
                chain.virtual_size_bytes() == bytes.len() as u64 && chain.read(0, &mut read).is_ok()
            }) && read == bytes;
            let good = report.is_ok_and(|report| report.damaged_clusters == 0);
            assert!(same || !good, "seed={seed}");
        }
    }
}
