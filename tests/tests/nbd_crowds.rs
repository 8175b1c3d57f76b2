//! The real program under crowds of connections: who is served, and what it takes. The server is a
//! process of its own, so that its memory and descriptors are its own, too.

#![expect(
    clippy::print_stderr,
    reason = "figures and skips are told to whoever reads the test's output"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use engine::standalone::{CreateImage, create};
use tests::hub::{DEADLINE, first_line, wait};
use tests::usage::{descriptors, peak_bytes, resident_bytes};
use tests::wire::Wire;

const HUB: &str = env!("CARGO_BIN_EXE_hub");
const EXPORTS: u32 = 100;
const READ: u16 = 0;
const WRITE: u16 = 1;

/// `sendense-hub export`, killed when dropped.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    /// Serves `count` empty qcow2 images as `disk-0` and so on.
    async fn of_images(dir: &Path, count: u32) -> Self {
        for number in 0..count {
            let image = dir.join(format!("disk-{number}.qcow2"));
            let image = CreateImage::new(image, Some(1 << 30));
            create(image).await.expect("an image");
        }
        let mut command = Command::new(HUB);
        command.arg("export");
        command.args((0..count).map(|number| dir.join(format!("disk-{number}.qcow2"))));
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        command.args(["--listen", "127.0.0.1:0", "--log", "warn"]);
        let mut process = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let line = first_line(&mut process);
        let address = line
            .strip_prefix("ready nbd://")
            .and_then(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("no ready line: {line:?}"));
        Self { process, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        stream
    }

    /// A new client gets its export, writes, and reads back; returns how long that took.
    fn serves(&self, export: &str) -> std::time::Duration {
        let begin = Instant::now();
        let mut client = Wire::open(self.address, export);
        let data = [0xC5; 4096];
        assert_eq!(client.write(8192, &data), 0);
        assert!(client.read(8192, 4096) == data);
        assert_eq!(client.flush(), 0);
        let took = begin.elapsed();
        assert!(took.as_secs() < 10, "served after {took:?}");
        took
    }

    /// Waits until it has no more descriptors than this.
    fn gives_back(&self, most: usize) {
        let begin = Instant::now();
        loop {
            let now = descriptors(&self.process);
            if now <= most {
                return;
            }
            assert!(begin.elapsed() < DEADLINE, "descriptors={now} most={most}");
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn export_of(number: u32) -> String {
    format!("disk-{}", number % EXPORTS)
}

/// Raises the bound of open files; says so when it is too low.
fn enough_descriptors(need: u64) -> bool {
    let have = engine::descriptors::raise();
    if have < need {
        eprintln!("SKIPPED: {need} descriptors are needed and {have} allowed");
    }
    have >= need
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

#[tokio::test]
async fn a_thousand_idle_connections_take_little_memory() {
    if !enough_descriptors(1200) {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::of_images(dir.path(), EXPORTS).await;
    let before = resident_bytes(&server.process);
    let mut idle = Vec::new();
    for number in 0..1000 {
        idle.push(Wire::open(server.address, &export_of(number)));
    }
    let after = resident_bytes(&server.process);
    eprintln!(
        "1000 idle connections over 100 images: {} MiB resident, {} MiB without them",
        mib(after),
        mib(before)
    );
    assert!(after < 96 << 20, "resident={after}");
    for wire in &mut idle {
        assert_eq!(wire.flush(), 0);
    }
}

#[tokio::test]
async fn a_client_is_served_among_twelve_thousand_connections() {
    if !enough_descriptors(16_000) {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::of_images(dir.path(), EXPORTS).await;
    server.serves("disk-0");
    let before = descriptors(&server.process);

    let mut idle = Vec::new();
    for number in 0..4000 {
        idle.push(Wire::open(server.address, &export_of(number)));
    }
    let mut stuck = Vec::new();
    for number in 0..2000 {
        let mut wire = Wire::open(server.address, &export_of(number));
        if number % 2 == 0 {
            wire.send(&[0x25, 0x60, 0x95]).expect("it listens");
        } else {
            wire.send_header(0, WRITE, 1 << 20, 64 << 10);
            wire.send(&[7; 4096]).expect("it listens");
        }
        stuck.push(wire);
    }
    let mut silent = Vec::new();
    for _ in 0..2000 {
        let mut stream = server.connect();
        // It may be evicted before it has said this much.
        let _ = stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0");
        silent.push(stream);
    }
    for _ in 0..4000 {
        silent.push(server.connect());
    }
    let took: Vec<_> = (0..10).map(|_| server.serves("disk-50")).collect();
    eprintln!(
        "4000 idle, 2000 within a request, 2000 within a handshake, 4000 silent: a new client is \
         served in {:?} (slowest of 10), {} MiB resident",
        took.iter().max().expect("ten"),
        mib(resident_bytes(&server.process))
    );
    for wire in &mut idle {
        assert_eq!(wire.flush(), 0, "idle connections are not cut");
    }
    drop((idle, stuck, silent));
    server.gives_back(before);
    server.serves("disk-0");
}

/// Few descriptors, most of them taken by images: accepting fails long before a bound is reached.
#[tokio::test]
async fn a_client_is_served_when_descriptors_have_run_out() {
    let dir = tempfile::tempdir().expect("a folder");
    for number in 0..EXPORTS {
        let image = dir.path().join(format!("disk-{number}.qcow2"));
        let image = CreateImage::new(image, Some(1 << 30));
        create(image).await.expect("an image");
    }
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 125; exec \"$@\"", "sh", HUB, "export"]);
    command.args((0..EXPORTS).map(|number| dir.path().join(format!("disk-{number}.qcow2"))));
    let log = dir.path().join("log");
    command.stderr(File::create(&log).expect("a log"));
    let server = Server::spawn(command);
    let mut kept = Wire::open(server.address, "disk-1");
    let silent: Vec<_> = (0..300).map(|_| server.connect()).collect();
    let took = server.serves("disk-0");
    eprintln!("descriptors had run out: a new client is served in {took:?}");
    assert_eq!(kept.flush(), 0, "a session is never evicted");
    let said = std::fs::read_to_string(&log).expect("a log");
    assert!(said.contains("cannot accept a connection"), "{said}");
    drop(silent);
    server.serves("disk-0");
}

/// What a server left that was killed is replaced, what a living one holds is not.
#[test]
fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("nbd.sock");
    let start = || {
        let mut command = Command::new(HUB);
        command.args(["export", "--discard-sink", "1G", "--socket"]);
        command.arg(&socket).args(["--log", "off"]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().expect("the program starts")
    };
    let greeted = || {
        let mut stream = UnixStream::connect(&socket).expect("the server listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        stream.read_exact(&mut [0; 18]).expect("a greeting");
    };
    for _ in 0..2 {
        let mut server = start();
        assert!(first_line(&mut server).starts_with("ready nbd+unix:"));
        greeted();
        let mut second = start();
        let ended = wait(&mut second, DEADLINE).expect("an end");
        assert!(!ended.success());
        greeted();
        server.kill().expect("the process is ours");
        server.wait().expect("the process is ours");
        assert!(socket.exists(), "it was killed");
    }
}

#[tokio::test]
async fn memory_is_flat_under_a_flood() {
    let dir = tempfile::tempdir().expect("a folder");
    // Many exports: the connections of one that vanish may be more than it takes at once.
    let server = Server::of_images(dir.path(), EXPORTS).await;
    let before = descriptors(&server.process);
    let round = || {
        for number in 0..300 {
            // Gone at once, gone within the handshake, mad, and gone within a request.
            drop(server.connect());
            let _ = server.connect().write_all(b"\0\0\0\x03IHAVE");
            let mut mad = server.connect();
            let _ = mad.write_all(&[0xEE; 512]);
            let _ = mad.read_to_end(&mut Vec::new());
            let mut wire = Wire::open(server.address, &export_of(number));
            wire.send_header(0, WRITE, u64::from(number) << 16, 1 << 20);
            // The server may have noticed already.
            let _ = wire.send(&[7; 300 << 10]);
        }
        // Never reads what it asks for.
        let mut deaf = Wire::open(server.address, "disk-0");
        for number in 0..64 {
            deaf.send_header(0, READ, number << 20, 1 << 20);
        }
        let mut good = Wire::open(server.address, "disk-0");
        assert_eq!(good.flush(), 0);
    };
    for _ in 0..2 {
        round();
    }
    let warm = resident_bytes(&server.process);
    for _ in 0..4 {
        round();
    }
    let later = resident_bytes(&server.process);
    eprintln!(
        "a flood: {} MiB resident when warm, {} MiB later",
        mib(warm),
        mib(later)
    );
    assert!(later < warm + (24 << 20), "warm={warm} later={later}");
    server.gives_back(before);
    server.serves("disk-0");
}

#[tokio::test]
async fn eight_streams_of_long_writes_take_bounded_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::of_images(dir.path(), 8).await;
    let data = vec![0x5A; 32 << 20];
    let (data, server) = (&data, &server);
    std::thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                let mut wire = Wire::open(server.address, &format!("disk-{number}"));
                for round in 0..3 {
                    assert_eq!(wire.write(round * (32 << 20), data), 0);
                }
            });
        }
    });
    let peak = peak_bytes(&server.process);
    eprintln!("8 streams of 32 MiB writes: {} MiB at most", mib(peak));
    assert!(peak < 128 << 20, "peak={peak}");
}
