//! Compressed clusters of our own: random traces, sharing, threads, power cuts, a full disk.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a panic is the report; counts are printed"
)]

use std::sync::Arc;

use qcow2::{
    BackingFormat, BackingName, Chain, CompressionType, CreateOptions, Error, ErrorKind,
    ExtentKind, FaultyStorage, Image, MemoryStorage, OpenedBacking, Opener, Storage, check,
};

const TYPES: [CompressionType; 2] = [CompressionType::Zlib, CompressionType::Zstd];

struct NoOpener;

impl Opener for NoOpener {
    fn open_backing(&self, name: &BackingName, _of: &str) -> Result<OpenedBacking, Error> {
        Err(Error::new(ErrorKind::NotFound, name.name.clone()))
    }
}

fn seed() -> u64 {
    let text = std::env::var("SENDENSE_TEST_SEED").ok();
    let seed = text.map_or_else(|| fastrand::u64(..), |text| text.parse().unwrap());
    println!("SENDENSE_TEST_SEED={seed}");
    seed
}

fn options(size: usize, cluster: usize, compression: CompressionType) -> CreateOptions {
    CreateOptions {
        cluster_size_bytes: u32::try_from(cluster).unwrap(),
        compression,
        ..CreateOptions::new(size as u64)
    }
}

/// Zero, noise that stays as it is, or what gets smaller by much or by little.
fn random_cluster(rng: &mut fastrand::Rng, len: usize) -> Vec<u8> {
    let kinds = [1, 2, 4, 32, 128, 255][rng.usize(0..6)];
    let base = rng.u8(0..4);
    (0..len)
        .map(|_| base.wrapping_add(rng.u8(..kinds)) & 0xfe)
        .collect()
}

/// One random request, on both: compressed, plain, zeroes, a flush.
fn random_request(rng: &mut fastrand::Rng, image: &Image, model: &mut [u8], cluster: usize) {
    let size = model.len();
    let offset = rng.usize(0..size);
    let end = size.min(offset + rng.usize(1..=4 * cluster));
    match rng.u8(0..10) {
        0..5 => {
            let (start, end) = (
                offset / cluster * cluster,
                size.min(end.next_multiple_of(cluster)),
            );
            for part in model[start..end].chunks_mut(cluster) {
                part.copy_from_slice(&random_cluster(rng, part.len()));
            }
            image
                .write_compressed(start as u64, &model[start..end])
                .unwrap();
        }
        5..7 => {
            let data = random_cluster(rng, end - offset);
            image.write(offset as u64, &data).unwrap();
            model[offset..end].copy_from_slice(&data);
        }
        7..9 => {
            let len = (end - offset) as u64;
            image.write_zeroes(offset as u64, len, rng.bool()).unwrap();
            model[offset..end].fill(0);
        }
        _ => image.flush().unwrap(),
    }
}

fn read_all(image: &Image) -> Vec<u8> {
    let mut read = vec![0xa5; usize::try_from(image.virtual_size_bytes()).unwrap()];
    image.read(0, &mut read).unwrap();
    read
}

fn chain(storage: Arc<dyn Storage>) -> Chain {
    Chain::open(storage, "image", BackingFormat::Qcow2, &NoOpener).unwrap()
}

/// Every cluster size and refcount width, both types: what is written compressed mixes with everything else.
#[test]
fn random_traces_are_clean_and_equal() {
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    // A stretch of the cycle of all pairs.
    let first = rng.usize(0..13 * 7);
    for round in first..first + 13 * 3 {
        let cluster = 512 << (round % 13);
        let refcount_bits = 1 << (round % 7);
        let compression = TYPES[rng.usize(0..2)];
        // Large clusters are as much work with fewer of them.
        let (clusters, requests) = match cluster {
            0..8192 => (5..40, 25),
            8192..65_536 => (3..10, 12),
            _ => (1..3, 4),
        };
        let size = rng.usize(clusters) * cluster + 512 * rng.usize(0..cluster / 512);
        let context = format!("seed={seed} round={round} cluster={cluster} {compression:?}");
        let options = CreateOptions {
            refcount_bits,
            ..options(size, cluster, compression)
        };
        let storage = Arc::new(MemoryStorage::new());
        let mut image = Image::create(storage.clone(), &options, None).unwrap();
        let mut model = vec![0; size];
        for _ in 0..3 {
            for _ in 0..requests {
                random_request(&mut rng, &image, &mut model, cluster);
                assert!(read_all(&image) == model, "{context}");
            }
            image.flush().unwrap();
            let report = check(&*storage).unwrap();
            assert!(report.is_clean(), "{context}: {report:?}");
            image = Image::open(storage.clone(), None).unwrap();
            assert!(read_all(&image) == model, "reopened: {context}");
        }
        let mut read = vec![0; size];
        chain(storage).read(0, &mut read).unwrap();
        assert!(read == model, "chain: {context}");
    }
}

/// Sixteen clusters of 64 KiB that compress to a sector or two share as many as their refcounts can count.
#[test]
fn compressed_clusters_share_as_refcounts_allow() {
    const CLUSTER: usize = 65_536;
    for (refcount_bits, data_clusters) in [(1, 16), (2, 6), (4, 2), (16, 1)] {
        let options = CreateOptions {
            refcount_bits,
            ..options(16 * CLUSTER, CLUSTER, CompressionType::Zlib)
        };
        let storage = Arc::new(MemoryStorage::new());
        let image = Image::create(storage.clone(), &options, None).unwrap();
        let empty = check(&*storage).unwrap().image_end_offset;
        image.write_compressed(0, &[7; 16 * CLUSTER]).unwrap();
        image.flush().unwrap();
        let report = check(&*storage).unwrap();
        assert!(report.is_clean(), "bits={refcount_bits}: {report:?}");
        // One of them is the L2 table.
        let taken = (report.image_end_offset - empty) / CLUSTER as u64;
        assert_eq!(taken, data_clusters + 1, "bits={refcount_bits}");
        let extents = image.extents(0, 16 * CLUSTER as u64).unwrap();
        let compressed = extents.iter().all(|extent| extent.host_offset.is_none());
        assert!(compressed && extents[0].kind == ExtentKind::Data);
    }
}

/// The cluster that is being filled loses its last reference and becomes plain data: nothing more goes into it.
#[test]
fn a_freed_cluster_is_not_filled_further() {
    const CLUSTER: usize = 4096;
    let storage = Arc::new(MemoryStorage::new());
    let options = options(8 * CLUSTER, CLUSTER, CompressionType::Zstd);
    let image = Image::create(storage.clone(), &options, None).unwrap();
    image.write_compressed(0, &[1; CLUSTER]).unwrap();
    image.flush().unwrap();
    image.write(0, &[2; CLUSTER]).unwrap();
    image.flush().unwrap();
    image.write(CLUSTER as u64, &[3; CLUSTER]).unwrap();
    image
        .write_compressed(2 * CLUSTER as u64, &[4; CLUSTER])
        .unwrap();
    image.flush().unwrap();
    assert!(check(&*storage).unwrap().is_clean());
    let read = read_all(&image);
    for (cluster, value) in read.chunks(CLUSTER).zip([2, 3, 4, 0, 0, 0, 0, 0]) {
        assert!(cluster.iter().all(|byte| *byte == value), "value={value}");
    }
}

/// Zero clusters are facts, noise stays as it is, and only whole clusters are taken.
#[test]
fn what_does_not_get_smaller_is_stored_as_it_is() {
    const CLUSTER: usize = 4096;
    let storage = Arc::new(MemoryStorage::new());
    let size = 3 * CLUSTER + 512;
    let image = Image::create(storage, &options(size, CLUSTER, TYPES[0]), None).unwrap();
    let mut data = vec![0; size];
    fastrand::Rng::with_seed(1).fill(&mut data[..CLUSTER]);
    data[2 * CLUSTER..].fill(9);
    image.write_compressed(0, &data).unwrap();
    assert!(read_all(&image) == data);
    let found: Vec<_> = image
        .extents(0, size as u64)
        .unwrap()
        .iter()
        .map(|extent| (extent.len_bytes, extent.kind, extent.host_offset.is_some()))
        .collect();
    let cluster = CLUSTER as u64;
    let expected = [
        (cluster, ExtentKind::Data, true),
        (cluster, ExtentKind::Unallocated, false),
        (cluster + 512, ExtentKind::Data, false),
    ];
    assert_eq!(found, expected);
    let counters = image.counters();
    assert_eq!(counters.zero_bytes, cluster);
    assert_eq!(counters.stored_bytes, 2 * cluster + 512);
    for (offset, len) in [(1, CLUSTER), (0, CLUSTER - 1), (cluster, 2 * CLUSTER + 511)] {
        let result: Result<(), Error> = image.write_compressed(offset, &vec![1; len]);
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[test]
fn zstd_needs_version_three() {
    let options = CreateOptions {
        version: 2,
        ..options(1 << 20, 65_536, CompressionType::Zstd)
    };
    let error = Image::create(Arc::new(MemoryStorage::new()), &options, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

/// Threads that write whole clusters compressed, parts of them, and zeroes: each cluster is what its own thread made it.
#[test]
fn threads_share_clusters_of_the_file() {
    const CLUSTER: usize = 8192;
    const CLUSTERS: usize = 96;
    let seed = seed();
    let storage = Arc::new(MemoryStorage::new());
    let options = options(CLUSTER * CLUSTERS, CLUSTER, CompressionType::Zstd);
    let image = Image::create(storage.clone(), &options, None).unwrap();
    let run = |thread: usize| {
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_add(thread as u64));
        let mut own = vec![vec![0; CLUSTER]; CLUSTERS / 4];
        for _ in 0..200 {
            let index = rng.usize(0..own.len());
            let at = ((index * 4 + thread) * CLUSTER) as u64;
            let model = &mut own[index];
            match rng.u8(0..6) {
                0 => image.flush().unwrap(),
                1 => {
                    image.write_zeroes(at + 100, 5000, rng.bool()).unwrap();
                    model[100..5100].fill(0);
                }
                2 => {
                    image.write(at + 700, &[rng.u8(1..); 300]).unwrap();
                    image.read(at, model).unwrap();
                }
                _ => {
                    *model = random_cluster(&mut rng, CLUSTER);
                    image.write_compressed(at, model).unwrap();
                }
            }
        }
        own
    };
    let model: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..4).map(|at| scope.spawn(move || run(at))).collect();
        let parts: Vec<_> = threads.into_iter().map(|it| it.join().unwrap()).collect();
        (0..CLUSTERS)
            .map(|at| parts[at % 4][at / 4].clone())
            .collect()
    });
    assert!(read_all(&image) == model.concat(), "seed={seed}");
    image.flush().unwrap();
    let report = check(&*storage).unwrap();
    assert!(report.is_clean(), "seed={seed}: {report:?}");
}

/// The disk as it was flushed last, and as it was after each request since.
struct Promise {
    from: usize,
    disks: Vec<(usize, Vec<u8>)>,
}

/// The power fails anywhere: each cluster is as it was flushed or as a later request made it (compressed ones as a
/// whole), and the survivor takes more.
#[test]
fn any_cut_leaves_what_was_flushed() {
    const SECTOR: usize = 512;
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut cuts = 0;
    for round in 0..20 {
        let cluster = 1024 << rng.usize(0..5);
        let size = rng.usize(100..400) * SECTOR;
        let options = CreateOptions {
            refcount_bits: 1 << rng.u32(0..7),
            ..options(size, cluster, TYPES[round % 2])
        };
        let storage = Arc::new(FaultyStorage::new());
        let image = Image::create(storage.clone(), &options, None).unwrap();
        let mut model = vec![0; size];
        let start = storage.position();
        let mut promises = vec![Promise {
            from: start,
            disks: vec![(0, model.clone())],
        }];
        for _ in 0..rng.usize(10..50) {
            if rng.u8(0..5) == 0 {
                image.flush().unwrap();
                promises.push(Promise {
                    from: storage.position(),
                    disks: vec![(0, model.clone())],
                });
            }
            let before = storage.position();
            random_request(&mut rng, &image, &mut model, cluster);
            let later = &mut promises.last_mut().unwrap().disks;
            later.push((before, model.clone()));
        }
        let end = storage.position();
        for _ in 0..30 {
            let at = rng.usize(start..=end);
            let context = format!("seed={seed} round={round} at={at}/{end} cluster={cluster}");
            let cut: Arc<dyn Storage> = Arc::new(storage.cut(at, rng.u64(..)));
            let report = check(&*cut).unwrap();
            assert_eq!(report.corruptions, 0, "{context}: {report:?}");
            let image = Image::open(cut.clone(), None).unwrap();
            let read = read_all(&image);
            let promise = promises.iter().rev().find(|it| it.from <= at).unwrap();
            let mut possible = promise.disks.iter().filter(|(before, _)| *before <= at);
            for sector in (0..size).step_by(SECTOR).map(|at| at..at + SECTOR) {
                let known = possible
                    .clone()
                    .any(|(_, disk)| disk[sector.clone()] == read[sector.clone()]);
                assert!(known, "{context}: {sector:?} is neither old nor new");
            }
            assert!(possible.next().is_some());
            let whole = size / cluster * cluster;
            image.write_compressed(0, &vec![3; whole]).unwrap();
            image.flush().unwrap();
            let report = check(&*cut).unwrap();
            assert_eq!(
                report.corruptions, 0,
                "{context}: after a write: {report:?}"
            );
            assert!(read_all(&image)[..whole].iter().all(|byte| *byte == 3));
            cuts += 1;
        }
    }
    println!("cuts={cuts}");
    assert_eq!(cuts, 600);
}

/// Streams that could not be written leave no reference and no count behind.
#[test]
fn a_full_disk_is_an_error_and_not_the_end() {
    const CLUSTER: usize = 4096;
    // Six bits of eight: most streams lie in two clusters of the file.
    let mut rng = fastrand::Rng::with_seed(11);
    let noise: Vec<u8> = (0..20 * CLUSTER).map(|_| rng.u8(..64)).collect();
    for writes in 0..8 {
        let storage = Arc::new(FaultyStorage::new());
        let options = options(64 * CLUSTER, CLUSTER, CompressionType::Zlib);
        let image = Image::create(storage.clone(), &options, None).unwrap();
        image.write_compressed(0, &[1; 3 * CLUSTER]).unwrap();
        storage.fail_after(writes, std::io::ErrorKind::StorageFull);
        let at = 8 * CLUSTER as u64;
        let error = image.write_compressed(at, &noise).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        storage.heal();
        image.write_compressed(at, &noise).unwrap();
        image.flush().unwrap();
        let report = check(&*storage).unwrap();
        assert!(report.is_clean(), "writes={writes}: {report:?}");
        let read = read_all(&image);
        assert!(read[..3 * CLUSTER].iter().all(|byte| *byte == 1));
        assert!(read[8 * CLUSTER..28 * CLUSTER] == noise);
    }
}
