//! The image engine alone, beside plain pwrite/pread of the same pattern, imago and qcow2-rs.
//!
//! Figures are guest bytes into or out of the page cache unless a name says `flush`; compare within one run only. What a
//! subject cannot do, it is not measured at: qcow2-rs has no zeroes and makes no images on top of others.

mod subjects;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use benches::{CLUSTER, MIB, chain, create, new_file, noise, options};
use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main,
};
use qcow2::Chain;
use subjects::{
    Below, Disk, Place, imago, imago_create, imago_open, ours, ours_hashed, ours_open, qcow2_rs,
    qcow2_rs_open, raw, raw_hinted, raw_open, raw_pieces,
};

const TOTAL: usize = 64 * MIB;
const PIECE: usize = 256 << 10;
const SMALL: usize = 4096;
const SMALL_REQUESTS: usize = 2_000;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

type Make = fn(&Place) -> Box<dyn Disk>;
type Open = fn(&Path) -> Box<dyn Disk>;

fn group<'a>(
    criterion: &'a mut Criterion,
    name: &str,
    throughput: Throughput,
) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .throughput(throughput)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(1_500));
    group
}

/// Times `work` on a disk made anew for each round; neither making nor dropping it counts.
fn on_fresh(
    group: &mut BenchmarkGroup<'_, WallTime>,
    subjects: &[(&str, Make)],
    place: &Place,
    prepare: impl Fn(&mut dyn Disk),
    work: impl Fn(&mut dyn Disk),
) {
    for (name, make) in subjects {
        group.bench_function(*name, |bencher| {
            bencher.iter_batched(
                || {
                    let mut disk = make(place);
                    prepare(disk.as_mut());
                    disk
                },
                |mut disk| {
                    work(disk.as_mut());
                    disk
                },
                BatchSize::PerIteration,
            );
        });
    }
}

fn bytes(len: usize) -> Throughput {
    Throughput::Bytes(len as u64)
}

fn sequential(len: usize) -> Vec<u64> {
    (0..TOTAL as u64).step_by(len).collect()
}

fn random(len: usize, count: usize) -> Vec<u64> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut offsets = sequential(len);
    rng.shuffle(&mut offsets);
    offsets.truncate(count);
    offsets
}

/// Into a fresh disk: as a full backup comes, out of order, and in pieces smaller than a cluster.
fn writes(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("scratch");
    let data = noise(TOTAL);
    let place = Place {
        path: dir.path().join("disk"),
        size_bytes: TOTAL as u64,
        below: None,
    };
    for (name, len, offsets) in [
        ("writes/sequential_256k", PIECE, sequential(PIECE)),
        ("writes/random_64k", CLUSTER, random(CLUSTER, usize::MAX)),
        ("writes/random_4k", SMALL, random(SMALL, SMALL_REQUESTS)),
    ] {
        let mut group = group(criterion, name, bytes(offsets.len() * len));
        let subjects: [(&str, Make); 6] = [
            ("raw", raw),
            ("raw_hinted", raw_hinted),
            ("ours", ours),
            ("ours_hashed", ours_hashed),
            ("imago", imago),
            ("qcow2_rs", qcow2_rs),
        ];
        on_fresh(
            &mut group,
            &subjects,
            &place,
            |_| {},
            |disk| write_all(disk, &offsets, len, &data),
        );
        group.finish();
    }
}

fn write_all(disk: &mut dyn Disk, offsets: &[u64], len: usize, data: &[u8]) {
    for offset in offsets {
        let from = usize::try_from(*offset).expect("inside the data");
        disk.write(*offset, &data[from..from + len]);
    }
}

/// Into a fresh increment: whole clusters mask the parent, small writes copy the rest of theirs, zeroes mask it.
fn overlays(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("scratch");
    let data = noise(TOTAL);
    let base = dir.path().join("base.qcow2");
    fill(&base, &data);
    let raw_base = dir.path().join("base.raw");
    std::fs::write(&raw_base, &data).expect("a raw file");
    let place = Place {
        path: dir.path().join("overlay.qcow2"),
        size_bytes: TOTAL as u64,
        below: Some(Below {
            chain: Arc::new(chain(&base)),
            image: base,
            raw: raw_base,
        }),
    };
    let subjects: [(&str, Make); 4] = [
        ("raw", raw),
        ("ours", ours),
        ("imago", imago),
        ("qcow2_rs", qcow2_rs),
    ];
    // Shifted by one byte, so that no cluster is as the parent has it.
    let shifted = [&data[1..], &data[..1]].concat();
    for (name, len, count) in [
        ("overlay/random_64k", CLUSTER, 256),
        ("overlay/random_4k", SMALL, SMALL_REQUESTS),
    ] {
        let offsets = random(len, count);
        let mut group = group(criterion, name, bytes(offsets.len() * len));
        on_fresh(
            &mut group,
            &subjects,
            &place,
            |_| {},
            |disk| write_all(disk, &offsets, len, &shifted),
        );
        group.finish();
    }
    let mut group = group(criterion, "overlay/zeroes_256k", bytes(TOTAL));
    on_fresh(
        &mut group,
        &[("ours", ours), ("imago", imago)],
        &place,
        |_| {},
        |disk| {
            for offset in sequential(PIECE) {
                disk.zero(offset, PIECE as u64);
            }
        },
    );
    group.finish();
}

fn fill(path: &Path, data: &[u8]) {
    let image = create(path, &options(data.len() as u64, None), None);
    for (offset, piece) in sequential(PIECE).into_iter().zip(data.chunks(PIECE)) {
        image.write(offset, piece).expect("a write");
    }
    image.flush().expect("a flush");
}

/// A flush after one small write in each of so many tables.
fn flushes(criterion: &mut Criterion) {
    const TABLE_BYTES: u64 = 512 << 20;
    let dir = tempfile::tempdir().expect("scratch");
    let block = noise(SMALL);
    for tables in [1, 64] {
        let place = Place {
            path: dir.path().join("disk"),
            size_bytes: tables * TABLE_BYTES,
            below: None,
        };
        let name = format!("flush/dirty_tables_{tables}");
        let mut group = group(criterion, &name, Throughput::Elements(tables));
        let subjects: [(&str, Make); 4] = [
            ("raw", raw),
            ("ours", ours),
            ("imago", imago),
            ("qcow2_rs", qcow2_rs),
        ];
        let dirty = |disk: &mut dyn Disk| {
            for table in 0..tables {
                disk.write(table * TABLE_BYTES, &block);
            }
        };
        on_fresh(&mut group, &subjects, &place, dirty, |disk| disk.flush());
        group.finish();
    }
}

/// Making and opening empty images, small and large.
fn create_and_open(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("scratch");
    let path = dir.path().join("disk.qcow2");
    for (name, size_bytes) in [("1gib", GIB), ("1tib", TIB)] {
        let create_name = format!("create/{name}");
        let mut creates = group(criterion, &create_name, Throughput::Elements(1));
        creates.bench_function("ours", |bencher| {
            bencher.iter(|| create(&path, &options(size_bytes, None), None));
        });
        creates.bench_function("imago", |bencher| {
            bencher.iter(|| imago_create(&path, size_bytes));
        });
        creates.finish();
        let image = create(&path, &options(size_bytes, None), None);
        image.flush().expect("a flush");
        let mut opens = group(criterion, &format!("open/{name}"), Throughput::Elements(1));
        opens.bench_function("ours", |bencher| bencher.iter(|| ours_open(&path)));
        opens.bench_function("imago", |bencher| bencher.iter(|| imago_open(&path)));
        opens.bench_function("qcow2_rs", |bencher| {
            bencher.iter(|| qcow2_rs_open(std::slice::from_ref(&path)));
        });
        opens.finish();
    }
}

/// A chain of layers that each changed 16 clusters here and there; the tips, oldest first.
fn layers(dir: &Path, data: &[u8]) -> Vec<PathBuf> {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut tips: Vec<PathBuf> = Vec::new();
    for layer in 0..100 {
        let path = dir.join(format!("{layer}.qcow2"));
        let Some(below) = tips.last() else {
            fill(&path, data);
            tips.push(path);
            continue;
        };
        let name = format!("{}.qcow2", layer - 1);
        let parent = Arc::new(chain(below));
        let image = create(&path, &options(TOTAL as u64, Some(&name)), Some(parent));
        for _ in 0..16 {
            let offset = rng.u64(0..(TOTAL / CLUSTER) as u64) * CLUSTER as u64;
            image.write(offset, &data[..CLUSTER]).expect("a write");
        }
        image.flush().expect("a flush");
        tips.push(path);
    }
    tips
}

/// Through 1, 10 and 100 layers: the cost must not grow with depth, beyond that of the smaller pieces in which the data
/// lies, which `raw_pieces` reads without an image. `opened` counts the opening, too: nothing is known
/// yet of where the data lies.
fn reads_by_depth(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("scratch");
    let data = noise(TOTAL);
    let tips = layers(dir.path(), &data);
    let raw_path = dir.path().join("raw");
    drop(new_file(&raw_path));
    std::fs::write(&raw_path, &data).expect("a raw file");

    for (name, len, offsets) in [
        ("read/sequential_256k", PIECE, sequential(PIECE)),
        ("read/random_4k", SMALL, random(SMALL, SMALL_REQUESTS)),
    ] {
        let mut group = group(criterion, name, bytes(offsets.len() * len));
        let mut time = |name: &str, mut disk: Box<dyn Disk>| {
            group.bench_function(name, |bencher| {
                let mut buffer = vec![0; len];
                bencher.iter(|| read_all(disk.as_mut(), &offsets, &mut buffer));
            });
        };
        time("raw", raw_open(&raw_path));
        for depth in [1, 10, 100] {
            let tip = &tips[depth - 1];
            let paths: Vec<_> = tips[..depth].iter().rev().cloned().collect();
            time(&format!("raw_pieces_{depth}"), raw_pieces(&paths));
            time(&format!("ours_{depth}"), ours_open(tip));
            time(&format!("imago_{depth}"), imago_open(tip));
            time(&format!("qcow2_rs_{depth}"), qcow2_rs_open(&paths));
        }
        group.finish();
    }

    let mut group = group(criterion, "read/opened_sequential_256k", bytes(TOTAL));
    for depth in [1, 100] {
        let tip = &tips[depth - 1];
        let offsets = sequential(PIECE);
        let open: [(&str, Open); 2] = [("ours", ours_open), ("imago", imago_open)];
        for (name, open) in open {
            group.bench_function(format!("{name}_{depth}"), |bencher| {
                let mut buffer = vec![0; PIECE];
                bencher.iter(|| read_all(open(tip).as_mut(), &offsets, &mut buffer));
            });
        }
    }
    group.finish();
    maps_by_depth(criterion, &tips);
}

fn read_all(disk: &mut dyn Disk, offsets: &[u64], buffer: &mut [u8]) {
    for offset in offsets {
        disk.read(*offset, buffer);
        black_box(&*buffer);
    }
}

/// The whole map of a chain just opened, and what its tip changed.
fn maps_by_depth(criterion: &mut Criterion, tips: &[PathBuf]) {
    let mut group = group(criterion, "map", Throughput::Elements(1));
    let fresh =
        |group: &mut BenchmarkGroup<'_, WallTime>, name: &str, depth: usize, work: fn(&Chain)| {
            group.bench_function(format!("{name}_{depth}"), |bencher| {
                bencher.iter_batched(
                    || chain(&tips[depth - 1]),
                    |chain| {
                        work(&chain);
                        chain
                    },
                    BatchSize::PerIteration,
                );
            });
        };
    for depth in [1, 10, 100] {
        fresh(&mut group, "extents", depth, |chain| {
            black_box(chain.extents(0, TOTAL as u64).expect("a map"));
        });
    }
    let base = chain(&tips[0]);
    group.bench_function("changes_since_base_100", |bencher| {
        let tip = chain(&tips[99]);
        bencher.iter(|| black_box(tip.changes_since(&base).expect("one chain").count()));
    });
    group.finish();
}

/// The price of hashing every cluster, without the writing.
fn hashing(criterion: &mut Criterion) {
    let data = noise(TOTAL);
    let mut group = group(criterion, "hash", bytes(TOTAL));
    group.bench_function("blake3_64k", |bencher| {
        bencher.iter(|| {
            for cluster in data.chunks(CLUSTER) {
                black_box(blake3::hash(cluster));
            }
        });
    });
    group.finish();
}

criterion_group!(
    image,
    writes,
    overlays,
    flushes,
    create_and_open,
    reads_by_depth,
    hashing
);
criterion_main!(image);
