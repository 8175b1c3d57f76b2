//! The servers that are measured: ours as a program, nbdkit and qemu-nbd, each behind a unix socket and a TCP port.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::{Address, Client};

/// A server, or why there is none.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) running: Result<Running, String>,
}

/// A server that ends with this value.
pub(crate) struct Running {
    pub(crate) unix: Address,
    pub(crate) tcp: Address,
    processes: Vec<Child>,
}

impl Running {
    /// Processor time that the server has used up to now, in seconds: what a busy machine does not blur.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.processes
            .iter()
            .map(|process| cpu_ticks(process.id()))
            .sum::<f64>()
            / TICKS_PER_S
    }
}

/// The unit of /proc/PID/stat on Linux, whatever the kernel's own clock.
const TICKS_PER_S: f64 = 100.0;

/// User and system time of a process and of its threads, also of those that have ended.
fn cpu_ticks(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name of the program may have blanks; what follows it has none.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum()
}

impl Drop for Running {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // Both fail when it has ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Devices that forget what is written and read as zero: what is left is the wire. Ours first.
pub(crate) fn forgetful(dir: &Path) -> Vec<Subject> {
    let null = "driver=null-co,read-zeroes=on,size=64G";
    vec![
        subject(dir, "ours", |at| ours(at, &["--discard-sink", "64G"])),
        subject(dir, "nbdkit null", |at| nbdkit(at, &["null", "64G"])),
        subject(dir, "qemu-nbd null", |at| qemu_nbd(at, null)),
    ]
}

/// Devices that keep what is written, in memory or in a raw file on tmpfs. Ours first.
pub(crate) fn keeping(dir: &Path) -> Vec<Subject> {
    let (mine, theirs) = (raw_file("ours"), raw_file("qemu"));
    let (text, theirs_text) = (mine.display().to_string(), theirs.display());
    let device =
        format!("driver=raw,file.driver=file,file.locking=off,file.filename={theirs_text}");
    let size = KEPT_BYTES.to_string();
    let subjects = vec![
        subject(dir, "ours raw", |at| ours(at, &["--format", "raw", &text])),
        subject(dir, "nbdkit memory", |at| nbdkit(at, &["memory", &size])),
        subject(dir, "qemu-nbd raw", |at| qemu_nbd(at, &device)),
    ];
    for path in [mine, theirs] {
        // Whoever serves it has it open.
        let _ = std::fs::remove_file(path);
    }
    subjects
}

/// Small enough for a memory that others use, too.
const KEPT_BYTES: u64 = 256 << 20;
/// How long a server may take to listen: it only bounds a failure.
const START: Duration = Duration::from_secs(30);

/// Where a server shall listen.
struct At {
    socket: PathBuf,
    port: u16,
}

fn subject(
    dir: &Path,
    name: &'static str,
    commands: impl FnOnce(&At) -> Option<Vec<Command>>,
) -> Subject {
    let at = At {
        socket: dir.join(format!("{}.sock", name.replace(' ', "-"))),
        port: free_port(),
    };
    let running = match commands(&at) {
        None => Err("not installed".to_owned()),
        Some(commands) => start(at, commands),
    };
    Subject { name, running }
}

/// `sendense-hub export`, as it was built beside this program.
fn ours(at: &At, device: &[&str]) -> Option<Vec<Command>> {
    let here = std::env::current_exe().ok()?;
    // target/release/deps/wire-0123, target/release/sendense-hub
    let program = here.parent()?.parent()?.join("sendense-hub");
    let mut command = Command::new(program.is_file().then_some(program)?);
    command.args(["export", "--socket"]).arg(&at.socket);
    command.args(["--listen", &format!("127.0.0.1:{}", at.port)]);
    command.args(device);
    Some(vec![command])
}

fn nbdkit(at: &At, device: &[&str]) -> Option<Vec<Command>> {
    let program = installed("nbdkit")?;
    let (mut unix, mut tcp) = (Command::new(&program), Command::new(&program));
    unix.arg("-f").arg("-U").arg(&at.socket).args(device);
    let port = at.port.to_string();
    tcp.args(["-f", "-i", "127.0.0.1", "-p", &port])
        .args(device);
    Some(vec![unix, tcp])
}

fn qemu_nbd(at: &At, device: &str) -> Option<Vec<Command>> {
    let program = installed("qemu-nbd")?;
    let (mut unix, mut tcp) = (Command::new(&program), Command::new(&program));
    for command in [&mut unix, &mut tcp] {
        command.args(["-t", "-e", "0", "--image-opts", device]);
    }
    unix.arg("-k").arg(&at.socket);
    tcp.args(["-b", "127.0.0.1", "-p", &at.port.to_string()]);
    Some(vec![unix, tcp])
}

fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&path).map(|dir| dir.join(program));
    places.find(|place| place.is_file())
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("a port").port()
}

fn raw_file(name: &str) -> PathBuf {
    let path = Path::new("/dev/shm").join(format!("wire-{name}-{}.raw", std::process::id()));
    let file = File::create(&path).expect("a file on tmpfs");
    file.set_len(KEPT_BYTES).expect("a size");
    path
}

fn start(at: At, commands: Vec<Command>) -> Result<Running, String> {
    let mut running = Running {
        tcp: Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, at.port))),
        unix: Address::Unix(at.socket),
        processes: Vec::new(),
    };
    for mut command in commands {
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        let process = quiet.spawn().map_err(|error| error.to_string())?;
        running.processes.push(process);
    }
    for address in [&running.unix, &running.tcp] {
        let begin = Instant::now();
        while let Err(error) = Client::connect(address) {
            let ended = running.processes.iter_mut().any(|process| {
                let state = process.try_wait();
                !matches!(state, Ok(None))
            });
            if ended || begin.elapsed() > START {
                return Err(format!("does not serve: {error}"));
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
    Ok(running)
}
