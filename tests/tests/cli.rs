//! `sendense-hub image …` and `export` beside qemu's programs, and how both programs end.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tests::hub::{DEADLINE, first_line, terminate, wait};
use tests::images::Folder;
use tests::peers::{have, run, run_ok};
use tests::{qemu, seed};

const HUB: &str = env!("CARGO_BIN_EXE_hub");
const CLIENT: &str = env!("CARGO_BIN_EXE_client");

fn hub(args: &[&str]) -> Output {
    run(HUB, args)
}

fn hub_ok(args: &[&str]) -> String {
    run_ok(HUB, args)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `sendense-hub export …` as a process; its URL.
fn export(args: &[&str]) -> (Child, String) {
    let mut child = Command::new(HUB)
        .args(["export", "--listen", "127.0.0.1:0"])
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = first_line(&mut child);
    let url = line
        .strip_prefix("ready ")
        .unwrap_or_else(|| panic!("no ready line: {line:?}"));
    (
        child,
        url.split(' ')
            .next()
            .unwrap()
            .trim_end_matches('/')
            .to_owned(),
    )
}

#[test]
fn created_images_are_what_qemu_would_make() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, cluster) in [("a.qcow2", "512"), ("b.qcow2", "64K"), ("c.qcow2", "2M")] {
        let path = dir.path().join(name);
        hub_ok(&[
            "image",
            "create",
            text(&path),
            "100M",
            "--cluster-size",
            cluster,
        ]);
        qemu::assert_clean(&path);
        assert_eq!(qemu::backing_chain(&path)[0]["virtual-size"], 100 << 20);
        let again = hub(&["image", "create", text(&path), "1M"]);
        assert_eq!(again.status.code(), Some(1), "never overwrites");
    }
    let old = dir.path().join("old.qcow2");
    hub_ok(&["image", "create", text(&old), "1M", "--compat", "0.10"]);
    let narrow = dir.path().join("narrow.qcow2");
    let width = ["--refcount-bits", "1"];
    hub_ok(&[&["image", "create", text(&narrow), "1M"], &width[..]].concat());
    for (path, compat, bits) in [(&old, "0.10", 16), (&narrow, "1.1", 1)] {
        qemu::assert_clean(path);
        let facts = &qemu::backing_chain(path)[0]["format-specific"]["data"];
        assert_eq!(facts["compat"], compat);
        assert_eq!(facts["refcount-bits"], bits);
    }
    let both = ["--compat", "0.10", "--refcount-bits", "8"];
    let never = dir.path().join("never.qcow2");
    let refused = hub(&[&["image", "create", text(&never), "1M"], &both[..]].concat());
    assert_eq!(refused.status.code(), Some(1));
    assert!(!never.exists(), "nothing is left of it");
    let base = dir.path().join("b.qcow2");
    let child = dir.path().join("child.qcow2");
    hub_ok(&["image", "create", text(&child), "--backing", text(&base)]);
    let chain = qemu::backing_chain(&child);
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[0]["backing-filename-format"], "qcow2");
    let ours: Value =
        serde_json::from_str(&hub_ok(&["image", "info", "--json", text(&child)])).unwrap();
    assert!(ours.to_string().contains("b.qcow2"), "{ours}");
}

/// An image of qemu-img's with data, whose refcounts can be set: 16 bits each, one block for all of them.
struct Counted {
    path: PathBuf,
    refcount_block: u64,
    /// The first cluster of data.
    data: u64,
    /// One behind all that are in use.
    end: u64,
}

impl Counted {
    fn new(path: PathBuf) -> Self {
        run_ok(
            "qemu-img",
            ["create", "-q", "-f", "qcow2", text(&path), "16M"],
        );
        let write = ["-c", "write -P 7 0 1M", "-c", "write -z 2M 1M"];
        run_ok(
            "qemu-io",
            [&["-f", "qcow2"], &write[..], &[text(&path)]].concat(),
        );
        let file = File::open(&path).unwrap();
        let field = |offset: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, offset).unwrap();
            u64::from_be_bytes(bytes)
        };
        let l2_table = field(field(40)) & 0x00ff_ffff_ffff_fe00;
        Self {
            data: (field(l2_table) & 0x00ff_ffff_ffff_fe00) >> 16,
            refcount_block: field(field(48)),
            end: fs::metadata(&path).unwrap().len() >> 16,
            path,
        }
    }

    /// Sets the count of a cluster, which lies in the file.
    fn count(&self, cluster: u64, count: u16) {
        let file = File::options().write(true).open(&self.path).unwrap();
        file.write_all_at(&count.to_be_bytes(), self.refcount_block + cluster * 2)
            .unwrap();
        file.set_len((self.end + 1) << 16).unwrap();
    }
}

#[test]
fn verdicts_are_those_of_qemu_img_check() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = Counted::new(dir.path().join("disk.qcow2"));
    // (whose count, the count, the verdict): a count without a reference is a leak, a reference without one a corruption.
    for (cluster, count, code) in [
        (image.data, 1, 0),
        (image.end, 1, 3),
        (image.end, 0, 0),
        (image.data, 0, 2),
    ] {
        image.count(cluster, count);
        let theirs = run("qemu-img", ["check", text(&image.path)]).status.code();
        assert_eq!(
            theirs,
            Some(code),
            "the fixture damages what it means to damage"
        );
        let ours = hub(&["image", "check", text(&image.path)]);
        assert_eq!(
            ours.status.code(),
            Some(code),
            "{}",
            String::from_utf8_lossy(&ours.stdout)
        );
    }
}

#[test]
fn repairs_end_like_those_of_qemu_img_check() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = Counted::new(dir.path().join("disk.qcow2"));
    let (path, copy) = (text(&image.path), dir.path().join("copy.qcow2"));
    // (whose count, the count, what is repaired, how qemu-img's repair ends and how ours, leaks and corruptions that were
    // repaired). What is left of corruptions is an error of the repair to qemu-img; to us it is what was found.
    for (cluster, count, what, their_code, code, fixed) in [
        (image.end, 1, "leaks", 0, 0, (1, 0)),
        (image.data, 0, "leaks", 1, 2, (0, 0)),
        (image.data, 0, "all", 0, 0, (0, 2)),
    ] {
        image.count(cluster, count);
        fs::copy(path, &copy).unwrap();
        let theirs = run("qemu-img", ["check", "-r", what, text(&copy)]);
        assert_eq!(theirs.status.code(), Some(their_code), "{what}");
        let ours = hub(&["image", "check", "--repair", what, "--json", path]);
        assert_eq!(ours.status.code(), Some(code), "{what}");
        let told: Value = serde_json::from_slice(&ours.stdout).unwrap();
        let figure = |name: &str| told[name].as_u64().unwrap();
        assert_eq!(
            (figure("leaks-fixed"), figure("corruptions-fixed")),
            fixed,
            "{told}"
        );
        let left = run("qemu-img", ["check", path]);
        assert_eq!(left.status.code(), Some(code), "{what}");
    }
}

#[test]
fn a_sealed_image_is_not_repaired() {
    let folder = Folder::new();
    let image = folder.create("sealed.qcow2", 1 << 20, 4096, None);
    let seal = qcow2::Seal {
        point_id: "p7".into(),
        ..qcow2::Seal::default()
    };
    image.seal(&seal).unwrap();
    drop(image);
    let path = folder.path("sealed.qcow2");
    let before = fs::read(&path).unwrap();
    let refused = hub(&["image", "check", "--repair", "all", text(&path)]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("sealed") && said.contains("p7"), "{said}");
    assert!(fs::read(&path).unwrap() == before, "nothing was written");
}

#[test]
fn compare_map_and_convert_agree_with_qemu_img() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (base, tip) = (dir.path().join("base.qcow2"), dir.path().join("tip.qcow2"));
    run_ok(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", text(&base), "24M"],
    );
    run_ok(
        "qemu-io",
        [
            "-f",
            "qcow2",
            "-c",
            "write -P 1 0 4M",
            "-c",
            "write -P 2 8M 1M",
            text(&base),
        ],
    );
    run_ok(
        "qemu-img",
        [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "base.qcow2",
            "-F",
            "qcow2",
            text(&tip),
            "32M",
        ],
    );
    run_ok(
        "qemu-io",
        [
            "-f",
            "qcow2",
            "-c",
            "write -P 3 1M 100k",
            "-c",
            "write -z 2M 1M",
            text(&tip),
        ],
    );

    let raw = dir.path().join("out.raw");
    let flat = dir.path().join("flat.qcow2");
    hub_ok(&["image", "convert", text(&tip), text(&raw), "-O", "raw"]);
    hub_ok(&["image", "convert", text(&tip), text(&flat), "-O", "qcow2"]);
    qemu::assert_reads_like(&tip, &raw);
    qemu::assert_clean(&flat);
    assert_eq!(qemu::backing_chain(&flat).len(), 1);
    qemu::assert_reads_like(&flat, &raw);

    assert_eq!(
        hub(&["image", "compare", text(&tip), text(&flat)])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(
        hub(&["image", "compare", text(&tip), text(&base)])
            .status
            .code(),
        Some(1)
    );

    let theirs = run_ok(
        "qemu-img",
        ["map", "--output=json", "-f", "qcow2", text(&tip)],
    );
    let theirs: Vec<Value> = serde_json::from_str(&theirs).unwrap();
    let ours: Vec<Value> =
        serde_json::from_str(&hub_ok(&["image", "map", "--json", text(&tip)])).unwrap();
    assert_eq!(
        bytes(&ours, |run| run["data"] == true),
        bytes(&theirs, |run| run["data"] == true)
    );
    assert_eq!(
        bytes(&ours, |run| run["zero"] == true),
        bytes(&theirs, |run| run["zero"] == true)
    );
    for depth in 0..2 {
        let data_at = |run: &Value| run["depth"] == depth && run["data"] == true;
        assert_eq!(
            bytes(&ours, data_at),
            bytes(&theirs, data_at),
            "depth {depth}"
        );
    }
}

/// A disk with holes becomes a smaller image, which QEMU calls by the same type and maps as we do.
#[test]
fn compressed_conversions_are_smaller_and_equal() {
    const MIB: usize = 1 << 20;
    if !have("qemu-img") {
        return;
    }
    let mut rng = seed::rng("compressed_conversions");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // A hole, letters, a hole, noise, a hole, and a last sector that fills no cluster.
    let (raw, len) = (at("disk.raw"), 9 * MIB + 512);
    let mut content = vec![0; len];
    content[MIB..4 * MIB].fill_with(|| rng.u8(b'a'..b'i'));
    content[6 * MIB..7 * MIB].fill_with(|| rng.u8(..));
    content[9 * MIB..].fill(7);
    let file = File::create(&raw).unwrap();
    for range in [MIB..4 * MIB, 6 * MIB..7 * MIB, 9 * MIB..len] {
        let offset = range.start as u64;
        file.write_all_at(&content[range], offset).unwrap();
    }
    let kinds = [
        ("zlib", &["--compress"][..], "64K"),
        ("zlib", &["--compress=zlib"], "4K"),
        ("zstd", &["--compress=zstd"], "64K"),
        ("zstd", &["--compress=zstd"], "2M"),
    ];
    for (kind, flags, cluster) in kinds {
        let context = format!("kind={kind} cluster={cluster}");
        let [plain, image] =
            ["plain", "image"].map(|name| at(&format!("{name}-{kind}-{cluster}.qcow2")));
        let convert = |to: &Path, flags: &[&str]| {
            let fixed = ["image", "convert", text(&raw), text(to), "-O", "qcow2"];
            let size = ["--cluster-size", cluster, "--json"];
            let said = hub_ok(&[&fixed[..], &size, flags].concat());
            let said: Value = serde_json::from_str(&said).unwrap();
            assert_eq!(said["virtual_size_bytes"], len as u64, "{context}");
            said["written_bytes"].as_u64().unwrap()
        };
        let written = convert(&plain, &[]);
        let stored = convert(&image, flags);
        assert!((written..len as u64).contains(&stored), "{context}");
        let saved = fs::metadata(&plain).unwrap().len() - fs::metadata(&image).unwrap().len();
        assert!(saved > MIB as u64, "{context}: saved={saved}");
        qemu::assert_clean(&image);
        qemu::assert_reads_like(&image, &raw);
        hub_ok(&["image", "compare", text(&raw), text(&image)]);

        let theirs = &qemu::backing_chain(&image)[0]["format-specific"]["data"];
        let ours = hub_ok(&["image", "info", "--json", text(&image)]);
        let ours: Value = serde_json::from_str(&ours).unwrap();
        assert_eq!(theirs["compression-type"], kind);
        assert_eq!(ours[0]["format-specific"]["data"]["compression-type"], kind);
        let said = hub_ok(&["image", "info", text(&image)]);
        let line = said
            .lines()
            .find(|line| line.starts_with("compression type:"));
        assert!(line.is_some_and(|line| line.ends_with(kind)), "{said}");

        let map = ["map", "--output=json", "-f", "qcow2", text(&image)];
        let theirs: Vec<Value> = serde_json::from_str(&run_ok("qemu-img", map)).unwrap();
        let ours = hub_ok(&["image", "map", "--json", text(&image)]);
        let ours: Vec<Value> = serde_json::from_str(&ours).unwrap();
        let states = |map: &[Value]| {
            let mut states = vec![String::new(); len / 512];
            for run in map {
                let field = |name: &str| usize::try_from(run[name].as_u64().unwrap()).unwrap();
                let (start, length) = (field("start") / 512, field("length") / 512);
                let flags = ["present", "zero", "data", "compressed"].map(|name| &run[name]);
                states[start..start + length].fill(format!("{flags:?}"));
            }
            states
        };
        assert!(states(&ours) == states(&theirs), "{ours:?} {theirs:?}");
        let compressed = bytes(&ours, |run| run["compressed"] == true);
        assert!(compressed >= 3 * MIB as u64, "{context}: {compressed}");
        let said = hub_ok(&["image", "map", text(&image)]);
        assert!(said.contains("compressed"), "{said}");
    }
    let never = at("never.raw");
    let to = ["image", "convert", text(&raw), text(&never), "-O", "raw"];
    let refused = hub(&[&to[..], &["--compress"]].concat());
    assert_eq!(refused.status.code(), Some(1));
    assert!(!never.exists(), "nothing is left of it");
}

/// What lies above the older point in QEMU's map, and the growth of the disk, is what we tell; the rest is equal.
#[test]
fn changes_are_what_qemu_img_maps_above_the_older_point() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let writes = [
        ("base.qcow2", "8M", ["write -P 1 0 3M", "write -P 2 5M 1M"]),
        (
            "middle.qcow2",
            "8M",
            ["write -P 3 1M 100k", "write -z 2M 64k"],
        ),
        (
            "tip.qcow2",
            "9M",
            ["write -P 4 1100k 200k", "write -P 1 0 64k"],
        ),
    ];
    let mut below: Option<&str> = None;
    for (name, size, commands) in writes {
        let path = at(name);
        let mut args = vec!["image", "create", text(&path), size];
        args.extend(below.iter().flat_map(|below| ["--backing", below]));
        hub_ok(&args);
        for command in commands {
            run_ok("qemu-io", ["-f", "qcow2", "-c", command, text(&path)]);
        }
        let raw = at(&format!("{name}.raw"));
        hub_ok(&["image", "convert", text(&path), text(&raw), "-O", "raw"]);
        below = Some(name);
    }
    let (tip, depth) = (at("tip.qcow2"), 2);
    let map = ["map", "--output=json", "-f", "qcow2", text(&tip)];
    let map: Vec<Value> = serde_json::from_str(&run_ok("qemu-img", map)).unwrap();
    let mut changed = vec![false; 9 << 20];
    let range = |run: &Value| {
        let start = usize::try_from(run["start"].as_u64().unwrap()).unwrap();
        start..start + usize::try_from(run["length"].as_u64().unwrap()).unwrap()
    };
    let above = |run: &&Value| run["depth"].as_u64() < Some(depth) && run["present"] == true;
    for run in map.iter().filter(above) {
        changed[range(run)].fill(true);
    }
    changed[8 << 20..].fill(true);

    let since = at("base.qcow2");
    let told = hub_ok(&[
        "image",
        "changes",
        "--json",
        text(&tip),
        "--since",
        text(&since),
    ]);
    let told: Vec<Value> = serde_json::from_str(&told).unwrap();
    let mut ours = vec![false; 9 << 20];
    for run in &told {
        ours[range(run)].fill(true);
    }
    assert!(ours == changed, "ours={told:?} theirs={map:?}");
    assert_eq!(told.len(), 4, "{told:?}");
    let new = fs::read(at("tip.qcow2.raw")).unwrap();
    let old = fs::read(at("base.qcow2.raw")).unwrap();
    let differs = |byte: usize| !ours[byte] && old.get(byte) != Some(&new[byte]);
    assert_eq!((0..new.len()).find(|byte| differs(*byte)), None);

    // What two points share is not read to compare them: here it could not be.
    fs::copy(&tip, at("copy.qcow2")).unwrap();
    let base = File::options().write(true).open(&since).unwrap();
    let len = base.metadata().unwrap().len();
    base.set_len(len - (1 << 20)).unwrap();
    assert!(
        !hub(&["image", "compare", text(&tip), text(&at("tip.qcow2.raw"))])
            .status
            .success()
    );
    let copy = at("copy.qcow2");
    hub_ok(&["image", "compare", text(&tip), text(&copy)]);

    // Two images without a common layer have nothing to tell.
    let alone = at("alone.qcow2");
    hub_ok(&["image", "create", text(&alone), "8M"]);
    let refused = hub(&["image", "changes", text(&tip), "--since", text(&alone)]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("no layer in common"), "{said}");
}

fn bytes(map: &[Value], which: impl Fn(&Value) -> bool) -> u64 {
    map.iter()
        .filter(|run| which(run))
        .map(|run| run["length"].as_u64().unwrap())
        .sum()
}

#[test]
fn an_export_serves_what_was_flushed_after_a_kill() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let mut rng = seed::rng("export_killed");
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.qcow2");
    hub_ok(&["image", "create", text(&base), "64M"]);
    run_ok(
        "qemu-io",
        ["-f", "qcow2", "-c", "write -P 1 0 32M", text(&base)],
    );
    for round in 0..5 {
        let image = dir.path().join(format!("disk-{round}.qcow2"));
        let (mut child, url) = export(&[text(&image), "--create", "64M", "--backing", text(&base)]);
        let offset = rng.u64(0..60 << 20);
        let flushed = format!("write -P 77 {offset} 1000000");
        let late_offset = rng.u64(0..60 << 20);
        let open = format!("write -P 78 {late_offset} 1000000");
        run_ok(
            "qemu-io",
            [
                "-f",
                "raw",
                "-c",
                &flushed,
                "-c",
                "flush",
                text(Path::new(&url)),
            ],
        );
        let late = Command::new("qemu-io")
            .args(["-f", "raw", "-t", "writeback", "-c", &open, &url])
            .output();
        assert!(late.is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
        qemu::assert_not_corrupt(&image);
        // The flushed bytes are there, unless the later write, which may or may not be, covers them.
        let holds = |pattern: u8| {
            let read = format!("read -P {pattern} {offset} 1000");
            run("qemu-io", ["-r", "-f", "qcow2", "-c", &read, text(&image)])
                .status
                .success()
        };
        let covered = late_offset < offset + 1000 && offset < late_offset + 1_000_000;
        assert!(
            holds(77) || (covered && holds(78)),
            "round {round}: flushed at {offset}"
        );
    }
}

#[test]
fn an_export_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.qcow2");
    let (mut child, url) = export(&[text(&image), "--create", "8M"]);
    if have("nbdinfo") {
        let info = run_ok("nbdinfo", ["--size", &url]);
        assert_eq!(info.trim(), (8 << 20).to_string());
        run_ok("nbdinfo", ["--size", &format!("{url}/disk")]);
    }
    terminate(&child);
    assert_eq!(
        wait(&mut child, DEADLINE).and_then(|status| status.code()),
        Some(0)
    );

    let (mut child, url) = export(&[text(&image), "--read-only"]);
    if have("qemu-io") {
        let said = run("qemu-io", ["-f", "raw", "-c", "write 0 512", &url]);
        assert!(!said.status.success(), "a read-only export takes no writes");
    }
    terminate(&child);
    assert_eq!(
        wait(&mut child, DEADLINE).and_then(|status| status.code()),
        Some(0)
    );
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("external.qcow2");
    let data = dir.path().join("external.raw");
    let option = format!("data_file={}", data.display());
    run_ok(
        "qemu-img",
        [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &option,
            text(&image),
            "1M",
        ],
    );
    let refused = hub(&["export", "--listen", "127.0.0.1:0", text(&image)]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).to_lowercase();
    assert!(said.contains("external data file"), "{said}");
    // A guest can write what looks like a qcow2 header into its raw disk: content alone decides nothing.
    let raw = dir.path().join("guest.raw");
    fs::copy(&image, &raw).unwrap();
    let refused = hub(&["export", "--listen", "127.0.0.1:0", text(&raw)]);
    assert_eq!(refused.status.code(), Some(1), "ambiguous without --format");
    let said = String::from_utf8_lossy(&refused.stderr).to_lowercase();
    assert!(said.contains("--format"), "{said}");
}

#[test]
fn both_programs_end_as_they_say() {
    assert_eq!(hub(&["--version"]).status.code(), Some(0));
    assert_eq!(hub(&["serve", "--no-such-flag"]).status.code(), Some(2));
    assert_eq!(run(CLIENT, ["backup"]).status.code(), Some(2));
    let nobody = run(
        CLIENT,
        [
            "backup",
            "--hub",
            "http://127.0.0.1:1",
            "--vm",
            "x",
            "--disk",
            "/dev/null",
        ],
    );
    assert_eq!(nobody.status.code(), Some(1));
    let dir = tempfile::tempdir().unwrap();
    let exposed = run(
        HUB,
        ["serve", "--api", "0.0.0.0:0", "--data", text(dir.path())],
    );
    assert_eq!(exposed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&exposed.stderr).contains("--insecure"));
    let missing: PathBuf = dir.path().join("none.qcow2");
    let said = hub(&["image", "info", text(&missing)]);
    assert_eq!(said.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&said.stderr).contains("none.qcow2"));
}
