//! The image engine alone, beside raw pwrite/pread of the same pattern and imago.
//!
//! Figures are throughput of guest bytes into the page cache; compare within one run only.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;

use benches::{MIB, chain, create, new_file, noise, options};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const TOTAL: usize = 64 * MIB;
const PIECE: usize = 256 << 10;

/// Fresh sequential writes of 256 KiB, as a full backup makes them.
fn sequential_writes(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("scratch");
    let data = noise(TOTAL);
    let mut group = criterion.benchmark_group("sequential_writes");
    group
        .throughput(Throughput::Bytes(TOTAL as u64))
        .sample_size(10);

    let path = dir.path().join("disk");
    group.bench_function("raw_pwrite", |bencher| {
        bencher.iter_batched(
            || new_file(&path),
            |file| {
                pieces(&data, |offset, piece| {
                    file.write_all_at(piece, offset).expect("a write");
                });
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("ours", |bencher| {
        bencher.iter_batched(
            || create(&path, &options(TOTAL as u64, None), None),
            |image| {
                pieces(&data, |offset, piece| {
                    image.write(offset, piece).expect("a write");
                });
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("imago", |bencher| {
        bencher.iter_batched(
            || imago_image(&path),
            |image| {
                pieces(&data, |offset, piece| {
                    image.write(piece, offset).expect("a write");
                });
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn pieces(data: &[u8], mut write: impl FnMut(u64, &[u8])) {
    for (number, piece) in data.chunks(PIECE).enumerate() {
        write((number * PIECE) as u64, piece);
    }
}

fn imago_image(path: &Path) -> imago::FormatAccess<imago::file::File> {
    use imago::qcow2::Qcow2;
    use imago::{
        FormatCreateBuilder as _, FormatDriverBuilder as _, PermissiveImplicitOpenGate,
        Storage as _, StorageOpenOptions,
    };
    drop(new_file(path));
    let options = StorageOpenOptions::new().write(true).filename(path);
    let storage = imago::file::File::open(options).expect("the file");
    let image = Qcow2::<imago::file::File>::create_builder(storage)
        .size(TOTAL as u64)
        .create_open(PermissiveImplicitOpenGate(), |file| {
            Ok(Qcow2::builder(file).write(true))
        })
        .expect("a fresh image");
    imago::FormatAccess::new(image)
}

/// 4 KiB random writes into an overlay: each copies the rest of its cluster from the parent.
fn overlay_writes(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("scratch");
    let data = noise(TOTAL);
    let base = dir.path().join("base.qcow2");
    let image = create(&base, &options(TOTAL as u64, None), None);
    pieces(&data, |offset, piece| {
        image.write(offset, piece).expect("a write");
    });
    image.flush().expect("a flush");
    let parent = std::sync::Arc::new(chain(&base));

    const WRITES: u64 = 2_000;
    let mut group = criterion.benchmark_group("overlay_4k_random_writes");
    group
        .throughput(Throughput::Elements(WRITES))
        .sample_size(10);
    let path = dir.path().join("overlay.qcow2");
    let block = noise(4096);
    group.bench_function("ours", |bencher| {
        bencher.iter_batched(
            || {
                create(
                    &path,
                    &options(TOTAL as u64, Some("base.qcow2")),
                    Some(parent.clone()),
                )
            },
            |image| {
                let mut rng = fastrand::Rng::with_seed(7);
                for _ in 0..WRITES {
                    let offset = rng.u64(0..(TOTAL / 4096) as u64) * 4096;
                    image.write(offset, &block).expect("a write");
                }
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Reading a whole disk through 1 and 50 layers: the cost must not grow with depth.
fn reads_by_depth(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("scratch");
    let data = noise(TOTAL);
    let mut rng = fastrand::Rng::with_seed(3);
    let mut parent = None;
    let mut group = criterion.benchmark_group("reads_by_depth");
    group
        .throughput(Throughput::Bytes(TOTAL as u64))
        .sample_size(10);
    let mut buffer = vec![0; PIECE];
    for layer in 0..50 {
        let path = dir.path().join(format!("{layer}.qcow2"));
        let backing = (layer > 0).then(|| format!("{}.qcow2", layer - 1));
        let image = create(
            &path,
            &options(TOTAL as u64, backing.as_deref()),
            parent.take(),
        );
        if layer == 0 {
            pieces(&data, |offset, piece| {
                image.write(offset, piece).expect("a write");
            });
        }
        for _ in 0..16 {
            let cluster = rng.u64(0..(TOTAL / 65_536) as u64) * 65_536;
            image.write(cluster, &data[..65_536]).expect("a write");
        }
        image.flush().expect("a flush");
        drop(image);
        let chain = chain(&path);
        if layer == 0 || layer == 49 {
            group.bench_function(format!("depth_{}", layer + 1), |bencher| {
                bencher.iter(|| {
                    for offset in (0..TOTAL as u64).step_by(PIECE) {
                        chain.read(offset, &mut buffer).expect("a read");
                        black_box(&buffer);
                    }
                });
            });
        }
        parent = Some(std::sync::Arc::new(chain));
    }
    let raw = dir.path().join("raw");
    new_file(&raw).write_all_at(&data, 0).expect("a write");
    let raw = File::open(&raw).expect("the file");
    group.bench_function("raw_pread", |bencher| {
        bencher.iter(|| {
            for offset in (0..TOTAL as u64).step_by(PIECE) {
                raw.read_exact_at(&mut buffer, offset).expect("a read");
                black_box(&buffer);
            }
        });
    });
    group.finish();
}

criterion_group!(image, sequential_writes, overlay_writes, reads_by_depth);
criterion_main!(image);
