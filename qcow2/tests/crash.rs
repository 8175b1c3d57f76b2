//! A loss of power at any moment: what was flushed is there, the rest is old or new by sector, and the file is never
//! more wrong than some leaked clusters.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a panic is the report; seeds are printed"
)]

use std::sync::Arc;

use qcow2::{
    BackingFormat, BackingName, Chain, CreateOptions, Elision, Error, ErrorKind, FaultyStorage,
    Image, MemoryStorage, OpenedBacking, Opener, Storage, check,
};

const SECTOR: usize = 512;

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

/// What each sector may hold: its content at the last flush, and everything written since.
struct Model {
    now: Vec<u8>,
    flushed: Vec<u8>,
    /// (event position before the request, content after it) since the last flush.
    since: Vec<(usize, Vec<u8>)>,
}

/// The model after a flush, with the position in the log from which it holds.
struct Milestone {
    position: usize,
    flushed: Vec<u8>,
    later: Vec<(usize, Vec<u8>)>,
}

#[test]
fn any_cut_leaves_what_was_flushed() {
    let seed = seed();
    let mut cuts = 0;
    for round in 0..40 {
        cuts += trace(seed.wrapping_add(round), round % 2 == 0);
    }
    println!("cuts={cuts}");
    assert!(cuts > 2000);
}

fn trace(seed: u64, with_parent: bool) -> u32 {
    let mut rng = fastrand::Rng::with_seed(seed);
    let cluster = 512_u32 << rng.u32(0..6);
    let size = rng.usize(100..600) * SECTOR;
    let mut model = Model {
        now: vec![0; size],
        flushed: vec![0; size],
        since: Vec::new(),
    };
    let mut below = vec![0; size];
    let parent = with_parent.then(|| {
        let bytes: Vec<u8> = (0..size - 700)
            .map(|at| u8::try_from(at % 251).unwrap() | 1)
            .collect();
        model.now[..bytes.len()].copy_from_slice(&bytes);
        below.clone_from(&model.now);
        let base = Arc::new(MemoryStorage::with_bytes(bytes));
        Arc::new(Chain::open(base, "base", BackingFormat::Raw, &NoOpener).unwrap())
    });
    model.flushed = model.now.clone();
    let backing = with_parent.then(|| BackingName {
        name: "base".into(),
        format: Some(BackingFormat::Raw),
    });
    let options = CreateOptions {
        cluster_size_bytes: cluster,
        backing,
        ..CreateOptions::new(size as u64)
    };
    let storage = Arc::new(FaultyStorage::new());
    let image = Image::create(storage.clone(), &options, parent.clone()).unwrap();
    let image = image.with_elision(Elision::Read);

    let mut milestones = Vec::new();
    let mut position = storage.position();
    for _ in 0..rng.usize(10..60) {
        if rng.u8(0..6) == 0 {
            // Until the flush has returned, the older promise holds.
            image.flush().unwrap();
            let later = std::mem::take(&mut model.since);
            milestones.push(Milestone {
                position,
                flushed: model.flushed.clone(),
                later,
            });
            model.flushed = model.now.clone();
            position = storage.position();
            continue;
        }
        let offset = rng.usize(0..size);
        let len = rng.usize(1..=(size - offset).min(20_000));
        let before = storage.position();
        if rng.u8(0..4) == 0 {
            // What the parent has, of which some need not be stored.
            let data = &below[offset..offset + len];
            image.write(offset as u64, data).unwrap();
            model.now[offset..offset + len].copy_from_slice(data);
        } else if rng.bool() {
            let byte = rng.u8(0..=255);
            image.write(offset as u64, &vec![byte; len]).unwrap();
            model.now[offset..offset + len].fill(byte);
        } else {
            image
                .write_zeroes(offset as u64, len as u64, rng.bool())
                .unwrap();
            model.now[offset..offset + len].fill(0);
        }
        model.since.push((before, model.now.clone()));
    }
    milestones.push(Milestone {
        position,
        flushed: model.flushed,
        later: model.since,
    });
    let end = storage.position();
    for _ in 0..80 {
        let cut_at = rng.usize(milestones[0].position..=end);
        let milestone = milestones
            .iter()
            .rev()
            .find(|found| found.position <= cut_at)
            .unwrap();
        let cut = storage.cut(cut_at, rng.u64(..));
        let context = format!("seed={seed} with_parent={with_parent} cut_at={cut_at}/{end}");
        check_cut(cut, parent.clone(), milestone, cut_at, &context);
    }
    80
}

fn check_cut(
    cut: MemoryStorage,
    parent: Option<Arc<Chain>>,
    milestone: &Milestone,
    cut_at: usize,
    context: &str,
) {
    let report = check(&cut).unwrap();
    assert_eq!(report.corruptions, 0, "{context}: {report:?}");
    let cut: Arc<dyn Storage> = Arc::new(cut);
    let image = Image::open(cut.clone(), parent).unwrap();
    let mut read = vec![0; milestone.flushed.len()];
    image.read(0, &mut read).unwrap();
    let possible: Vec<&Vec<u8>> = std::iter::once(&milestone.flushed)
        .chain(
            milestone
                .later
                .iter()
                .filter(|(at, _)| *at <= cut_at)
                .map(|(_, bytes)| bytes),
        )
        .collect();
    for at in (0..read.len()).step_by(SECTOR) {
        let sector = at..at + SECTOR;
        // A guest sector lies within one host sector, so that it is old or new as a whole.
        let found = possible
            .iter()
            .any(|bytes| bytes[sector.clone()] == read[sector.clone()]);
        assert!(found, "{context}: sector at {at} is neither old nor new");
    }
    // The survivor takes writes and is whole again.
    image.write(3, b"after the cut").unwrap();
    image.flush().unwrap();
    assert_eq!(
        check(&*cut).unwrap().corruptions,
        0,
        "{context}: after a write"
    );
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
