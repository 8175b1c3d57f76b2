//! What the format allows beyond the usual, as QEMU makes it: read, kept, or refused by name and left untouched.

use std::path::Path;
use std::sync::Arc;

use qcow2::{BackingFormat, Chain, CreateOptions, Error, Extent, ExtentKind, FileStorage, Image};
use tests::disk::{Disk, Op, SECTOR};
use tests::images::{Folder, qemu_io, read_ours, read_qemu_img};
use tests::peers::{have, run, run_ok};
use tests::{qemu, seed};

/// Where the incompatible, compatible and autoclear bits are, and the length of the header (qcow2 spec, "Header").
const INCOMPATIBLE_AT: usize = 72;
const AUTOCLEAR_AT: usize = 88;
const HEADER_LENGTH_AT: usize = 100;
const FEATURE_NAMES: [u8; 4] = 0x6803_f857_u32.to_be_bytes();

fn qemu_img(args: &[&str], image: &Path, rest: &[&str]) -> String {
    let rest = rest.iter().map(AsRef::as_ref);
    let args = args.iter().map(AsRef::as_ref);
    run_ok("qemu-img", args.chain([image.as_os_str()]).chain(rest))
}

fn create(folder: &Folder, name: &str, options: &str, size: &str) {
    let create = ["create", "-q", "-f", "qcow2", "-o", options];
    qemu_img(&create, &folder.path(name), &[size]);
}

/// Changes bytes of a file.
fn patch(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).expect("an image");
    change(&mut bytes);
    std::fs::write(path, bytes).expect("an image");
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn storage(path: &Path) -> Arc<FileStorage> {
    let file = std::fs::File::options().read(true).write(true).open(path);
    Arc::new(FileStorage::new(file.expect("an image")))
}

fn open_chain(folder: &Folder, name: &str) -> Result<Chain, Error> {
    let storage = storage(&folder.path(name));
    Chain::open(storage, name, BackingFormat::Qcow2, folder)
}

/// Requires that an image is refused for writing, and for reading too unless that is fine, with this in the error, and
/// that no byte of it changes.
fn assert_refused(folder: &Folder, name: &str, readable: bool, expected: &str) {
    let path = folder.path(name);
    let before = std::fs::read(&path).expect("an image");
    let mut errors = vec![Image::open(storage(&path), None).expect_err(name)];
    match open_chain(folder, name) {
        Ok(_) => assert!(readable, "{name} is read"),
        Err(error) => {
            assert!(!readable, "{name}: {error}");
            errors.push(error);
        }
    }
    for error in errors {
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
    let after = std::fs::read(&path).expect("an image");
    assert!(before == after, "{name} was changed");
}

/// An unknown feature has the name that the image gives it, in our images as in QEMU's, and QEMU reads our names.
#[test]
fn unknown_features_are_refused_by_their_names() {
    if !have("qemu-img") {
        return;
    }
    let folder = Folder::new();
    create(&folder, "theirs", "cluster_size=64k", "1M");
    drop(folder.create("ours", 1 << 20, 65_536, None));
    for name in ["theirs", "ours"] {
        let path = folder.path(name);
        patch(&path, |bytes| {
            let table = bytes.windows(4).position(|four| four == FEATURE_NAMES);
            let last = table.expect("a table of names") + 8 + 7 * 48;
            // What was the second autoclear bit is now the tenth incompatible one.
            assert_eq!(bytes[last..last + 2], [2, 1]);
            bytes[last..last + 2].copy_from_slice(&[0, 9]);
            bytes[INCOMPATIBLE_AT + 6] |= 2;
        });
        assert_refused(&folder, name, false, "\"raw external data\"");
        let said = run("qemu-img", ["info".as_ref(), path.as_os_str()]);
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("raw external data"), "{said}");
        // Without a name there is still the number.
        patch(&path, |bytes| bytes[INCOMPATIBLE_AT] |= 0x40);
        assert_refused(&folder, name, false, "bit 62");
    }
}

/// Everything that can be asked of a disk, at the borders of subclusters and anywhere, as qemu-io takes it.
fn random_commands(
    disk: &mut Disk,
    count: usize,
    cluster: usize,
    compressed: bool,
    rng: &mut fastrand::Rng,
) -> Vec<String> {
    let mut commands = Vec::new();
    // First, because QEMU compresses only what is not there yet.
    for start in (0..disk.bytes().len() / cluster).map(|index| index * cluster) {
        if compressed && rng.u8(0..8) == 0 {
            let runs = vec![(rng.u8(1..), cluster)];
            commands.push(format!("write -c -P {} {start} {cluster}", runs[0].0));
            disk.apply(&Op::Write {
                offset: start,
                runs,
            });
        }
    }
    for _ in 0..count {
        let op = disk.random_op(rng, cluster / 32);
        disk.apply(&op);
        commands.extend(op.qemu_io());
    }
    commands
}

/// Extended L2 entries: any mixture of layers reads and maps as QEMU says, and takes a layer of ours on top.
#[test]
fn subclusters_are_read_as_qemu_reads_them() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let seed = seed::seed("subclusters_are_read_as_qemu_reads_them");
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..16 {
        let folder = Folder::new();
        let mut below: Option<(String, &str)> = None;
        let mut disk = Disk::new(0, None);
        let depth = rng.usize(1..4);
        let compressed = rng.bool();
        for layer in 0..depth {
            // The tip has subclusters, what is below may.
            let extended = layer + 1 == depth || rng.bool();
            let cluster = 16_384 << [0, 0, 1, 2, 7][rng.usize(0..5)];
            let len = rng.usize(200..3000) * SECTOR + cluster;
            disk = Disk::new(len, Some(&disk));
            let name = format!("{layer}");
            if layer == 0 && rng.u8(0..4) == 0 && depth > 1 {
                random_commands(&mut disk, 8, cluster, false, &mut rng);
                folder.write_raw(&name, &disk);
                below = Some((name, "raw"));
                continue;
            }
            let on = if extended { "on" } else { "off" };
            let mut options = format!("cluster_size={cluster},extended_l2={on}");
            if let Some((name, format)) = &below {
                options += &format!(",backing_file={name},backing_fmt={format}");
            }
            create(&folder, &name, &options, &len.to_string());
            let commands = random_commands(&mut disk, 25, cluster, compressed, &mut rng);
            qemu_io(&folder.path(&name), false, &commands);
            below = Some((name, "qcow2"));
        }
        let context = format!("seed={seed} round={round} depth={depth}");
        let (tip, _) = below.expect("at least one layer");
        let chain = Arc::new(folder.chain(&tip, BackingFormat::Qcow2));
        disk.assert_is(&read_qemu_img(&folder, &tip), "qemu-img", &context);
        let ours = map_of(&chain.extents(0, chain.virtual_size_bytes()).expect("a map"));
        assert_eq!(ours, map_by_qemu(&folder.path(&tip)), "{context}");
        let storage = storage(&folder.path(&tip));
        let report = qcow2::check(&*storage).expect("a check");
        assert!(report.is_clean(), "{context}: {report:?}");
        assert_refused(&folder, &tip, true, "extended L2 entries");

        disk.assert_is(&read_ours(&chain), "our chain", &context);
        let len = disk.bytes().len();
        let image = folder.create("top", len as u64, 4096, Some((&tip, BackingFormat::Qcow2)));
        for _ in 0..15 {
            let op = disk.random_op(&mut rng, 4096);
            op.send(&image);
            disk.apply(&op);
        }
        image.flush().expect("a flush");
        drop(image);
        disk.assert_is(&read_qemu_img(&folder, "top"), "our layer", &context);
    }
}

/// What cannot be in an extended L2 entry is corrupt, in QEMU's eyes and in ours, and named with its value.
#[test]
fn subclusters_that_cannot_be_are_corrupt() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let folder = Folder::new();
    for (name, first, second) in [("both", None, 1_u64 << 32 | 1), ("nowhere", Some(0_u64), 1)] {
        create(&folder, name, "cluster_size=16k,extended_l2=on", "1M");
        let path = folder.path(name);
        qemu_io(&path, false, &["write -P 7 0 512".to_owned()]);
        patch(&path, |bytes| {
            let offset = |bytes: &[u8], at| {
                usize::try_from(u64_at(bytes, at) & 0x00ff_ffff_ffff_fe00).expect("an offset")
            };
            let l1 = offset(bytes, 40);
            let l2 = offset(bytes, l1);
            if let Some(first) = first {
                bytes[l2..l2 + 8].copy_from_slice(&first.to_be_bytes());
            }
            bytes[l2 + 8..l2 + 16].copy_from_slice(&second.to_be_bytes());
        });
        let chain = open_chain(&folder, name).expect("a chain");
        let error = chain.read(0, &mut [0; 512]).expect_err(name);
        assert_eq!(error.kind(), qcow2::ErrorKind::Corrupt);
        let value = format!("subclusters={second:#x}");
        assert!(error.to_string().contains(&value), "{error}");
        let report = qcow2::check(&*storage(&path)).expect("a check");
        assert!(report.corruptions > 0, "{report:?}");
        let read = run(
            "qemu-io",
            ["-r", "-c", "read 0 512"]
                .map(AsRef::as_ref)
                .into_iter()
                .chain([path.as_os_str()]),
        );
        let said = String::from_utf8_lossy(&read.stdout).into_owned();
        assert!(said.contains("failed"), "{name}: {said}");
    }
}

/// A run of a map: where, how long, what, and for data the layer and the place in its file.
type MapRun = (u64, u64, ExtentKind, Option<u64>, Option<u64>);

fn push_run(map: &mut Vec<MapRun>, next: MapRun) {
    let (start, len, kind, depth, host) = next;
    if let Some(last) = map.last_mut()
        && last.0 + last.1 == start
        && (last.2, last.3) == (kind, depth)
        && last.4.map(|host| host + last.1) == host
    {
        last.1 += len;
        return;
    }
    map.push((start, len, kind, depth, host));
}

fn map_of(extents: &[Extent]) -> Vec<MapRun> {
    let mut map = Vec::new();
    for extent in extents {
        let data = extent.kind == ExtentKind::Data;
        let depth = data.then_some(u64::from(extent.depth));
        let host = extent.host_offset.filter(|_| data);
        // In the words of qemu-img nobody has what lies beyond a layer's end.
        let kind = match extent.kind {
            ExtentKind::Beyond => ExtentKind::Unallocated,
            kind => kind,
        };
        push_run(
            &mut map,
            (extent.offset, extent.len_bytes, kind, depth, host),
        );
    }
    map
}

fn map_by_qemu(image: &Path) -> Vec<MapRun> {
    let text = qemu_img(&["map", "--output=json"], image, &[]);
    let runs: Vec<serde_json::Value> = serde_json::from_str(&text).expect("a map");
    let mut map = Vec::new();
    for run in &runs {
        let data = run["data"] == true;
        let kind = match (data, run["present"] == true) {
            (true, _) => ExtentKind::Data,
            (false, true) => ExtentKind::Zero,
            (false, false) => ExtentKind::Unallocated,
        };
        let number = |key: &str| run[key].as_u64();
        let at = (
            number("start").expect("a start"),
            number("length").expect("a length"),
        );
        let depth = number("depth").filter(|_| data);
        let host = number("offset").filter(|_| data);
        push_run(&mut map, (at.0, at.1, kind, depth, host));
    }
    map
}

/// An image that its writer left behind is read, and written only after a repair; lazy refcounts stay allowed.
#[test]
fn images_that_were_not_closed_are_read_and_not_written() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let folder = Folder::new();
    create(&folder, "dirty", "lazy_refcounts=on", "4M");
    let path = folder.path("dirty");
    let die = [
        "-c",
        "write -P 7 100000 300000",
        "-c",
        "flush",
        "-c",
        "abort",
    ];
    run(
        "qemu-io",
        die.map(AsRef::as_ref).into_iter().chain([path.as_os_str()]),
    );
    let bit = || std::fs::read(&path).expect("an image")[INCOMPATIBLE_AT + 7] & 1;
    assert_eq!(bit(), 1, "qemu-io left the image dirty");

    let mut disk = Disk::new(4 << 20, None);
    let runs = vec![(7, 300_000)];
    disk.apply(&Op::Write {
        offset: 100_000,
        runs,
    });
    let chain = folder.chain("dirty", BackingFormat::Qcow2);
    disk.assert_is(&read_ours(&chain), "our chain", "dirty");
    assert_refused(&folder, "dirty", true, "must be repaired");

    qemu_img(&["check", "-q", "-r", "all"], &path, &[]);
    assert_eq!(bit(), 0);
    let image = folder.open("dirty", None);
    let op = Op::Write {
        offset: 5000,
        runs: vec![(9, 200_000)],
    };
    op.send(&image);
    disk.apply(&op);
    image.flush().expect("a flush");
    drop(image);
    assert_eq!(bit(), 0, "our refcounts are always exact");
    qemu::assert_clean(&path);
    disk.assert_is(&read_qemu_img(&folder, "dirty"), "qemu-img", "repaired");
    let info = &qemu::backing_chain(&path)[0]["format-specific"]["data"];
    assert_eq!(info["lazy-refcounts"], true);
}

/// A corrupt mark is QEMU's word: reading is fine, writing is not.
#[test]
fn images_marked_corrupt_are_read_and_not_written() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let folder = Folder::new();
    create(&folder, "corrupt", "cluster_size=4k", "1M");
    let path = folder.path("corrupt");
    qemu_io(&path, false, &["write -P 7 1000 300000".to_owned()]);
    let mut disk = Disk::new(1 << 20, None);
    disk.apply(&Op::Write {
        offset: 1000,
        runs: vec![(7, 300_000)],
    });
    patch(&path, |bytes| bytes[INCOMPATIBLE_AT + 7] |= 2);
    let info = &qemu::backing_chain(&path)[0]["format-specific"]["data"];
    assert_eq!(info["corrupt"], true);
    let chain = folder.chain("corrupt", BackingFormat::Qcow2);
    disk.assert_is(&read_ours(&chain), "our chain", "corrupt");
    assert_refused(&folder, "corrupt", true, "marked corrupt");
}

/// What keeps its data elsewhere or encrypts it is refused by name, whatever made it.
#[test]
fn what_cannot_be_read_is_refused_by_name() {
    if !have("qemu-img") {
        return;
    }
    let folder = Folder::new();
    let secret = ["--object", "secret,id=key,data=secret"];
    for (name, options) in [
        (
            "luks",
            "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10",
        ),
        ("aes", "encrypt.format=aes,encrypt.key-secret=key"),
    ] {
        let args = [
            &["create", "-q"],
            &secret[..],
            &["-f", "qcow2", "-o", options],
        ]
        .concat();
        qemu_img(&args, &folder.path(name), &["1M"]);
    }
    assert_refused(&folder, "luks", false, "LUKS");
    assert_refused(&folder, "aes", false, "AES");
    for raw in ["off", "on"] {
        let name = format!("with-data-file-{raw}");
        let data = folder.path(&format!("{raw}.data"));
        let options = format!("data_file={},data_file_raw={raw}", data.display());
        create(&folder, &name, &options, "1M");
        assert_refused(&folder, &name, false, "external data file");
        assert_refused(&folder, &name, false, &format!("{raw}.data"));
    }
    create(&folder, "new", "compat=1.1", "1M");
    patch(&folder.path("new"), |bytes| bytes[7] = 4);
    assert_refused(&folder, "new", false, "version=4");
    let image = folder.create("sealed", 1 << 20, 512, None);
    let point_id = "point".to_owned();
    image
        .seal(&qcow2::Seal {
            point_id,
            ..Default::default()
        })
        .expect("a seal");
    drop(image);
    assert_refused(&folder, "sealed", true, "sealed");
}

/// QEMU's limits to the byte: what it opens we open, what it refuses we refuse.
#[test]
fn the_limits_are_those_of_qemu() {
    if !have("qemu-img") {
        return;
    }
    let folder = Folder::new();
    create(&folder, "image", "cluster_size=64k", "1M");
    let path = folder.path("image");
    let whole = std::fs::read(&path).expect("an image");
    let with = |at: usize, value: &[u8]| {
        let mut bytes = whole.clone();
        // Room for tables at their largest, all zero.
        bytes.resize(whole.len() + (66 << 20), 0);
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    let free = 1_u64 << 20;
    let table = |entries: u32| [&entries.to_be_bytes()[..], &free.to_be_bytes()].concat();
    let header = |len: u32| {
        let mut bytes = with(HEADER_LENGTH_AT, &len.to_be_bytes());
        // Fields that nobody knows yet; no extension follows.
        bytes[112..65_536].fill(0);
        bytes[112..65_536.min(112.max(len as usize))].fill(0xaa);
        bytes
    };
    let name = |offset: u64, len: u32| {
        let mut bytes = with(8, &offset.to_be_bytes());
        bytes[16..20].copy_from_slice(&len.to_be_bytes());
        bytes[1000..65_536].fill(b'n');
        bytes
    };
    let cases: Vec<(&str, bool, Vec<u8>)> = vec![
        ("L1 of 32 MiB", true, with(36, &table(4 << 20))),
        ("L1 above", false, with(36, &table((4 << 20) + 1))),
        ("65,536 snapshots", true, with(60, &table(65_536))),
        ("65,537 snapshots", false, with(60, &table(65_537))),
        ("name of 1,023 bytes", true, name(1000, 1023)),
        ("name of 1,024 bytes", false, name(1000, 1024)),
        ("name up to the end", true, name(65_535, 1)),
        ("name over the end", false, name(65_535, 2)),
        ("name of nothing", true, name(1000, 0)),
        ("header of 96", false, header(96)),
        ("header of 104", true, header(104)),
        ("header of 112", true, header(112)),
        ("header of 120", true, header(120)),
        ("header of 4096", true, header(4096)),
        ("header of a cluster", true, header(65_536)),
        ("header above", false, header(65_544)),
    ];
    for (what, fine, bytes) in cases {
        std::fs::write(&path, bytes).expect("an image");
        let info = run(
            "qemu-img",
            ["info".as_ref(), "-U".as_ref(), path.as_os_str()],
        );
        let said = String::from_utf8_lossy(&info.stderr).into_owned();
        // A table of snapshots that are all zero is refused for what it says, not for how many there are.
        let by_qemu =
            info.status.success() || said.contains("snapshot") && what.starts_with("65,536");
        assert_eq!(by_qemu, fine, "qemu-img: {what}: {said}");
        let opened = open_chain(&folder, "image").map(drop);
        let ours = match &opened {
            // The name was taken, but nothing can have it.
            Err(error) => error.to_string().contains("cannot open: name="),
            Ok(()) => true,
        };
        assert_eq!(ours, fine, "we: {what}: {opened:?}");
    }
}

/// Persistent bitmaps and features nobody knows, which a writer must clear: after us QEMU sees none of them.
#[test]
fn what_a_writer_does_not_keep_is_cleared() {
    if !have("qemu-img") {
        return;
    }
    let folder = Folder::new();
    create(&folder, "image", "cluster_size=64k", "16M");
    let path = folder.path("image");
    qemu_img(&["bitmap", "--add", "--enable"], &path, &["changes"]);
    patch(&path, |bytes| bytes[AUTOCLEAR_AT] |= 0x80);
    let bits = || u64_at(&std::fs::read(&path).expect("an image"), AUTOCLEAR_AT);
    let bitmaps = || qemu::backing_chain(&path)[0]["format-specific"]["data"]["bitmaps"].clone();
    assert_eq!(bits(), 1 << 63 | 1);
    assert!(bitmaps()[0]["name"] == "changes", "{}", bitmaps());
    // Reading changes nothing.
    drop(folder.chain("image", BackingFormat::Qcow2));
    assert_eq!(bits(), 1 << 63 | 1);
    let image = folder.open("image", None);
    // Before the first byte: a crash after it must not leave the bitmap valid.
    assert_eq!(bits(), 0);
    image.write(70_000, &[7; 100_000]).expect("a write");
    image.flush().expect("a flush");
    drop(image);
    assert_eq!(bits(), 0);
    assert!(bitmaps().is_null(), "{}", bitmaps());
    qemu::assert_not_corrupt(&path);
    qemu_img(&["check", "-q", "-r", "leaks"], &path, &[]);
    qemu::assert_clean(&path);
}

/// What nobody knows in the header stays, through writes and through the seal, also where the backing name must move.
#[test]
fn unknown_extensions_are_kept() {
    if !have("qemu-img") {
        return;
    }
    let unknown = [
        &0x1234_5678_u32.to_be_bytes()[..],
        &[0, 0, 0, 11],
        b"kept as is.",
        &[0; 5],
    ]
    .concat();
    let folder = Folder::new();
    drop(folder.create("base", 1 << 20, 65_536, None));
    let backing = ",backing_file=base,backing_fmt=qcow2";
    for (name, options, made_here) in [
        ("v2", "compat=0.10", false),
        ("v3", "compat=1.1", false),
        ("small", "compat=1.1,cluster_size=1k", false),
        ("ours", "", true),
    ] {
        let below = Some(("base", BackingFormat::Qcow2));
        if made_here {
            drop(folder.create(name, 1 << 20, 65_536, below));
        } else {
            create(&folder, name, &format!("{options}{backing}"), "1M");
        }
        let path = folder.path(name);
        patch(&path, |bytes| {
            // In front of all other extensions; the name moves with them where it follows them.
            let at = if bytes[7] == 2 { 72 } else { 112 };
            let name_at = usize::try_from(u64_at(bytes, 8)).expect("an offset");
            let area = if name_at < 1000 { name_at + 4 } else { name_at };
            bytes.copy_within(
                at..area - if name_at < 1000 { 0 } else { unknown.len() },
                at + unknown.len(),
            );
            bytes[at..at + unknown.len()].copy_from_slice(&unknown);
            if name_at < 1000 {
                let moved = (name_at + unknown.len()) as u64;
                bytes[8..16].copy_from_slice(&moved.to_be_bytes());
            }
        });
        let image = folder.open(name, below);
        image.write(5000, &[7; 10_000]).expect("a write");
        let seal = qcow2::Seal {
            point_id: "point".into(),
            ..Default::default()
        };
        image.seal(&seal).expect("a seal");
        drop(image);
        let header = std::fs::read(&path).expect("an image");
        let found = header[..1024]
            .windows(unknown.len())
            .filter(|part| *part == unknown);
        assert_eq!(found.count(), 1, "{name}");
        assert_eq!(
            folder.chain(name, BackingFormat::Qcow2).layers()[0].1.seal,
            Some(seal)
        );
        let chain = qemu::backing_chain(&path);
        assert_eq!(chain.len(), 2, "{name}");
        assert_eq!(chain[0]["backing-filename-format"], "qcow2", "{name}");
        qemu::assert_clean(&path);
    }
}

/// Internal snapshots are somebody's data: whatever we write, they stay as they were, for every width of refcounts that
/// can count them.
#[test]
fn internal_snapshots_are_never_damaged() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let seed = seed::seed("internal_snapshots_are_never_damaged");
    let mut rng = fastrand::Rng::with_seed(seed);
    for (round, options) in [
        "refcount_bits=2",
        "refcount_bits=4",
        "refcount_bits=8",
        "refcount_bits=32",
        "refcount_bits=64",
        "compat=0.10",
    ]
    .into_iter()
    .enumerate()
    {
        let cluster = 512 << rng.usize(0..9);
        let context = format!("seed={seed} round={round} options={options} cluster={cluster}");
        let folder = Folder::new();
        let path = folder.path("image");
        let len = rng.usize(300..1500) * SECTOR;
        create(
            &folder,
            "image",
            &format!("{options},cluster_size={cluster}"),
            &len.to_string(),
        );
        let mut disk = Disk::new(len, None);
        let write = |disk: &mut Disk, rng: &mut fastrand::Rng| {
            let image = folder.open("image", None);
            for _ in 0..12 {
                let op = disk.random_op(rng, cluster);
                op.send(&image);
                disk.apply(&op);
            }
            image.flush().expect("a flush");
            drop(image);
            qemu::assert_clean(&path);
        };
        write(&mut disk, &mut rng);
        let mut kept = Vec::new();
        // Going back, QEMU counts one more for a moment: two bits, which count to three, have room for one snapshot.
        let names = ["first", "second"];
        let count = if options == "refcount_bits=2" { 1 } else { 2 };
        for name in &names[..count] {
            qemu_img(&["snapshot", "-c", name], &path, &[]);
            kept.push((*name, disk.clone()));
            write(&mut disk, &mut rng);
        }
        disk.assert_is(&read_qemu_img(&folder, "image"), "qemu-img", &context);
        for (name, disk) in &kept {
            let out = folder.path("snapshot.raw");
            let convert = ["convert", "-f", "qcow2", "-O", "raw", "-l", name];
            qemu_img(&convert, &path, &[out.to_str().expect("a path in UTF-8")]);
            let bytes = std::fs::read(&out).expect("what qemu-img wrote");
            disk.assert_is(&bytes, name, &context);
        }
        for (name, snapshot) in &kept {
            qemu_img(&["snapshot", "-a", name], &path, &[]);
            disk = snapshot.clone();
            write(&mut disk, &mut rng);
            disk.assert_is(
                &read_qemu_img(&folder, "image"),
                "after going back",
                &context,
            );
        }
        for (name, _) in &kept {
            qemu_img(&["snapshot", "-d", name], &path, &[]);
        }
        write(&mut disk, &mut rng);
        disk.assert_is(&read_qemu_img(&folder, "image"), "alone again", &context);
    }
}

/// The names of features leave room for a seal and a long backing name, or are left out.
#[test]
fn a_small_first_cluster_has_room_for_what_matters() {
    if !have("qemu-img") {
        return;
    }
    let folder = Folder::new();
    let base = "b".repeat(100);
    drop(folder.create(&base, 1 << 20, 65_536, None));
    for bits in 9..=16 {
        let name = format!("{bits}");
        let below = Some((base.as_str(), BackingFormat::Qcow2));
        let image = folder.create_with(
            &name,
            &CreateOptions {
                cluster_size_bytes: 1 << bits,
                ..CreateOptions::new(1 << 20)
            },
            below,
        );
        let id = || "0".repeat(36);
        let seal = qcow2::Seal {
            point_id: id(),
            parent_id: Some(id()),
            change_id: Some(id()),
            ..Default::default()
        };
        image.seal(&seal).expect("a seal");
        drop(image);
        let path = folder.path(&name);
        assert_eq!(qemu::backing_chain(&path).len(), 2, "{name}");
        qemu::assert_clean(&path);
        let bytes = std::fs::read(&path).expect("an image");
        let named = bytes.windows(4).any(|four| four == FEATURE_NAMES);
        assert_eq!(named, bits >= 13, "{name}");
    }
}
