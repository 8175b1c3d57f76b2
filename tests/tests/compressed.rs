//! Compressed clusters: what QEMU compresses we read and change, what we compress everybody reads.

use std::sync::Arc;

use qcow2::{
    BackingFormat, Chain, CompressionType, CreateOptions, ErrorKind, Image, MemoryStorage,
};
use tests::disk::{Disk, Op, SECTOR};
use tests::images::{Folder, qemu_io, read_imago, read_ours};
use tests::peers::{have, run_ok};
use tests::{qemu, seed};

const TYPES: [&str; 2] = ["zlib", "zstd"];
/// From the smallest to the largest.
const CLUSTERS: [usize; 6] = [512, 1024, 4096, 32_768, 65_536, 2 << 20];

/// A disk of runs of one value, of noise, and of what lies between.
fn random_disk(len: usize, rng: &mut fastrand::Rng) -> Disk {
    let mut disk = Disk::new(len, None);
    let mut at = 0;
    while at < len {
        let run = rng.usize(1..100_000).min(len - at);
        let (base, kinds) = (rng.u8(..), [1_u8, 2, 8, 255][rng.usize(0..4)]);
        let value = |_| base.wrapping_add(rng.u8(..kinds));
        let runs: Vec<(u8, usize)> = match base {
            0..60 => vec![(0, run)],
            _ => (0..run).map(value).map(|value| (value, 1)).collect(),
        };
        disk.apply(&Op::Write { offset: at, runs });
        at += run;
    }
    disk
}

/// An image that QEMU compressed.
fn compress_by_qemu(folder: &Folder, name: &str, disk: &Disk, kind: &str, cluster: usize) {
    let raw = folder.write_raw("content", disk);
    let options = format!("compression_type={kind},cluster_size={cluster}");
    let args = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options];
    let args = args.iter().map(AsRef::as_ref);
    let path = folder.path(name);
    run_ok("qemu-img", args.chain([raw.as_os_str(), path.as_os_str()]));
}

/// Small reads and large ones, from anywhere, by a chain and by an image.
fn assert_random_reads(chain: &Chain, image: &Image, disk: &Disk, rng: &mut fastrand::Rng) {
    let len = disk.bytes().len();
    for _ in 0..40 {
        let offset = rng.usize(0..len);
        let end = len.min(offset + [1, 700, 200_000][rng.usize(0..3)]);
        let want = &disk.bytes()[offset..end];
        let mut read = vec![0xa5; want.len()];
        chain.read(offset as u64, &mut read).expect("a read");
        assert!(read == want, "chain offset={offset} end={end}");
        read.fill(0xa5);
        image.read(offset as u64, &mut read).expect("a read");
        assert!(read == want, "image offset={offset} end={end}");
    }
}

/// Each type and cluster size: read whole, in parts, in a chain; then written over in parts.
#[test]
fn what_qemu_compresses_we_read_and_change() {
    if !have("qemu-img") {
        return;
    }
    let seed = seed::seed("what_qemu_compresses_we_read_and_change");
    let mut rng = fastrand::Rng::with_seed(seed);
    for (round, kind) in CLUSTERS.iter().zip(TYPES.iter().cycle()).enumerate() {
        // Both types meet each size in two runs of the loop.
        for kind in [kind.1, TYPES[usize::from(round % 2 == 0)]] {
            let cluster = CLUSTERS[round];
            let context = format!("seed={seed} kind={kind} cluster={cluster}");
            let len = rng.usize(800_000..2_000_000) / SECTOR * SECTOR + cluster;
            let folder = Folder::new();
            let mut disk = random_disk(len, &mut rng);
            compress_by_qemu(&folder, "theirs", &disk, kind, cluster);
            let chain = folder.chain("theirs", BackingFormat::Qcow2);
            disk.assert_is(&read_ours(&chain), "our chain", &context);
            let image = folder.open("theirs", None);
            assert_random_reads(&chain, &image, &disk, &mut rng);

            // A layer with other clusters on top, whose parts shine through.
            let below = Some(("theirs", BackingFormat::Qcow2));
            let tip = folder.create("tip", len as u64, 4096, below);
            let mut on_top = disk.clone();
            for _ in 0..10 {
                let op = on_top.random_op(&mut rng, 4096);
                op.send(&tip);
                on_top.apply(&op);
            }
            tip.flush().expect("a flush");
            let chain = folder.chain("tip", BackingFormat::Qcow2);
            on_top.assert_is(&read_ours(&chain), "chain on top", &context);
            assert_random_reads(&chain, &tip, &on_top, &mut rng);

            for _ in 0..30 {
                let op = disk.random_op(&mut rng, cluster);
                op.send(&image);
                disk.apply(&op);
            }
            image.flush().expect("a flush");
            drop(image);
            let path = folder.path("theirs");
            qemu::assert_clean(&path);
            qemu::assert_reads_like(&path, &folder.write_raw("changed", &disk));
            let chain = folder.chain("theirs", BackingFormat::Qcow2);
            disk.assert_is(&read_ours(&chain), "changed", &context);
            if kind == "zlib" {
                disk.assert_is(&read_imago(&path), "imago", &context);
            }
        }
    }
}

/// One random request to an image of ours and to what it must read as: compressed or any other.
fn send_random(rng: &mut fastrand::Rng, image: &Image, disk: &mut Disk, cluster: usize) {
    if rng.bool() {
        let op = disk.random_op(rng, cluster);
        op.send(image);
        disk.apply(&op);
        return;
    }
    let len = disk.bytes().len();
    let offset = rng.usize(0..len) / cluster * cluster;
    let most = (200_000 / cluster).max(2);
    let end = len.min(offset + cluster * rng.usize(1..=most));
    let part = random_disk(end - offset, rng);
    let data = part.bytes();
    let written = image.write_compressed(offset as u64, data);
    written.expect("a compressed write");
    let runs = part.runs(0..data.len());
    disk.apply(&Op::Write { offset, runs });
}

fn compressed_bytes(chain: &Chain) -> u64 {
    let extents = chain.extents(0, chain.virtual_size_bytes());
    let is_compressed = |it: &qcow2::Extent| {
        it.depth == 0 && it.kind == qcow2::ExtentKind::Data && it.host_offset.is_none()
    };
    let extents = extents.expect("extents");
    let compressed = extents.iter().filter(|it| is_compressed(it));
    compressed.map(|it| it.len_bytes).sum()
}

/// Each type, cluster size and refcount width, alone and on top of another one: compressed writes mixed with others are
/// an image that everybody reads, in which QEMU finds nothing wrong, and into which it goes on writing.
#[test]
fn what_we_compress_everybody_reads_and_qemu_changes() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let seed = seed::seed("what_we_compress_everybody_reads_and_qemu_changes");
    let mut rng = fastrand::Rng::with_seed(seed);
    let kinds = [CompressionType::Zlib, CompressionType::Zstd];
    let mut compressed = 0;
    for round in 0..CLUSTERS.len() * kinds.len() {
        let (cluster, kind) = (CLUSTERS[round / 2], kinds[round % 2]);
        let refcount_bits = 1 << (round % 7);
        let is_old = kind == CompressionType::Zlib && refcount_bits == 16;
        let len = rng.usize(800_000..2_000_000) / SECTOR * SECTOR + cluster;
        let options = CreateOptions {
            version: if is_old { 2 } else { 3 },
            cluster_size_bytes: u32::try_from(cluster).expect("a cluster size"),
            refcount_bits,
            compression: kind,
            ..CreateOptions::new(len as u64)
        };
        let context = format!("seed={seed} round={round} {options:?}");
        let folder = Folder::new();
        let mut disk = Disk::new(len, None);
        let mut below = None;
        if round % 3 != 0 {
            let base = folder.create_with("base", &options, None);
            (0..10).for_each(|_| send_random(&mut rng, &base, &mut disk, cluster));
            base.flush().expect("a flush");
            below = Some(("base", BackingFormat::Qcow2));
        }
        let image = folder.create_with("image", &options, below);
        (0..40).for_each(|_| send_random(&mut rng, &image, &mut disk, cluster));
        image.flush().expect("a flush");
        drop(image);

        let path = folder.path("image");
        let assert_is = |disk: &Disk| {
            qemu::assert_clean(&path);
            qemu::assert_reads_like(&path, &folder.write_raw("model", disk));
            let chain = folder.chain("image", BackingFormat::Qcow2);
            disk.assert_is(&read_ours(&chain), "our chain", &context);
            if kind == CompressionType::Zlib {
                disk.assert_is(&read_imago(&path), "imago", &context);
            }
            chain
        };
        compressed += compressed_bytes(&assert_is(&disk));

        // QEMU writes over ours, and then we over QEMU's.
        let mut commands = Vec::new();
        for _ in 0..20 {
            let op = disk.random_op(&mut rng, cluster);
            let sends = op.qemu_io();
            // Noise is too many arguments, a run each.
            if sends.len() < 100 {
                commands.extend(sends);
                disk.apply(&op);
            }
        }
        qemu_io(&path, false, &commands);
        assert_is(&disk);
        let image = folder.open("image", below);
        (0..20).for_each(|_| send_random(&mut rng, &image, &mut disk, cluster));
        image.flush().expect("a flush");
        drop(image);
        assert_is(&disk);
    }
    assert!(compressed > 1 << 20, "seed={seed} compressed={compressed}");
}

/// Bytes of compressed clusters change: an error or other data, and the error says where.
#[test]
fn a_damaged_stream_is_an_error_that_says_where() {
    if !have("qemu-img") {
        return;
    }
    let seed = seed::seed("a_damaged_stream_is_an_error_that_says_where");
    let mut rng = fastrand::Rng::with_seed(seed);
    for kind in TYPES {
        let folder = Folder::new();
        let cluster = 16_384;
        let disk = random_disk(400_000 / SECTOR * SECTOR, &mut rng);
        compress_by_qemu(&folder, "image", &disk, kind, cluster);
        let bytes = std::fs::read(folder.path("image")).expect("the image");
        let mut errors = 0;
        for _ in 0..60 {
            let mut damaged = bytes.clone();
            for _ in 0..rng.usize(1..30) {
                // Behind the metadata: header, refcounts and L1 take the first clusters.
                let at = rng.usize(6 * cluster..bytes.len());
                damaged[at] = rng.u8(..);
            }
            damaged.truncate(bytes.len() - rng.usize(0..2) * rng.usize(0..cluster));
            let storage = Arc::new(MemoryStorage::with_bytes(damaged));
            let image = Image::open(storage.clone(), None).expect("its tables are whole");
            let chain = Chain::open(storage, "disk", BackingFormat::Qcow2, &folder);
            let chain = chain.expect("its tables are whole");
            let mut read = vec![0; cluster];
            for at in (0..disk.bytes().len() - cluster).step_by(cluster) {
                let (one, other) = (
                    image.read(at as u64, &mut read),
                    chain.read(at as u64, &mut read),
                );
                assert_eq!(one.is_err(), other.is_err(), "seed={seed} at={at}");
                let Err(error) = other else { continue };
                errors += 1;
                let said = error.to_string();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "seed={seed}: {said}");
                if said.contains("stream") {
                    let names = [format!("offset={at} "), "host_offset=0x".into()];
                    let named = names.iter().all(|name| said.contains(name));
                    assert!(named && said.contains("image=disk"), "{said}");
                }
                // What cannot be read cannot be changed in part, but it can be written over.
                let part = image.write(at as u64 + 1, b"part");
                assert_eq!(part.map_err(|error| error.kind()), Err(ErrorKind::Corrupt));
            }
        }
        assert!(errors > 10, "seed={seed} kind={kind}: {errors} errors");
    }
}
