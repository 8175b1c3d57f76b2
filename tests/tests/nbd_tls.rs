//! The program in TLS against the clients of others: whom they trust, whom we let in, and that the
//! data is the same.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::json;
use tests::certificates::Certificates;
use tests::hub::{DEADLINE, Hub, first_line, terminate, wait};
use tests::peers::{have, have_python_libnbd, run, run_ok};
use tests::seed::rng;

const HUB: &str = env!("CARGO_BIN_EXE_hub");
const SIZE: u64 = 24 << 20;

/// Certificates, and a raw image for the program to serve.
struct World {
    dir: tempfile::TempDir,
    certificates: Certificates,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let certificates = Certificates::make(dir.path());
        Self { dir, certificates }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// An empty image.
    fn disk(&self) -> String {
        let file = File::create(self.path("disk.img")).unwrap();
        file.set_len(SIZE).unwrap();
        self.text("disk.img")
    }

    /// Data with holes.
    fn source(&self, rng: &mut fastrand::Rng) -> String {
        let file = File::create(self.path("source")).unwrap();
        file.set_len(SIZE).unwrap();
        let mut data = vec![0; 700_000];
        for _ in 0..20 {
            rng.fill(&mut data);
            file.write_all_at(&data, rng.u64(0..SIZE - 700_000))
                .unwrap();
        }
        self.text("source")
    }

    fn assert_same(&self, one: &str, two: &str) {
        run_ok("cmp", [self.path(one), self.path(two)]);
    }

    /// `export` in TLS only, and who is let in.
    fn requiring(&self, folder: &str, more: &[&str]) -> Exported {
        let certificates = self.certificates.folder(folder);
        let tls = ["--tls", "require", "--tls-certificates", &certificates];
        Exported::start(&[&[&*self.disk()], &tls[..], more].concat())
    }

    /// The URI of the disk for a client with these certificates.
    fn uri(&self, exported: &Exported, client: &str) -> String {
        let folder = self.certificates.folder(client);
        let url = &exported.urls[0];
        format!("{url}/disk?tls-certificates={folder}")
    }

    fn unix_uri(&self, client: &str) -> String {
        let folder = self.certificates.folder(client);
        let socket = self.text("nbd.sock");
        format!("nbds+unix:///disk?socket={socket}&tls-certificates={folder}")
    }
}

/// `sendense-hub export`, killed when dropped.
struct Exported {
    child: Child,
    urls: Vec<String>,
}

impl Exported {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(HUB)
            .args(["export", "--log", "info"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let line = first_line(&mut child);
        let urls = line.strip_prefix("ready ").expect("a ready line");
        let urls = urls.split(' ').map(str::to_owned).collect();
        Self { child, urls }
    }

    fn port(&self) -> &str {
        self.urls[0].rsplit(':').next().unwrap()
    }

    /// Ends it in order; its log.
    fn stop(mut self) -> String {
        terminate(&self.child);
        let status = wait(&mut self.child, DEADLINE).expect("SIGTERM ends it");
        assert!(status.success(), "{status}");
        let mut log = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut log).unwrap();
        log
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(world: &World) -> [String; 4] {
    let socket = format!("unix:{}", world.text("nbd.sock"));
    [
        "--listen".into(),
        "127.0.0.1:0".into(),
        "--listen".into(),
        socket,
    ]
}

#[test]
fn libnbd_copies_with_a_certificate_and_not_without() {
    if !have("nbdcopy") || !have("nbdinfo") {
        return;
    }
    let mut rng = rng("libnbd_copies_with_a_certificate_and_not_without");
    let world = World::new();
    let listen = listen(&world);
    let args: Vec<_> = listen.iter().map(String::as_str).collect();
    let args = [&args[..], &["--tls-verify-peer"]].concat();
    let exported = world.requiring("server-with-list", &args);
    assert!(exported.urls[0].starts_with("nbds://127.0.0.1:"));
    assert!(exported.urls[1].starts_with("nbds+unix:///"));
    for (connections, uri) in [
        (1, world.uri(&exported, "client")),
        (4, world.uri(&exported, "client")),
        (4, world.unix_uri("client")),
    ] {
        let info = run_ok("nbdinfo", ["--json", &uri]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["TLS"], true, "{info}");
        assert_eq!(info["structured"], true);
        assert_eq!(info["exports"][0]["export-size"], SIZE);
        assert_eq!(info["exports"][0]["contexts"][0], "base:allocation");
        let source = world.source(&mut rng);
        let connections = format!("--connections={connections}");
        run_ok("nbdcopy", ["--flush", &connections, &source, &uri]);
        let back = world.text("back");
        let _ = fs::remove_file(&back);
        run_ok("nbdcopy", [&connections, &uri, &back]);
        world.assert_same("source", "back");
    }
    let list = run_ok("nbdinfo", ["--list", &world.uri(&exported, "client")]);
    assert!(list.contains("disk"), "{list}");
    let refused = |uri: &str| {
        let output = run("nbdinfo", ["--size", uri]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{uri}: {said}");
        said
    };
    for client in ["nobody", "stranger", "revoked", "deceived"] {
        refused(&world.uri(&exported, client));
        refused(&world.unix_uri(client));
    }
    let plain = refused(&format!("nbd://127.0.0.1:{}/disk", exported.port()));
    assert!(plain.contains("TLS"), "{plain}");
    let log = exported.stop();
    // GnuTLS does not even show a certificate of an authority that was not asked for.
    for why in ["no tls with this client", "Revoked", "sent no certificates"] {
        assert!(log.contains(why), "{why}: {log}");
    }
    assert!(
        !log.contains("ERROR"),
        "a client's fault is no error of ours: {log}"
    );
    world.assert_same("source", "disk.img");
}

#[test]
fn without_verification_any_client_that_trusts_us_is_served() {
    if !have("nbdinfo") {
        return;
    }
    let world = World::new();
    let exported = world.requiring("server", &["--listen", "127.0.0.1:0"]);
    for client in ["nobody", "client", "stranger"] {
        run_ok("nbdinfo", ["--size", &world.uri(&exported, client)]);
    }
    let deceived = run("nbdinfo", ["--size", &world.uri(&exported, "deceived")]);
    assert!(!deceived.status.success(), "it trusts somebody else");
    exported.stop();
}

/// `qemu-img` on the export, with the certificates of a client.
fn qemu_img(
    world: &World,
    exported: &Exported,
    client: &str,
    before: &[&str],
    after: &[&str],
) -> Output {
    let folder = world.certificates.folder(client);
    let object = format!("tls-creds-x509,id=tls0,dir={folder},endpoint=client,verify-peer=on");
    let port = exported.port();
    let image = format!("driver=nbd,host=localhost,port={port},export=disk,tls-creds=tls0");
    let (command, before) = before.split_first().unwrap();
    let args = [&[*command, "--object", &object], before, &[&*image], after].concat();
    run("qemu-img", args)
}

#[test]
fn qemu_img_reads_and_writes_in_tls() {
    if !have("qemu-img") {
        return;
    }
    let mut rng = rng("qemu_img_reads_and_writes_in_tls");
    let world = World::new();
    let exported = world.requiring("server", &["--listen", "127.0.0.1:0", "--tls-verify-peer"]);
    let ok = |before: &[&str], after: &[&str]| {
        let output = qemu_img(&world, &exported, "client", before, after);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{before:?} {said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let info = ok(&["info", "--output=json", "--image-opts"], &[]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["virtual-size"], SIZE);
    let source = world.source(&mut rng);
    let target = ["convert", "-n", "-f", "raw", "--target-image-opts", &source];
    ok(&target, &[]);
    let back = world.text("back.qcow2");
    ok(&["convert", "-O", "qcow2", "--image-opts"], &[&back]);
    let raw = ["compare", "-f", "raw", "-F", "qcow2", &source, &back];
    run_ok("qemu-img", raw);
    let stranger = qemu_img(
        &world,
        &exported,
        "stranger",
        &["info", "--image-opts"],
        &[],
    );
    assert!(!stranger.status.success());
    exported.stop();
    world.assert_same("source", "disk.img");
}

#[test]
fn nbdkit_as_a_client_requires_tls_and_gets_it() {
    if !have("nbdkit") || !have("nbdcopy") {
        return;
    }
    let mut rng = rng("nbdkit_as_a_client_requires_tls_and_gets_it");
    let world = World::new();
    let exported = world.requiring("server", &["--listen", "127.0.0.1:0", "--tls-verify-peer"]);
    let source = world.source(&mut rng);
    let back = world.text("back");
    let port = format!("port={}", exported.port());
    let through = |client: &str, script: &str| {
        let folder = format!("tls-certificates={}", world.certificates.folder(client));
        let args = [
            "-U",
            "-",
            "nbd",
            "hostname=localhost",
            &*port,
            "export=disk",
        ];
        let tls = ["tls=require", &*folder, "--run", script];
        run("nbdkit", [&args[..], &tls].concat())
    };
    let script = format!("nbdcopy --flush '{source}' \"$uri\" && nbdcopy \"$uri\" '{back}'");
    let output = through("client", &script);
    assert!(output.status.success(), "{output:?}");
    world.assert_same("source", "back");
    let refused = through("stranger", "nbdinfo --size \"$uri\"");
    assert!(!refused.status.success());
    exported.stop();
    world.assert_same("source", "disk.img");
}

#[test]
fn python_libnbd_negotiates_as_it_is_told() {
    if !have_python_libnbd() {
        return;
    }
    let world = World::new();
    let certificates = world.certificates.folder("server");
    let disk = world.disk();
    let on = Exported::start(&[
        &disk,
        "--listen",
        "127.0.0.1:0",
        "--tls",
        "on",
        "--tls-certificates",
        &certificates,
    ]);
    assert!(on.urls[0].starts_with("nbd://"), "both kinds are served");
    let script = r#"
import nbd, sys
port, folder = sys.argv[1:]
def connect(mode):
    h = nbd.NBD()
    h.set_tls(mode)
    h.set_tls_certificates(folder)
    h.set_export_name("disk")
    h.add_meta_context("base:allocation")
    h.connect_tcp("localhost", port)
    return h
data = bytes(range(256)) * 4096
for mode, secret in [(nbd.TLS_DISABLE, False), (nbd.TLS_ALLOW, True), (nbd.TLS_REQUIRE, True)]:
    h = connect(mode)
    assert h.get_tls_negotiated() == secret, mode
    assert h.get_structured_replies_negotiated() and h.can_meta_context("base:allocation")
    h.pwrite(data, 12345, nbd.CMD_FLAG_FUA)
    assert h.pread(len(data), 12345) == data
    h.zero(len(data), 12345)
    assert h.pread(len(data), 12345) == bytes(len(data))
    h.flush()
    h.shutdown()
"#;
    run_ok(
        "/usr/bin/python3",
        [
            "-c",
            script,
            on.port(),
            &world.certificates.folder("client"),
        ],
    );
    on.stop();
}

#[test]
fn who_may_be_reached_from_elsewhere() {
    let world = World::new();
    let certificates = world.certificates.folder("server");
    let disk = world.disk();
    let exposed = ["export", &disk, "--listen", "0.0.0.0:0"];
    let tls = ["--tls", "require", "--tls-certificates", &certificates];
    for more in [&[][..], &tls] {
        let output = run(HUB, [&exposed, more].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("--tls-verify-peer"), "{said}");
    }
    let listener = ["--listen", "0.0.0.0:0", "--tls-verify-peer"];
    let exported = world.requiring("server", &listener);
    assert!(exported.urls[0].starts_with("nbds://0.0.0.0:"));
    exported.stop();
    // `serve` says the same, also of one listener among others.
    let data = world.text("data");
    let nbd = "127.0.0.1:0,0.0.0.0:0,tls=on";
    let serve = [
        "serve",
        "--data",
        &data,
        "--api",
        "127.0.0.1:0",
        "--nbd",
        nbd,
    ];
    let verify = ["--tls-certificates", &certificates, "--tls-verify-peer"];
    let output = run(HUB, [&serve[..], &verify].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("--tls-verify-peer") && said.contains("listener=nbd"),
        "{said}"
    );
    assert!(!Path::new(&data).exists(), "nothing was made");
}

#[test]
fn a_key_that_everybody_can_read_is_told() {
    let world = World::new();
    let key = world.path("server/server-key.pem");
    for (mode, told) in [(0o644, true), (0o640, false)] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let log = world
            .requiring("server", &["--listen", "127.0.0.1:0"])
            .stop();
        assert_eq!(
            log.contains("can read the tls key"),
            told,
            "{mode:o}: {log}"
        );
    }
}

#[tokio::test]
async fn a_hub_takes_a_backup_in_tls() {
    if !have("nbdcopy") || !have("qemu-img") {
        return;
    }
    let mut rng = rng("a_hub_takes_a_backup_in_tls");
    let world = World::new();
    let mut command = Command::new(HUB);
    command
        .env("SENDENSE_TLS", "require")
        .env(
            "SENDENSE_TLS_CERTIFICATES",
            world.certificates.folder("server"),
        )
        .env("SENDENSE_TLS_VERIFY_PEER", "true");
    let hub = Hub::spawn(command, &world.path("data"));
    hub.register("web1", &[SIZE]).await;
    let (status, started) = hub.start_backup("web1", "full").await;
    assert_eq!(status, 200, "{started}");
    let url = started["disk_results"][0]["nbd_url"].as_str().unwrap();
    assert!(url.starts_with("nbds://127.0.0.1:"), "{url}");
    let plain = run("nbdinfo", ["--size", &url.replace("nbds:", "nbd:")]);
    assert!(!plain.status.success(), "nothing is served without TLS");
    let uri = format!(
        "{url}?tls-certificates={}",
        world.certificates.folder("client")
    );
    let source = world.source(&mut rng);
    run_ok("nbdcopy", ["--flush", "--connections=4", &source, &uri]);
    let complete = format!(
        "/api/v1/backups/{}/complete",
        started["backup_id"].as_str().unwrap()
    );
    let body = json!({"disk_id": 0, "change_id": "epoch/1"});
    let (status, done) = hub.post(&complete, &body).await;
    assert_eq!(status, 200, "{done}");
    let files = hub.repository_files();
    let images = files
        .iter()
        .filter(|path| path.extension().is_some_and(|end| end == "qcow2"));
    let image = images.map(|path| path.to_str().unwrap()).next().unwrap();
    run_ok(
        "qemu-img",
        ["compare", "-f", "raw", "-F", "qcow2", &source, image],
    );
    assert!(hub.stop().success());
}
