//! Elision: what the parent has is not stored again, nothing else is left out, and the counters say which was which.

#![expect(clippy::unwrap_used, reason = "a panic is the report")]

#[expect(dead_code, reason = "other tests use the rest of it")]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qcow2::{
    BackingFormat, BackingName, Chain, CreateOptions, Elision, ExtentKind, Image, MemoryStorage,
    Storage, WriteCounters, check,
};
use support::{Dir, Folder, Model, random_data, random_request, rng, seed};

fn options(size: u64, cluster: u32, backing: Option<&str>) -> CreateOptions {
    CreateOptions {
        cluster_size_bytes: cluster,
        backing: backing.map(|name| BackingName {
            name: name.into(),
            format: Some(BackingFormat::Qcow2),
        }),
        ..CreateOptions::new(size)
    }
}

/// A parent of one image with these bytes, in clusters of its own size.
fn parent(bytes: &[u8], cluster: u32) -> Arc<Chain> {
    let storage = Arc::new(MemoryStorage::new());
    let options = options(bytes.len() as u64, cluster, None);
    let image = Image::create(storage.clone(), &options, None).unwrap();
    image.write(0, bytes).unwrap();
    image.flush().unwrap();
    let folder = Folder("/nonexistent".into());
    Arc::new(Chain::open(storage, "base", BackingFormat::Qcow2, &folder).unwrap())
}

fn increment(size: u64, cluster: u32, parent: Arc<Chain>) -> (Arc<MemoryStorage>, Image) {
    let storage = Arc::new(MemoryStorage::new());
    let options = options(size, cluster, Some("base"));
    let image = Image::create(storage.clone(), &options, Some(parent)).unwrap();
    (storage, image.with_elision(Elision::Read))
}

fn own_bytes(image: &Image) -> u64 {
    let extents = image.extents(0, image.virtual_size_bytes()).unwrap();
    let own = extents
        .iter()
        .filter(|extent| extent.depth == 0 && extent.kind == ExtentKind::Data);
    own.map(|extent| extent.len_bytes).sum()
}

/// Not zero anywhere, and different in every sector.
fn busy(len: usize) -> Vec<u8> {
    let byte = |at: usize| u8::try_from((at / 512 * 31 + at % 127) % 255 + 1).unwrap();
    (0..len).map(byte).collect()
}

/// The whole of the parent once more, the half cluster at the end included, in requests of any length that a cluster
/// divides: not a byte is stored. Then one sector differs: one cluster is.
#[test]
fn the_same_again_allocates_nothing() {
    const CLUSTER: usize = 4096;
    for request in [CLUSTER, 3 * CLUSTER, 1 << 20, 8 << 20] {
        let mut bytes = busy(600 * CLUSTER + 1536);
        bytes[7 * CLUSTER..9 * CLUSTER].fill(0);
        let size = bytes.len() as u64;
        let (storage, image) = increment(size, 4096, parent(&bytes, 4096));
        image.flush().unwrap();
        let before = storage.len_bytes().unwrap();
        for (at, part) in bytes.chunks(request).enumerate() {
            image.write((at * request) as u64, part).unwrap();
        }
        image.flush().unwrap();
        assert_eq!(storage.len_bytes().unwrap(), before, "request={request}");
        assert_eq!(own_bytes(&image), 0);
        let zero_bytes = 2 * CLUSTER as u64;
        assert_eq!(
            image.counters(),
            WriteCounters {
                received_bytes: size,
                zero_bytes,
                equal_bytes: size - zero_bytes,
                stored_bytes: 0,
            }
        );

        bytes[100 * CLUSTER + 700] ^= 1;
        bytes[600 * CLUSTER] ^= 1;
        for (at, part) in bytes.chunks(request).enumerate() {
            image.write((at * request) as u64, part).unwrap();
        }
        let stored_bytes = CLUSTER as u64 + 1536;
        assert_eq!(own_bytes(&image), stored_bytes);
        assert_eq!(
            image.counters(),
            WriteCounters {
                received_bytes: 2 * size,
                zero_bytes: 2 * zero_bytes,
                equal_bytes: 2 * (size - zero_bytes) - stored_bytes,
                stored_bytes,
            }
        );
        let mut read = vec![0; bytes.len()];
        image.read(0, &mut read).unwrap();
        assert!(read == bytes);
    }
}

/// What the image has itself is written, also back to what the parent has; zeroes of ours hide the parent.
#[test]
fn only_what_is_not_there_is_left_out() {
    let bytes = busy(8 * 4096);
    let (_, image) = increment(8 * 4096, 4096, parent(&bytes, 4096));
    let mut read = vec![0; bytes.len()];

    image.write(4096, &[9; 4096]).unwrap();
    image.write_zeroes(8192, 4096, false).unwrap();
    image.write_zeroes(12_288, 4096, true).unwrap();
    image.write(16_384 + 512, &[9; 512]).unwrap();
    image.write(0, &bytes).unwrap();
    image.read(0, &mut read).unwrap();
    assert!(read == bytes);
    let counters = image.counters();
    assert_eq!(counters.equal_bytes, 4 * 4096);
    assert_eq!(counters.stored_bytes, 4096 + 512 + 4 * 4096);

    // Part of a cluster is stored, and the rest of it comes with it.
    image.write(512, &bytes[512..4096]).unwrap();
    assert_eq!(image.counters().equal_bytes, 4 * 4096);
    assert_eq!(own_bytes(&image), 5 * 4096);
}

#[test]
fn without_the_choice_everything_is_stored() {
    let bytes = busy(8 * 4096);
    let (_, image) = increment(8 * 4096, 4096, parent(&bytes, 4096));
    let image = image.with_elision(Elision::Off);
    image.write(0, &bytes).unwrap();
    assert_eq!(image.counters().stored_bytes, 8 * 4096);
    assert_eq!(own_bytes(&image), 8 * 4096);
}

/// Random requests, half of them bytes that are there already, over parents of other sizes: it reads as the model
/// says, and each byte that was sent is counted once.
#[test]
fn random_requests_read_as_the_model_says() {
    let seed = seed();
    let mut rng = rng(seed);
    let mut equal_bytes = 0;
    for round in 0..60 {
        let cluster = 512 << rng.u32(0..9);
        let size = rng.u64(600..3000) * 512;
        let base_size = rng.u64(600..3000) * 512;
        let base = random_data(&mut rng, usize::try_from(base_size).unwrap());
        let (storage, image) = increment(size, cluster, parent(&base, 512 << rng.u32(0..9)));
        let mut model = Model::new(size);
        let shared = base.len().min(model.bytes().len());
        model.put(0, &base[..shared]);
        let mut sent = 0;
        for _ in 0..40 {
            if rng.bool() {
                // From the parent, whatever the image has become since.
                let at = rng.usize(0..shared) / 512 * 512;
                let len = rng.usize(1..=shared - at);
                image.write(at as u64, &base[at..at + len]).unwrap();
                model.put(at, &base[at..at + len]);
                sent += len as u64;
            } else {
                let before = image.counters().received_bytes;
                random_request(&mut rng, &image, &mut model);
                sent += image.counters().received_bytes - before;
            }
        }
        image.flush().unwrap();
        let mut read = vec![0; model.bytes().len()];
        image.read(0, &mut read).unwrap();
        assert!(read == model.bytes(), "seed={seed} round={round}");
        let counters = image.counters();
        assert_eq!(counters.received_bytes, sent, "seed={seed} round={round}");
        equal_bytes += counters.equal_bytes;
        let report = check(&*storage).unwrap();
        assert!(report.is_clean(), "seed={seed} round={round}: {report:?}");
    }
    assert!(equal_bytes > 0, "nothing was left out: seed={seed}");
}

/// When a request began and ended, on a clock of their own.
#[derive(Clone, Copy)]
struct Span {
    began: u64,
    ended: u64,
}

/// Parts of clusters are written while the same clusters arrive whole, as the parent has them. Each part reads as one
/// order of these requests explains: what ended before another began is never what is found in its place.
#[test]
fn a_part_and_the_same_whole_do_not_lose_each_other() {
    const CLUSTER: usize = 4096;
    const CLUSTERS: usize = 512;
    let bytes = busy(CLUSTERS * CLUSTER);
    let base = parent(&bytes, 4096);
    for round in 0..12_u8 {
        let (storage, image) = increment(bytes.len() as u64, 4096, base.clone());
        let clock = AtomicU64::new(0);
        let start = std::sync::Barrier::new(4);
        let run = |thread: usize| -> Vec<Span> {
            start.wait();
            let one = |cluster: usize| {
                let at = cluster * CLUSTER;
                let began = clock.fetch_add(1, Ordering::SeqCst);
                if thread == 3 {
                    image.write(at as u64, &bytes[at..at + CLUSTER]).unwrap();
                } else {
                    let part = [255 - round; 1024];
                    image.write((at + thread * 1024) as u64, &part).unwrap();
                }
                let ended = clock.fetch_add(1, Ordering::SeqCst);
                Span { began, ended }
            };
            (0..CLUSTERS).map(one).collect()
        };
        let spans: Vec<Vec<Span>> = std::thread::scope(|scope| {
            let run = &run;
            let threads: Vec<_> = (0..4).map(|at| scope.spawn(move || run(at))).collect();
            threads.into_iter().map(|it| it.join().unwrap()).collect()
        });
        for cluster in 0..CLUSTERS {
            let at = cluster * CLUSTER;
            let mut read = vec![0; CLUSTER];
            image.read(at as u64, &mut read).unwrap();
            assert!(read[3072..] == bytes[at + 3072..at + CLUSTER]);
            let whole = spans[3][cluster];
            for (thread, spans) in spans[..3].iter().enumerate() {
                let part = spans[cluster];
                let found = &read[thread * 1024..][..1024];
                let is_part = found.iter().all(|byte| *byte == 255 - round);
                let is_whole = found == &bytes[at + thread * 1024..][..1024];
                let context = format!("round={round} cluster={cluster} thread={thread}");
                assert!(is_part || is_whole, "{context}: neither");
                assert!(is_part || part.began < whole.ended, "{context}: part lost");
                assert!(
                    is_whole || whole.began < part.ended,
                    "{context}: whole lost"
                );
            }
        }
        image.flush().unwrap();
        assert!(check(&*storage).unwrap().is_clean());
    }
}

/// A parent that cannot be read has nothing that could be left out.
#[test]
fn what_cannot_be_compared_is_stored() {
    if !support::has_qemu() {
        return;
    }
    let dir = Dir::new();
    let bytes = busy(4 << 20);
    let (raw, packed) = (dir.path("content.raw"), dir.path("packed.qcow2"));
    std::fs::write(&raw, &bytes).unwrap();
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2"];
    let names = [support::text(&raw), support::text(&packed)];
    support::must("qemu-img", &[&convert[..], &names].concat());
    // Header, refcounts, L1 and L2 stay whole, the compressed clusters do not.
    let mut damaged = std::fs::read(&packed).unwrap();
    damaged[5 << 16..].fill(0xff);
    let storage = Arc::new(MemoryStorage::with_bytes(damaged));
    let folder = Folder(dir.root());
    let chain = Chain::open(storage, "packed", BackingFormat::Qcow2, &folder).unwrap();
    for at in (0..4 << 20).step_by(65_536) {
        assert!(chain.read(at, &mut [0; 512]).is_err(), "offset={at}");
    }

    let (_, image) = increment(bytes.len() as u64, 65_536, Arc::new(chain));
    image.write(0, &bytes).unwrap();
    let mut read = vec![0; bytes.len()];
    image.read(0, &mut read).unwrap();
    assert!(read == bytes);
    assert_eq!(image.counters().stored_bytes, bytes.len() as u64);
}

/// The same bytes twice, and the parent loses its second half: what was read of the first says nothing about it.
#[test]
fn a_lost_part_of_the_parent_is_stored() {
    const HALF: usize = 256 * 1024;
    let bytes = busy(HALF).repeat(2);
    let raw = Arc::new(MemoryStorage::with_bytes(bytes.clone()));
    let folder = Folder("/nonexistent".into());
    let chain = Chain::open(raw.clone(), "base", BackingFormat::Raw, &folder).unwrap();
    raw.set_len(HALF as u64).unwrap();
    let (_, image) = increment(2 * HALF as u64, 65_536, Arc::new(chain));
    image.write(0, &bytes).unwrap();
    let mut read = vec![0; bytes.len()];
    image.read(0, &mut read).unwrap();
    assert!(read == bytes);
    assert_eq!(image.counters().stored_bytes, HALF as u64);
}
