//! The NBD server against the clients of others.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbd_server::exports::{MemoryExport, SingleExport};
use nbd_server::{ListenAddress, Listener};
use tests::peers::{have, have_python_libnbd, run, run_ok};
use tests::seed::rng;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const SIZE: u64 = 192 << 20;

/// A device in memory behind a unix socket and a TCP port, and a folder for files.
struct Served {
    runtime: Runtime,
    stop: CancellationToken,
    listeners: Vec<JoinHandle<()>>,
    port: u16,
    dir: tempfile::TempDir,
}

impl Served {
    fn new(size_bytes: u64) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let dir = tempfile::tempdir().expect("a folder");
        let stop = CancellationToken::new();
        let exports = Arc::new(SingleExport::new("vm-disk0", MemoryExport::new(size_bytes)));
        let mut port = 0;
        let mut listeners = Vec::new();
        for address in [
            ListenAddress::Tcp(([127, 0, 0, 1], 0).into()),
            ListenAddress::Unix(dir.path().join("nbd.sock")),
        ] {
            let listener = runtime
                .block_on(Listener::bind(&address))
                .expect("a listener");
            if let ListenAddress::Tcp(bound) = listener.local_address() {
                port = bound.port();
            }
            let serve = listener.serve(Arc::clone(&exports), stop.clone());
            listeners.push(runtime.spawn(serve));
        }
        Self {
            runtime,
            stop,
            listeners,
            port,
            dir,
        }
    }

    fn uri(&self) -> String {
        format!("nbd://127.0.0.1:{}/vm-disk0", self.port)
    }

    fn unix_uri(&self) -> String {
        let socket = self.dir.path().join("nbd.sock");
        format!("nbd+unix:///vm-disk0?socket={}", socket.display())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of the size of the device: random data with holes, and not the same twice.
    fn image(&self, name: &str, rng: &mut fastrand::Rng) -> PathBuf {
        use std::os::unix::fs::FileExt;
        let path = self.file(name);
        let file = std::fs::File::create(&path).expect("a file");
        file.set_len(SIZE).expect("a size");
        let mut data = vec![0; 1 << 20];
        for _ in 0..40 {
            let len = rng.usize(1..data.len());
            rng.fill(&mut data[..len]);
            let offset = rng.u64(0..SIZE - (1 << 20));
            file.write_all_at(&data[..len], offset).expect("a write");
        }
        path
    }

    /// Every session ends when it is told to.
    fn finish(mut self) {
        self.stop.cancel();
        for listener in std::mem::take(&mut self.listeners) {
            self.runtime.block_on(listener).expect("no session failed");
        }
        assert!(
            !self.file("nbd.sock").exists(),
            "the unix socket is removed"
        );
    }
}

fn assert_same(a: &Path, b: &Path) {
    run_ok("cmp", [a, b]);
}

#[test]
fn nbdinfo_sees_size_abilities_names_and_map() {
    if !have("nbdinfo") {
        return;
    }
    let served = Served::new(SIZE);
    let info: serde_json::Value =
        serde_json::from_str(&run_ok("nbdinfo", ["--json", &served.uri()])).expect("JSON");
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], SIZE);
    for able in [
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    ] {
        assert_eq!(export[able], true, "{able}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["block_size_minimum"], 1);
    assert_eq!(export["block_size_preferred"], 65536);
    assert_eq!(export["block_size_maximum"], 32 << 20);
    assert_eq!(export["contexts"][0], "base:allocation");

    let listing = run_ok(
        "nbdinfo",
        [
            "--list",
            "--json",
            &format!("nbd://127.0.0.1:{}", served.port),
        ],
    );
    let listing: serde_json::Value = serde_json::from_str(&listing).expect("JSON");
    assert_eq!(listing["exports"][0]["export-name"], "vm-disk0");

    let map: serde_json::Value =
        serde_json::from_str(&run_ok("nbdinfo", ["--map", "--json", &served.unix_uri()]))
            .expect("JSON");
    assert_eq!(map[0]["length"], SIZE, "one hole: {map}");
    assert_eq!(map[0]["type"], 3);

    let unknown = run(
        "nbdinfo",
        [format!("nbd://127.0.0.1:{}/nowhere", served.port)],
    );
    assert!(!unknown.status.success(), "an export that is not there");
    served.finish();
}

#[test]
fn nbdcopy_both_ways_with_one_and_many_connections() {
    if !have("nbdcopy") {
        return;
    }
    let mut rng = rng("nbdcopy_both_ways_with_one_and_many_connections");
    let served = Served::new(SIZE);
    let back = served.file("back");
    for (connections, uri) in [(1, served.uri()), (4, served.uri()), (8, served.unix_uri())] {
        let source = served.image("source", &mut rng);
        let connections = format!("--connections={connections}");
        let source_arg = source.to_str().expect("a path");
        let back_arg = back.to_str().expect("a path");
        run_ok("nbdcopy", ["--flush", &connections, source_arg, &uri]);
        let _ = std::fs::remove_file(&back);
        run_ok("nbdcopy", [&connections, &uri, back_arg]);
        assert_same(&source, &back);
    }
    served.finish();
}

#[test]
fn nbdcopy_with_many_connections_and_one_request_at_a_time() {
    if !have("nbdcopy") {
        return;
    }
    let mut rng = rng("nbdcopy_with_many_connections_and_one_request_at_a_time");
    let served = Served::new(SIZE);
    let (source, back) = (served.image("source", &mut rng), served.file("back"));
    let (source_arg, back_arg) = (
        source.to_str().expect("a path"),
        back.to_str().expect("a path"),
    );
    let ways: [&[&str]; 3] = [
        &["--synchronous"],
        &["--connections=16", "--requests=64", "--request-size=65536"],
        &["--no-extents", "--connections=4", "--allocated"],
    ];
    for way in ways {
        run_ok(
            "nbdcopy",
            way.iter().chain(&["--flush", source_arg, &served.uri()]),
        );
        let _ = std::fs::remove_file(&back);
        run_ok(
            "nbdcopy",
            way.iter().chain(&[&*served.unix_uri(), back_arg]),
        );
        assert_same(&source, &back);
    }
    served.finish();
}

/// nbdkit as our client, with its own idea of connections and requests, and nbdcopy as its.
#[test]
fn nbdkit_passes_us_on() {
    if !(have("nbdkit") && have("nbdcopy")) {
        return;
    }
    let mut rng = rng("nbdkit_passes_us_on");
    let served = Served::new(SIZE);
    let (source, back) = (served.image("source", &mut rng), served.file("back"));
    let socket = served.file("nbdkit.sock");
    let text = |path: &Path| path.to_str().expect("a plain path").to_owned();
    let us = format!("uri={}", served.uri());
    let args = ["-f", "-U", &text(&socket), "nbd", &us, "shared=false"];
    let between = tests::servers::Served::program("nbdkit", &socket, &args);
    let uri = between.uri("");
    run_ok(
        "nbdcopy",
        ["--flush", "--connections=4", &text(&source), &uri],
    );
    // What it wrote is with us, and comes back through it.
    run_ok("nbdcopy", [&served.unix_uri(), &text(&back)]);
    assert_same(&source, &back);
    std::fs::remove_file(&back).expect("a copy");
    run_ok("nbdcopy", ["--connections=4", &uri, &text(&back)]);
    assert_same(&source, &back);
    if have("nbdinfo") {
        let map = |uri: &str| run_ok("nbdinfo", ["--map", "--totals", uri]);
        assert_eq!(map(&uri), map(&served.unix_uri()));
    }
    drop(between);
    served.finish();
}

/// The client in the kernel: where there is one, and where it may be used.
#[test]
fn the_kernel_reads_and_writes() {
    let device = Path::new("/dev/nbd0");
    if !device.exists() {
        // No test environment can be relied on to have the module `nbd`, so that this is no failure in CI either.
        eprintln!("SKIPPED: this kernel has no /dev/nbd0 (module nbd)");
        return;
    }
    if !have("nbd-client") {
        return;
    }
    let mut rng = rng("the_kernel_reads_and_writes");
    let served = Served::new(SIZE);
    let source = served.image("source", &mut rng);
    let socket = served.file("nbd.sock");
    let socket = socket.to_str().expect("a path");
    let attached = run(
        "nbd-client",
        ["-unix", socket, "/dev/nbd0", "-N", "vm-disk0", "-C", "4"],
    );
    if !attached.status.success() {
        let said = String::from_utf8_lossy(&attached.stderr).into_owned();
        eprintln!("SKIPPED: /dev/nbd0 cannot be attached here: {said}");
        return;
    }
    let source_arg = format!("if={}", source.display());
    let copied = run("dd", [&*source_arg, "of=/dev/nbd0", "bs=1M", "conv=fsync"]);
    let same = run("cmp", [source.as_path(), device]);
    run_ok("nbd-client", ["-d", "/dev/nbd0"]);
    assert!(
        copied.status.success() && same.status.success(),
        "{copied:?} {same:?}"
    );
    served.finish();
}

#[test]
fn qemu_img_converts_and_compares() {
    if !have("qemu-img") {
        return;
    }
    let mut rng = rng("qemu_img_converts_and_compares");
    let served = Served::new(SIZE);
    let source = served.image("source", &mut rng);
    let source = source.to_str().expect("a path");
    let uri = served.uri();
    run_ok(
        "qemu-img",
        [
            "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", source, &uri,
        ],
    );
    run_ok(
        "qemu-img",
        ["compare", "-f", "raw", "-F", "raw", source, &uri],
    );
    let back = served.file("back.qcow2");
    let back = back.to_str().expect("a path");
    run_ok(
        "qemu-img",
        ["convert", "-f", "raw", "-O", "qcow2", &uri, back],
    );
    run_ok(
        "qemu-img",
        ["compare", "-f", "raw", "-F", "qcow2", source, back],
    );
    served.finish();
}

#[test]
fn qemu_io_writes_zeroes_discards_and_flushes() {
    if !have("qemu-io") {
        return;
    }
    // A size that is a multiple of nothing but a sector.
    let served = Served::new((64 << 20) + 512);
    let uri = served.uri();
    for command in [
        "write -P 17 0 3M",
        "write -P 18 67108864 512",
        "write -f -P 19 1000448 1024",
        "write -z 65536 131072",
        "write -z -u 1048576 65536",
        "discard 2097152 1048576",
        "flush",
        "read -P 17 0 65536",
        "read -P 0 65536 131072",
        "read -P 17 196608 803840",
        "read -P 19 1000448 1024",
        "read -P 0 1048576 65536",
        "read -P 0 2097152 1048576",
        "read -P 18 67108864 512",
        "read -P 0 3145728 63963136",
    ] {
        let said = run_ok("qemu-io", ["-f", "raw", "-c", command, &uri]);
        assert!(
            !said.contains("failed") && !said.contains("verification"),
            "{command}: {said}"
        );
    }
    served.finish();
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !have("fio") {
        return;
    }
    if !run("fio", ["--enghelp=nbd"]).status.success() {
        tests::peers::missing("fio with the nbd engine");
        return;
    }
    let served = Served::new(SIZE);
    for (depth, sizes) in [(32, "512/20:4k/40:64k/20:1m/20"), (16, "4k/100")] {
        run_ok(
            "fio",
            [
                "--name=verify",
                "--ioengine=nbd",
                &format!("--uri={}", served.unix_uri()),
                "--rw=randwrite",
                &format!("--bssplit={sizes}"),
                "--size=64m",
                &format!("--iodepth={depth}"),
                "--verify=crc32c",
                "--verify_fatal=1",
                // The state file would land in the folder of the test program.
                "--verify_state_save=0",
                "--randrepeat=1",
                &format!("--directory={}", served.dir.path().display()),
            ],
        );
    }
    served.finish();
}

/// What the legacy backup client does, call for call.
const LEGACY_CLIENT: &str = r#"
import sys, nbd, hashlib
port, size = sys.argv[1], int(sys.argv[2])
def connect(name, status):
    h = nbd.NBD()
    h.set_export_name(name)
    if status:
        h.add_meta_context("base:allocation")
    else:
        h.set_tls(nbd.TLS_DISABLE)
        h.set_request_structured_replies(True)
    h.connect_tcp("127.0.0.1", port)
    return h

try:
    connect("vm-disk9", False)
    raise SystemExit("an unknown export was found")
except nbd.Error as error:
    assert "no export named" in str(error) or "unknown" in str(error).lower() \
        or "No such file" in str(error), error

idle = connect("vm-disk0", False)
data = connect("vm-disk0", True)
assert idle.get_size() == size and data.can_multi_conn() and data.can_zero()
chunk = 32 << 20
block = hashlib.sha256(b"seed").digest() * (chunk // 32)
for offset in range(0, size, chunk):
    length = min(chunk, size - offset)
    if (offset // chunk) % 3 == 1:
        data.zero(length, offset)
    else:
        data.pwrite(block[:length], offset)
# A flush on one connection covers the writes of the other.
idle.flush()
data.flush()
for offset in range(0, size, chunk):
    length = min(chunk, size - offset)
    want = bytes(length) if (offset // chunk) % 3 == 1 else block[:length]
    assert bytes(idle.pread(length, offset)) == want, offset

# Beyond the end: refused by the server, and the connection lives.
data.set_strict_mode(0)
for call in (lambda: data.pwrite(b"x" * 1024, size - 512), lambda: data.pwrite(block, size)):
    try:
        call()
        raise SystemExit("a write beyond the end succeeded")
    except nbd.Error as error:
        assert error.errno == "ENOSPC", error.errno
try:
    data.pread(1024, size - 512)
    raise SystemExit("a read beyond the end succeeded")
except nbd.Error as error:
    assert error.errno == "EINVAL", error.errno
data.pwrite(b"y" * 100, 1)
assert bytes(data.pread(102, 0)) == block[:1] + b"y" * 100 + block[101:102]
# Closed without a disconnect request.
del data, idle
print("ok")
"#;

#[test]
fn the_calls_of_the_legacy_client() {
    if !have_python_libnbd() {
        return;
    }
    let served = Served::new(SIZE + 512);
    let said = run_ok(
        "/usr/bin/python3",
        [
            "-c",
            LEGACY_CLIENT,
            &served.port.to_string(),
            &(SIZE + 512).to_string(),
        ],
    );
    assert_eq!(said.trim(), "ok");
    served.finish();
}
