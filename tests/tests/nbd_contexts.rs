//! Depth, changes and extended headers, as the clients of others see them.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use engine::standalone::{Device, NamedDevice, Server, serve};
use engine::{ListenAddress, ServerLimits};
use nbd_server::proto::{CommandCode, CommandFlags, HeaderStyle};
use tests::peers::{have, have_python_libnbd, run_ok};
use tests::servers::{Client, Outcome, Served};
use tokio::runtime::Runtime;

/// Runs as nbdinfo prints them: offset, length, state.
type Runs = Vec<(u64, u64, u64)>;

const CHANGES: &str = "qemu:dirty-bitmap:changes";
const DEPTH: &str = "qemu:allocation-depth";

/// Name, size, and what qemu-io does to it.
type Layer = (&'static str, &'static str, &'static [&'static str]);

/// What the lowest wrote is replaced, zeroed and left alone by those above.
const THREE: [Layer; 3] = [
    ("base", "64M", &["write -P 1 0 8M", "write -P 1 20M 1M"]),
    (
        "mid",
        "64M",
        &["write -P 2 1M 2M", "write -z 4M 1M", "write -P 2 30M 64k"],
    ),
    (
        "tip",
        "64M",
        &["write -P 3 2M 2M", "write -z 0 512k", "write -P 3 63M 1M"],
    ),
];

/// Images of qemu, each on top of the one before; the tip.
fn layers(dir: &Path, layers: &[Layer]) -> PathBuf {
    let mut below: Option<PathBuf> = None;
    for (name, size, commands) in layers {
        let path = dir.join(format!("{name}.qcow2"));
        let text = |path: &Path| path.to_str().expect("a plain path").to_owned();
        let mut args = vec!["create".to_owned(), "-q".to_owned()];
        args.extend(["-f", "qcow2"].map(str::to_owned));
        if let Some(below) = &below {
            args.extend(["-F".to_owned(), "qcow2".to_owned(), "-b".to_owned()]);
            args.push(text(below));
        }
        args.extend([text(&path), (*size).to_owned()]);
        run_ok("qemu-img", args);
        for command in *commands {
            run_ok("qemu-io", ["-f", "qcow2", "-c", command, &text(&path)]);
        }
        below = Some(path);
    }
    below.expect("a layer")
}

fn chain(dir: &Path) -> PathBuf {
    layers(dir, &THREE)
}

/// qemu-nbd on this image, with its depth.
fn qemu_nbd(image: &Path) -> Served {
    let socket = image.with_extension("qemu.sock");
    let text = |path: &Path| path.to_str().expect("a plain path").to_owned();
    let (path, image) = (text(&socket), text(image));
    let args = [
        "-t", "-e", "0", "-r", "-A", "-f", "qcow2", "-k", &path, &image,
    ];
    Served::program("qemu-nbd", &socket, &args)
}

/// `export IMAGE`, without the program around it.
struct Exported {
    runtime: Runtime,
    server: Option<Server>,
    socket: PathBuf,
}

impl Exported {
    fn new(image: &Path, read_only: bool) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let socket = image.with_extension("sock");
        let device = Device::Open {
            source: image.into(),
            read_only,
        };
        let name = "disk".to_owned();
        let listen = [ListenAddress::Unix(socket.clone()).into()];
        let serving = serve(
            vec![NamedDevice { name, device }],
            &listen,
            ServerLimits::default(),
        );
        let server = Some(runtime.block_on(serving).expect("a server"));
        Self {
            runtime,
            server,
            socket,
        }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket.display())
    }

    fn connect(&self, context: &str) -> Client {
        Client::connect(&self.socket, "disk", HeaderStyle::Structured, &[context])
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop()).expect("an end");
        }
    }
}

/// `nbdinfo --map`, neighbours of equal state joined: a client may cut runs where its requests end.
fn map(uri: &str, context: &str) -> Runs {
    let context = format!("--map={context}");
    let text = run_ok("nbdinfo", [&context, "--json", uri]);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut runs = Runs::new();
    for run in json.as_array().expect("a list") {
        let number = |key: &str| run[key].as_u64().expect("a number");
        let (offset, len, state) = (number("offset"), number("length"), number("type"));
        match runs.last_mut() {
            Some(last) if last.2 == state => last.1 += len,
            _ => runs.push((offset, len, state)),
        }
    }
    runs
}

#[test]
fn depth_is_what_qemu_says_and_changes_are_what_the_tip_holds() {
    if !(have("nbdinfo") && have("qemu-nbd") && have("qemu-io")) {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let tip = chain(dir.path());
    let qemu = qemu_nbd(&tip);
    let (theirs, their_depth) = (qemu.uri(""), map(&qemu.uri(""), DEPTH));
    assert!(their_depth.len() > 8, "{their_depth:?}");
    let ours = Exported::new(&tip, true);
    assert_eq!(map(&ours.uri(), DEPTH), their_depth);
    assert_eq!(
        map(&ours.uri(), "base:allocation"),
        map(&theirs, "base:allocation")
    );
    let mut expected = Runs::new();
    for (offset, len, depth) in &their_depth {
        let dirty = u64::from(*depth == 1);
        match expected.last_mut() {
            Some(last) if last.2 == dirty => last.1 += len,
            _ => expected.push((*offset, *len, dirty)),
        }
    }
    assert_eq!(map(&ours.uri(), CHANGES), expected);
    let changes = format!("--map={CHANGES}");
    let totals = run_ok("nbdinfo", [&changes, "--totals", "--json", &ours.uri()]);
    let totals: serde_json::Value = serde_json::from_str(&totals).expect("JSON");
    let dirty = expected.iter().filter(|run| run.2 == 1).map(|run| run.1);
    let dirty: u64 = dirty.sum();
    assert_eq!(totals[1]["size"], dirty, "{totals}");
    assert_eq!(dirty, (2 << 20) + (512 << 10) + (1 << 20));
    let info = run_ok("nbdinfo", ["--json", &ours.uri()]);
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    let contexts = serde_json::json!(["base:allocation", DEPTH, CHANGES]);
    assert_eq!(info["exports"][0]["contexts"], contexts);
    drop((qemu, ours));
    // What has no parent has no changes; a writable image tells the same depth.
    let base = Exported::new(&dir.path().join("base.qcow2"), true);
    let info = run_ok("nbdinfo", ["--json", &base.uri()]);
    assert!(
        info.contains(DEPTH) && !info.contains("dirty-bitmap"),
        "{info}"
    );
    let writable = Exported::new(&tip, false);
    assert_eq!(map(&writable.uri(), DEPTH), their_depth);
}

/// Chains whose layers end at different places, and what is written where they end.
const ENDS: [(&str, &[Layer]); 7] = [
    ("one image", &[("a", "2M", &["write -P 1 64k 64k"])]),
    (
        "a base that ends within a cluster",
        &[
            (
                "a",
                "3146240",
                &["write -P 1 0 128k", "write -P 1 3145728 512"],
            ),
            ("b", "8M", &["write -P 2 4M 64k", "write -P 2 8323072 64k"]),
        ],
    ),
    (
        "a base that ends where nobody wrote",
        &[("a", "3146240", &["write -P 1 0 128k"]), ("b", "8M", &[])],
    ),
    (
        "a middle that hides what lies below",
        &[
            ("a", "16M", &["write -P 1 0 16M"]),
            ("b", "4M", &["write -P 2 1M 64k", "write -z 4128768 64k"]),
            ("c", "16M", &["write -P 3 8M 64k"]),
        ],
    ),
    (
        "a tip that is shorter than its base",
        &[
            ("a", "16M", &["write -P 1 2M 14M"]),
            ("b", "5M", &["write -P 2 4M 1M"]),
        ],
    ),
    (
        "first and last clusters of many layers",
        &[
            ("a", "4M", &["write -P 1 0 64k", "write -P 1 4128768 64k"]),
            ("b", "6M", &["write -P 2 64k 64k", "write -P 2 6225920 64k"]),
            (
                "c",
                "5M",
                &["write -P 3 128k 64k", "write -P 3 5177344 64k"],
            ),
            ("d", "8M", &["write -z 192k 64k", "write -z 8323072 64k"]),
            (
                "e",
                "8388096",
                &["write -P 5 256k 64k", "write -P 5 8387584 512"],
            ),
        ],
    ),
    (
        "layers of which each is shorter",
        &[
            ("a", "1M", &["write -P 1 0 1M"]),
            ("b", "2M", &[]),
            ("c", "3M", &[]),
            ("d", "4M", &["write -P 4 3M 64k"]),
        ],
    ),
];

#[test]
fn depth_where_layers_end_is_what_qemu_says() {
    if !(have("nbdinfo") && have("qemu-nbd") && have("qemu-io")) {
        return;
    }
    for (what, chain) in ENDS {
        let dir = tempfile::tempdir().expect("a folder");
        let tip = layers(dir.path(), chain);
        let qemu = qemu_nbd(&tip);
        let theirs = [DEPTH, "base:allocation"].map(|context| map(&qemu.uri(""), context));
        drop(qemu);
        for read_only in [true, false] {
            let ours = Exported::new(&tip, read_only);
            let told = [DEPTH, "base:allocation"].map(|context| map(&ours.uri(), context));
            assert_eq!(told, theirs, "{what}: read_only={read_only}");
        }
    }
}

#[test]
fn zeroes_without_holes_keep_an_allocation() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let image = layers(dir.path(), &[("disk", "8M", &[])]);
    let size = || std::fs::metadata(&image).expect("the image").len();
    let (empty_bytes, runs) = (size(), [(1 << 20, 2), (7 << 20, 3)]);
    let ours = Exported::new(&image, false);
    let mut client = ours.connect("base:allocation");
    let mut zero = |flags, offset| {
        let zeroed = client.ask(CommandCode::WRITE_ZEROES, flags, (offset, 1 << 20), &[]);
        assert_eq!(zeroed, Outcome::Done(Vec::new()));
    };
    zero(CommandFlags::NO_HOLE, 0);
    zero(CommandFlags::EMPTY, 1 << 20);
    let status = client.ask(
        CommandCode::BLOCK_STATUS,
        CommandFlags::EMPTY,
        (0, 8 << 20),
        &[],
    );
    assert_eq!(status, Outcome::Status(vec![(0, runs.to_vec())]));
    drop((client, ours));
    // The file says the same, in the words of others.
    assert!(
        size() >= empty_bytes + (1 << 20),
        "{} {empty_bytes}",
        size()
    );
    let path = image.to_str().expect("a path");
    let map = run_ok("qemu-img", ["map", "-f", "qcow2", "--output=json", path]);
    let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
    let told: Vec<_> = map.as_array().expect("a list").iter().collect();
    let kept = told.iter().filter(|run| run["offset"].is_u64());
    let kept: Vec<_> = kept
        .map(|run| (run["start"].as_u64(), run["zero"] == true))
        .collect();
    assert_eq!(kept, [(Some(0), true)], "{map}");
    assert_eq!(told[0]["length"], 1 << 20, "{map}");
    // Opened again, read only, it is told alike.
    let again = Exported::new(&image, true);
    let mut client = again.connect("base:allocation");
    let status = client.ask(
        CommandCode::BLOCK_STATUS,
        CommandFlags::EMPTY,
        (0, 8 << 20),
        &[],
    );
    let runs = vec![(1 << 20, 2), (7 << 20, 3)];
    assert_eq!(status, Outcome::Status(vec![(0, runs)]));
}

#[test]
fn qemu_reads_the_changes_as_a_bitmap() {
    if !(have("qemu-img") && have("qemu-io")) {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let tip = chain(dir.path());
    let ours = Exported::new(&tip, true);
    let options = format!(
        "driver=nbd,export=disk,server.type=unix,server.path={},x-dirty-bitmap={CHANGES}",
        ours.socket.display()
    );
    let text = run_ok(
        "qemu-img",
        ["map", "--output=json", "--image-opts", &options],
    );
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    // qemu shows what is dirty as what is no data.
    let dirty: Vec<_> = json
        .as_array()
        .expect("a list")
        .iter()
        .filter(|run| run["data"] == false)
        .map(|run| (run["start"].as_u64(), run["length"].as_u64()))
        .collect();
    let expected = [(0, 512 << 10), (2 << 20, 2 << 20), (63 << 20, 1 << 20)];
    let expected: Vec<_> = expected
        .iter()
        .map(|(offset, len)| (Some(*offset), Some(*len)))
        .collect();
    assert_eq!(dirty, expected, "{text}");
}

/// Three contexts on one connection, each with its own answer.
const SEVERAL_CONTEXTS: &str = r#"
import sys, nbd
h = nbd.NBD()
names = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:changes"]
for name in names:
    h.add_meta_context(name)
h.connect_uri(sys.argv[1])
assert all(h.can_meta_context(name) for name in names)
seen = {}
def told(name, offset, entries, error):
    assert offset == 0 and name not in seen, name
    seen[name] = list(zip(entries[::2], entries[1::2]))
size = h.get_size()
h.block_status(size, 0, told)
assert sorted(seen) == sorted(names), seen
for runs in seen.values():
    assert sum(length for length, _ in runs) == size, runs
at = lambda name, offset: next(s for e, s in ends[name] if e > offset)
ends = {}
for name, runs in seen.items():
    end, ends[name] = 0, []
    for length, state in runs:
        end += length
        ends[name].append((end, state))
for offset, expected in [(0, (2, 1, 1)), (1 << 20, (0, 2, 0)), (2 << 20, (0, 1, 1)), (4 << 20, (2, 2, 0)), (5 << 20, (0, 3, 0)), (40 << 20, (3, 0, 0))]:
    found = tuple(at(name, offset) & 3 for name in names)
    assert found[1:] == expected[1:] and found[0] & 2 == expected[0] & 2, (offset, found)
seen.clear()
h.block_status(size, 0, told, nbd.CMD_FLAG_REQ_ONE)
assert all(len(runs) == 1 for runs in seen.values()) and len(seen) == 3, seen
listing = []
o = nbd.NBD()
o.set_opt_mode(True)
o.connect_uri(sys.argv[1])
o.add_meta_context("qemu:")
o.opt_list_meta_context(listing.append)
assert listing == names[1:], listing
o.opt_abort()
print("ok")
"#;

#[test]
fn libnbd_asks_about_several_contexts_at_once() {
    if !(have_python_libnbd() && have("qemu-img") && have("qemu-io")) {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let tip = chain(dir.path());
    let ours = Exported::new(&tip, true);
    let said = run_ok("/usr/bin/python3", ["-c", SEVERAL_CONTEXTS, &ours.uri()]);
    assert_eq!(said.trim(), "ok");
}

/// Passes one connection on, and keeps what the client says.
fn listen_in(path: &Path, server: &Path) -> Arc<Mutex<Vec<u8>>> {
    let listener = UnixListener::bind(path).expect("a socket");
    let said = Arc::new(Mutex::new(Vec::new()));
    let (kept, server) = (Arc::clone(&said), server.to_owned());
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.expect("a client");
            let mut server = UnixStream::connect(&server).expect("the server listens");
            let mut answers = server.try_clone().expect("a socket");
            let mut to_client = client.try_clone().expect("a socket");
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut answers, &mut to_client);
                let _ = to_client.shutdown(std::net::Shutdown::Both);
            });
            let mut piece = [0; 4096];
            while let Ok(len @ 1..) = client.read(&mut piece) {
                kept.lock().expect("bytes").extend_from_slice(&piece[..len]);
                if server.write_all(&piece[..len]).is_err() {
                    break;
                }
            }
            let _ = server.shutdown(std::net::Shutdown::Write);
        }
    });
    said
}

#[test]
fn qemu_speaks_extended_headers_with_us() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let image = dir.path().join("huge.qcow2");
    let path = image.to_str().expect("a path");
    run_ok("qemu-img", ["create", "-q", "-f", "qcow2", path, "8T"]);
    let ours = Exported::new(&image, false);
    let tap = dir.path().join("tap.sock");
    let said = listen_in(&tap, &ours.socket);
    let uri = format!("nbd+unix:///disk?socket={}", tap.display());
    run_ok(
        "qemu-io",
        [
            "-f",
            "raw",
            "-c",
            "write -P 5 6T 64k",
            "-c",
            "read -P 5 6T 64k",
            "-c",
            "discard 6T 1G",
            &uri,
        ],
    );
    let map = run_ok("qemu-img", ["map", "-f", "raw", "--output=json", &uri]);
    let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
    let total = map.as_array().expect("a list").iter();
    let total: u64 = total
        .map(|run| run["length"].as_u64().expect("a number"))
        .sum();
    assert_eq!(total, 8 << 40);
    let said = said.lock().expect("bytes");
    let has = |bytes: &[u8]| said.windows(bytes.len()).any(|window| window == bytes);
    assert!(
        has(b"IHAVEOPT\0\0\0\x0b\0\0\0\0"),
        "it asks for extended headers"
    );
    assert!(has(&0x21e4_1c71_u32.to_be_bytes()), "and uses them");
    assert!(!has(&0x2560_9513_u32.to_be_bytes()), "and no others");
    // Magic, flags, type, cookie, offset, length: a block status of more than 4 GiB.
    let long = said.windows(32).any(|request| {
        request[..4] == 0x21e4_1c71_u32.to_be_bytes()
            && request[6..8] == [0, 7]
            && request[24..28] != [0; 4]
    });
    assert!(long, "a request that 32 bits cannot hold");
}
