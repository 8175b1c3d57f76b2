//! Our images and everybody else who reads and writes them: qemu-img, qemu-io, imago, qcow2-rs.

use std::cmp::Ordering;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use qcow2::{
    BackingFormat, BackingName, CreateOptions, FaultyStorage, FileStorage, Image, Storage,
};
use tests::disk::{Disk, Op, SECTOR};
use tests::images::{
    Below, Folder, check_by_qemu_io, imago_image, qemu_io, read_imago, read_ours, read_qcow2_rs,
    read_qemu_img,
};
use tests::lossy_fs::LossyFs;
use tests::peers::{have, run_ok};
use tests::{qemu, seed};

/// What lies below an image: nothing, or an image or a raw file, and how its length compares with the disk's.
#[derive(Debug, Clone, Copy)]
enum Parent {
    None,
    Qcow2(Ordering),
    Raw(Ordering),
}

const PARENTS: [Parent; 7] = [
    Parent::None,
    Parent::Qcow2(Ordering::Equal),
    Parent::Qcow2(Ordering::Less),
    Parent::Qcow2(Ordering::Greater),
    Parent::Raw(Ordering::Equal),
    Parent::Raw(Ordering::Less),
    Parent::Raw(Ordering::Greater),
];

/// Bytes of a disk of some clusters; the last one is cut short where a cluster is more than a sector.
fn random_len(rng: &mut fastrand::Rng, cluster: usize) -> usize {
    let len = rng.usize(400_000..1_200_000) + cluster * 2;
    let len = len / SECTOR * SECTOR;
    if len.is_multiple_of(cluster) {
        len - SECTOR
    } else {
        len
    }
}

/// Either version and any width of refcounts; as everybody makes them as often as not.
fn random_options(rng: &mut fastrand::Rng, len: usize, cluster: usize) -> CreateOptions {
    let (version, refcount_bits) = match rng.u8(0..8) {
        0 => (2, 16),
        1..4 => (3, 1 << rng.u32(0..7)),
        _ => (3, 16),
    };
    CreateOptions {
        cluster_size_bytes: u32::try_from(cluster).expect("a cluster size"),
        version,
        refcount_bits,
        ..CreateOptions::new(len as u64)
    }
}

/// Makes the parent in the folder; returns its bytes and how to name it.
fn make_parent(
    folder: &Folder,
    parent: Parent,
    len: usize,
    rng: &mut fastrand::Rng,
) -> (Option<Disk>, Below<'static>) {
    let (Parent::Qcow2(beside) | Parent::Raw(beside)) = parent else {
        return (None, None);
    };
    let sectors = rng.usize(1..len / 2 / SECTOR);
    let len = match beside {
        Ordering::Equal => len,
        Ordering::Greater => len + sectors * SECTOR,
        Ordering::Less => len - sectors * SECTOR,
    };
    let mut disk = Disk::new(len, None);
    // Above the smallest that qcow2-rs can read as often as not.
    let cluster = 512 << rng.usize(0..9);
    let ops = trace(&mut disk, 12, rng, cluster);
    if matches!(parent, Parent::Raw(_)) {
        folder.write_raw("parent", &disk);
        return (Some(disk), Some(("parent", BackingFormat::Raw)));
    }
    let image = folder.create("parent", len as u64, cluster, None);
    send(&ops, &image);
    (Some(disk), Some(("parent", BackingFormat::Qcow2)))
}

/// Random requests, which the disk has taken already.
fn trace(disk: &mut Disk, count: usize, rng: &mut fastrand::Rng, cluster: usize) -> Vec<Op> {
    let request = |_| {
        let op = disk.random_op(rng, cluster);
        disk.apply(&op);
        op
    };
    (0..count).map(request).collect()
}

fn send(ops: &[Op], image: &Image) {
    for op in ops {
        op.send(image);
    }
    image.flush().expect("a flush");
}

/// The same requests by qemu-io.
fn send_by_qemu_io(ops: &[Op], folder: &Folder, name: &str) {
    let commands: Vec<String> = ops.iter().flat_map(Op::qemu_io).collect();
    qemu_io(&folder.path(name), false, &commands);
}

fn assert_equal_images(folder: &Folder, one: &str, other: &str, context: &str) {
    let args = ["compare", "-f", "qcow2", "-F", "qcow2"].map(Into::into);
    let paths = [folder.path(one), folder.path(other)];
    let said = run_ok("qemu-img", args.into_iter().chain(paths));
    assert!(said.contains("identical"), "{context}: {said}");
}

/// Every cluster size and every kind of parent: what our engine wrote, everybody reads.
#[test]
fn what_we_write_everybody_reads() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let seed = seed::seed("what_we_write_everybody_reads");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut read_by_qcow2_rs = 0;
    // 13 sizes and 7 parents have no common factor: each meets each.
    for round in 0..13 * PARENTS.len() {
        let cluster = 512 << (round % 13);
        let parent = PARENTS[round % PARENTS.len()];
        let context = format!("seed={seed} round={round} cluster={cluster} parent={parent:?}");
        let folder = Folder::new();
        let len = random_len(&mut rng, cluster);
        let (below, name) = make_parent(&folder, parent, len, &mut rng);
        let mut disk = Disk::new(len, below.as_ref());
        let options = random_options(&mut rng, len, cluster);
        let context = format!("{context} {options:?}");
        let image = folder.create_with("tip", &options, name);
        send(&trace(&mut disk, 25, &mut rng, cluster), &image);
        drop(image);
        // Once more, by somebody who finds it made.
        let image = folder.open("tip", name);
        send(&trace(&mut disk, 15, &mut rng, cluster), &image);
        drop(image);

        let path = folder.path("tip");
        qemu::assert_clean(&path);
        let chain = folder.chain("tip", BackingFormat::Qcow2);
        disk.assert_is(&read_ours(&chain), "our chain", &context);
        disk.assert_is(&read_imago(&path), "imago", &context);
        disk.assert_is(&read_qemu_img(&folder, "tip"), "qemu-img", &context);
        check_by_qemu_io(&path, &disk, &mut rng);
        if let Some(read) = read_qcow2_rs(&folder, &chain) {
            disk.assert_is(&read, "qcow2-rs", &context);
            read_by_qcow2_rs += 1;
        }
    }
    assert!(read_by_qcow2_rs >= 10, "only {read_by_qcow2_rs}");
}

/// Every cluster size with every version and every width of refcounts: QEMU finds what was asked for, and no fault.
#[test]
fn every_size_version_and_width_is_accepted() {
    if !have("qemu-img") {
        return;
    }
    let seed = seed::seed("every_size_version_and_width_is_accepted");
    let mut rng = fastrand::Rng::with_seed(seed);
    let kinds = (0..7).map(|order| (3, 1 << order)).chain([(2, 16)]);
    for (cluster_bits, (version, refcount_bits)) in
        kinds.flat_map(|kind| (9..=21).map(move |bits| (bits, kind)))
    {
        let folder = Folder::new();
        let len = rng.usize(100..400) * SECTOR;
        let cluster = 1 << cluster_bits;
        let options = CreateOptions {
            cluster_size_bytes: 1 << cluster_bits,
            version,
            refcount_bits,
            ..CreateOptions::new(len as u64)
        };
        let context = format!("seed={seed} {options:?}");
        let mut disk = Disk::new(len, None);
        let image = folder.create_with("made", &options, None);
        send(&trace(&mut disk, 12, &mut rng, cluster), &image);
        drop(image);

        let path = folder.path("made");
        qemu::assert_clean(&path);
        let raw = folder.write_raw("raw", &disk);
        qemu::assert_reads_like(&path, &raw);
        let info = &qemu::backing_chain(&path)[0];
        let specific = &info["format-specific"]["data"];
        let compat = if version == 2 { "0.10" } else { "1.1" };
        assert_eq!(info["cluster-size"], 1 << cluster_bits, "{context}");
        assert_eq!(specific["compat"], compat, "{context}");
        assert_eq!(specific["refcount-bits"], refcount_bits, "{context}");
        let chain = folder.chain("made", BackingFormat::Qcow2);
        disk.assert_is(&read_ours(&chain), "our chain", &context);
    }
}

/// One trace into our image by us and into QEMU's by QEMU; then each writes on in the image of the other.
#[test]
fn qemu_and_we_replay_the_same_trace() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let seed = seed::seed("qemu_and_we_replay_the_same_trace");
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..39 {
        let cluster = 512 << (round % 13);
        let parent = PARENTS[round % PARENTS.len()];
        let compat = ["1.1", "0.10"][usize::from(rng.u8(0..4) == 0)];
        let context = format!("seed={seed} round={round} cluster={cluster} parent={parent:?}");
        let folder = Folder::new();
        let len = random_len(&mut rng, cluster);
        let (below, name) = make_parent(&folder, parent, len, &mut rng);
        let mut disk = Disk::new(len, below.as_ref());
        create_by_qemu_img(&folder, "theirs", len, cluster, name, compat);
        let image = folder.create("ours", len as u64, cluster, name);

        let ops = trace(&mut disk, 30, &mut rng, cluster);
        send(&ops, &image);
        drop(image);
        send_by_qemu_io(&ops, &folder, "theirs");
        assert_both(&folder, &disk, &context);

        let ops = trace(&mut disk, 20, &mut rng, cluster);
        send_by_qemu_io(&ops, &folder, "ours");
        let image = folder.open("theirs", name);
        send(&ops, &image);
        drop(image);
        assert_both(&folder, &disk, &format!("exchanged: {context}"));
    }
}

fn assert_both(folder: &Folder, disk: &Disk, context: &str) {
    for name in ["ours", "theirs"] {
        qemu::assert_clean(&folder.path(name));
        let chain = folder.chain(name, BackingFormat::Qcow2);
        disk.assert_is(&read_ours(&chain), name, context);
    }
    assert_equal_images(folder, "ours", "theirs", context);
}

fn create_by_qemu_img(
    folder: &Folder,
    name: &str,
    len: usize,
    cluster: usize,
    below: Below<'_>,
    compat: &str,
) {
    let options = format!("cluster_size={cluster},compat={compat}");
    let mut args: Vec<String> = ["create", "-q", "-f", "qcow2", "-o", &options]
        .map(Into::into)
        .into();
    if let Some((below, format)) = below {
        let format = format.as_str();
        args.extend(["-b", below, "-F", format].map(Into::into));
    }
    let path = folder.path(name);
    args.extend([path.display().to_string(), len.to_string()]);
    run_ok("qemu-img", args);
}

/// What a disk may hold after a cut, from the moment on when a flush had returned.
struct Promise {
    /// Position in the storage's log from which on it holds.
    from: usize,
    /// The disk at the flush.
    flushed: Disk,
    /// Requests since, each with the position before it and the disk after it.
    later: Vec<(usize, Disk)>,
}

/// The power fails at random moments: QEMU finds no error in what is left, and reads what was flushed.
#[test]
fn qemu_accepts_what_a_power_cut_leaves() {
    if have("qemu-img") {
        cut_the_power("qemu_accepts_what_a_power_cut_leaves", 12, None);
    }
}

/// The same with real files, on a filesystem that drops, reorders and tears what was not synced.
#[test]
fn qemu_accepts_what_a_lossy_filesystem_leaves() {
    if !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    if let Some(mounted) = LossyFs::mount(folder.path()) {
        let lossy = (&mounted, folder.path());
        cut_the_power(
            "qemu_accepts_what_a_lossy_filesystem_leaves",
            26,
            Some(lossy),
        );
    }
}

/// Rounds of eight cuts each, of images in memory or of files in a mounted folder.
fn cut_the_power(test: &str, rounds: usize, lossy: Option<(&LossyFs, &Path)>) {
    let seed = seed::seed(test);
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut cuts, mut old) = (0, 0);
    for round in 0..rounds {
        let cluster = 512 << (round % 6);
        let parent = PARENTS[round % PARENTS.len()];
        let folder = Folder::new();
        let len = rng.usize(200..700) * SECTOR;
        let (below, name) = make_parent(&folder, parent, len, &mut rng);
        let start = Disk::new(len, below.as_ref());
        let (file, log) = new_file(lossy, round);
        let promises = write_until_the_end((file, &log), &folder, &start, cluster, name, &mut rng);
        let end = log.position();
        for cut in 0..8 {
            let at = rng.usize(promises[0].from..=end);
            let lost = rng.u64(..);
            let context =
                format!("seed={seed} round={round} cut={cut} at={at}/{end} parent={parent:?}");
            let left = log.cut(at, lost);
            let report = qcow2::check(&left).expect("an image");
            assert_eq!(report.corruptions, 0, "{context}: {report:?}");
            std::fs::write(folder.path("cut"), left.to_bytes()).expect("a file");
            let promise = promises.iter().rev().find(|promise| promise.from <= at);
            let promise = promise.expect("the first one is before every cut");
            let read = assert_survived(&folder, promise, at, &context);
            cuts += 1;
            let last = promise
                .later
                .last()
                .map_or(&promise.flushed, |last| &last.1);
            old += usize::from(read != last.bytes());
        }
    }
    assert!(
        old >= cuts / 8,
        "the power cuts lost nothing: {old} of {cuts}"
    );
}

/// A new file, and the log of what happens to it.
fn new_file(
    lossy: Option<(&LossyFs, &Path)>,
    round: usize,
) -> (Arc<dyn Storage>, Arc<FaultyStorage>) {
    let Some((mounted, folder)) = lossy else {
        let storage = Arc::new(FaultyStorage::new());
        return (storage.clone(), storage);
    };
    let name = format!("image-{round}");
    let file = File::create_new(folder.join(&name)).expect("a new file");
    (Arc::new(FileStorage::new(file)), mounted.file(&name))
}

/// A random trace on a storage that remembers its order, and what each of its flushes promises.
fn write_until_the_end(
    (file, log): (Arc<dyn Storage>, &FaultyStorage),
    folder: &Folder,
    start: &Disk,
    cluster: usize,
    below: Below<'_>,
    rng: &mut fastrand::Rng,
) -> Vec<Promise> {
    let options = CreateOptions {
        cluster_size_bytes: u32::try_from(cluster).expect("a cluster size"),
        backing: below.map(|(name, format)| BackingName {
            name: name.to_owned(),
            format: Some(format),
        }),
        ..CreateOptions::new(start.bytes().len() as u64)
    };
    let parent = below.map(|(name, format)| Arc::new(folder.chain(name, format)));
    let image = Image::create(file, &options, parent).expect("a new image");
    let promise = |from, disk: &Disk| Promise {
        from,
        flushed: disk.clone(),
        later: Vec::new(),
    };
    let mut disk = start.clone();
    let mut promises = vec![promise(log.position(), &disk)];
    for _ in 0..rng.usize(15..50) {
        let op = disk.random_op(rng, cluster);
        let before = log.position();
        op.send(&image);
        disk.apply(&op);
        if matches!(op, Op::Flush) {
            promises.push(promise(log.position(), &disk));
        } else if let Some(promise) = promises.last_mut() {
            promise.later.push((before, disk.clone()));
        }
    }
    promises
}

/// Requires that every sector is as it was flushed or as a later request made it; returns what qemu-img reads.
fn assert_survived(folder: &Folder, promise: &Promise, cut: usize, context: &str) -> Vec<u8> {
    let path = folder.path("cut");
    qemu::assert_not_corrupt(&path);
    let read = read_qemu_img(folder, "cut");
    assert_eq!(read.len(), promise.flushed.bytes().len(), "{context}");
    let begun = promise.later.iter().filter(|(before, _)| *before <= cut);
    let possible: Vec<&Disk> = std::iter::once(&promise.flushed)
        .chain(begun.map(|(_, disk)| disk))
        .collect();
    for at in (0..read.len()).step_by(SECTOR) {
        let sector = at..at + SECTOR;
        let known = possible
            .iter()
            .any(|disk| disk.bytes()[sector.clone()] == read[sector.clone()]);
        assert!(known, "sector at {at} is neither old nor new: {context}");
    }
    // What leaked is all that is wrong: QEMU's repair leaves nothing and changes nothing.
    run_ok(
        "qemu-img",
        [
            "check".as_ref(),
            "-q".as_ref(),
            "-f".as_ref(),
            "qcow2".as_ref(),
            "-r".as_ref(),
        ]
        .into_iter()
        .chain(["leaks".as_ref(), path.as_os_str()]),
    );
    qemu::assert_clean(&path);
    let chain = folder.chain("cut", BackingFormat::Qcow2);
    assert!(read_ours(&chain) == read, "we read it as QEMU: {context}");
    read
}

/// Forty layers: the oldest, one in the middle and the tip read as they were written, by all.
#[test]
fn a_chain_of_forty_layers_reads_at_every_depth() {
    const LAYERS: usize = 40;
    if !have("qemu-img") {
        return;
    }
    let seed = seed::seed("a_chain_of_forty_layers_reads_at_every_depth");
    let mut rng = fastrand::Rng::with_seed(seed);
    let folder = Folder::new();
    let len = 3_000_000 / SECTOR * SECTOR;
    let cluster = 16_384;
    let mut disk = Disk::new(len, None);
    let mut below: Option<String> = None;
    for layer in 0..LAYERS {
        let name = format!("layer-{layer}");
        let backing = below.as_deref().map(|name| (name, BackingFormat::Qcow2));
        let image = folder.create(&name, len as u64, cluster, backing);
        let count = if layer == 0 { 40 } else { 4 };
        send(&trace(&mut disk, count, &mut rng, cluster), &image);
        folder.write_raw(&format!("{layer}.raw"), &disk);
        below = Some(name);
    }
    for layer in [0, 20, LAYERS - 1] {
        let context = format!("seed={seed} layer={layer}");
        let (name, raw) = (
            format!("layer-{layer}"),
            folder.path(&format!("{layer}.raw")),
        );
        let path = folder.path(&name);
        assert_eq!(qemu::backing_chain(&path).len(), layer + 1, "{context}");
        qemu::assert_clean(&path);
        qemu::assert_reads_like(&path, &raw);
        let bytes = std::fs::read(&raw).expect("the raw file");
        let chain = folder.chain(&name, BackingFormat::Qcow2);
        assert!(read_ours(&chain) == bytes, "our chain: {context}");
        assert!(read_imago(&path) == bytes, "imago: {context}");
    }
}

/// Disks far larger than their files, of odd sizes: both ends and the middle are read by all, and so is a layer on top.
#[test]
fn disks_of_terabytes() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    const TIB: u64 = 1 << 40;
    for (size, cluster) in [
        (2 * TIB, 65_536),
        (9 * TIB, 65_536),
        (2 * TIB - 512, 2 << 20),
        (9 * TIB + 3 * 512, 65_536),
    ] {
        let context = format!("size={size} cluster={cluster}");
        let folder = Folder::new();
        let image = folder.create("base", size, cluster, None);
        let tail = 700_000;
        let middle = size / 2 - 1000;
        image.write(0, &[1; 5000]).expect("the beginning");
        image.write(middle, &[2; 70_000]).expect("the middle");
        let end = vec![3; usize::try_from(tail).expect("a small number")];
        image.write(size - tail, &end).expect("the end");
        assert!(image.write(size - 1, &[9; 2]).is_err(), "{context}");
        image.flush().expect("a flush");
        drop(image);

        let tip = folder.create("tip", size, cluster, Some(("base", BackingFormat::Qcow2)));
        tip.write(size - 513, &[4; 513]).expect("the last sector");
        tip.write_zeroes(middle + 10, 100, false).expect("zeroes");
        tip.flush().expect("a flush");
        drop(tip);

        let (base, path) = (folder.path("base"), folder.path("tip"));
        qemu::assert_clean(&base);
        qemu::assert_clean(&path);
        let known = |at: u64, value: u8, len: u64| format!("read -P {value} {at} {len}");
        let common = [
            known(0, 1, 5000),
            known(5000, 0, 1 << 20),
            known(middle - 5000, 0, 5000),
            known(middle + 110, 2, 69_890),
            known(size - tail - 4096, 0, 4096),
            known(size - tail, 3, tail - 513),
        ];
        let in_base = [known(middle, 2, 70_000), known(size - tail, 3, tail)];
        let in_tip = [known(middle + 10, 0, 100), known(size - 513, 4, 513)];
        qemu_io(&base, true, &[&common[..], &in_base].concat());
        qemu_io(&path, true, &[&common[..], &in_tip].concat());

        let mut want = vec![3; 1513];
        want[1000..].fill(4);
        let imago = imago_image(&path);
        assert_eq!(imago.size(), size, "{context}");
        let mut read = vec![0; want.len()];
        imago.read(&mut read, size - 1513).expect("imago reads");
        assert!(read == want, "imago: {context}");
        let chain = folder.chain("tip", BackingFormat::Qcow2);
        chain.read(size - 1513, &mut read).expect("our chain reads");
        assert!(read == want, "our chain: {context}");
        let extents = chain.extents(0, size).expect("a map");
        assert_eq!(extents.iter().map(|e| e.len_bytes).sum::<u64>(), size);
        for path in [base, path] {
            let len = std::fs::metadata(&path).expect("a file").len();
            assert!(len < 64 << 20, "{len} bytes for some data: {context}");
        }
    }
}
