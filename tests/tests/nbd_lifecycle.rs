//! Both programs are told to end while clients write: what is in flight is answered, what was acknowledged is in the file.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use qcow2::{BackingFormat, ExtentKind};
use tests::hub::{DEADLINE, Hub, first_line, terminate, wait};
use tests::images::Folder;
use tests::peers::{have, missing, run};
use tests::wire::Wire;
use tests::{qemu, seed};

const HUB: &str = env!("CARGO_BIN_EXE_hub");
/// NBD_CMD_WRITE.
const WRITE: u16 = 1;
/// NBD_ESHUTDOWN.
const SHUTDOWN: u32 = 108;
/// Bytes of a write; each has a place of its own.
const SLOT: usize = 64 << 10;
const SLOTS: usize = 512;
const IN_FLIGHT: usize = 16;
/// What a client must have got into the image before it counts as writing.
const UNDER_WAY_BYTES: u64 = 16 << 20;

/// A process that is killed and waited for, also by a panic.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// `sendense-hub export --create SIZE IMAGE`, and where it listens: `HOST:PORT`.
    fn export(image: &Path, size: &str) -> (Self, String) {
        let mut command = Command::new(HUB);
        command.args(["export", "--name", "disk", "--listen", "127.0.0.1:0"]);
        command.args(["--create", size]).arg(image);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let line = first_line(&mut child);
        let address = line.strip_prefix("ready nbd://").unwrap();
        let address = address.split(['/', ' ']).next().unwrap().to_owned();
        (Self(child), address)
    }

    fn assert_ends_well(mut self) {
        let ended = wait(&mut self.0, DEADLINE).expect("SIGTERM ends it");
        assert_eq!(ended.code(), Some(0));
    }
}

/// What the write with this cookie puts into its slot.
fn data(cookie: u64) -> Vec<u8> {
    let mut data = vec![0; SLOT];
    fastrand::Rng::with_seed(cookie).fill(&mut data);
    data
}

/// Writes slot after slot until `enough` are answered; then `end`, and everything that was sent must be answered before
/// the connection closes. Returns the answer of each slot in the order of sending.
fn write_until_the_end(wire: &mut Wire, enough: usize, end: impl FnOnce()) -> Vec<u32> {
    let mut answers: Vec<Option<u32>> = Vec::new();
    let mut answered = 0;
    while answered < enough {
        while answers.len() - answered < IN_FLIGHT && answers.len() < SLOTS {
            let offset = (answers.len() * SLOT) as u64;
            let cookie = wire.send_header(0, WRITE, offset, u32::try_from(SLOT).unwrap());
            wire.send(&data(cookie)).unwrap();
            answers.push(None);
        }
        let (error, cookie) = wire.reply().unwrap();
        assert_eq!(error, 0);
        answers[usize::try_from(cookie).unwrap() - 1] = Some(error);
        answered += 1;
    }
    end();
    while let Ok((error, cookie)) = wire.reply() {
        assert!(error == 0 || error == SHUTDOWN, "error={error}");
        let answer = &mut answers[usize::try_from(cookie).unwrap() - 1];
        assert_eq!(answer.replace(error), None, "answered once");
    }
    let whole: Option<Vec<_>> = answers.into_iter().collect();
    whole.expect("everything that was sent is answered")
}

/// Each slot is what its answer says: written, or not touched.
fn assert_as_answered(folder: &Folder, name: &str, answers: &[u32], context: &str) {
    let chain = folder.chain(name, BackingFormat::Qcow2);
    let mut read = vec![0; SLOT];
    for (slot, answer) in answers.iter().enumerate() {
        chain.read((slot * SLOT) as u64, &mut read).unwrap();
        let expected = match answer {
            0 => data(slot as u64 + 1),
            _ => vec![0; SLOT],
        };
        assert!(read == expected, "slot={slot} answer={answer} {context}");
    }
}

#[test]
fn a_terminated_export_keeps_what_it_answered() {
    if !have("qemu-img") {
        return;
    }
    let seed = seed::seed("a_terminated_export_keeps_what_it_answered");
    let mut rng = fastrand::Rng::with_seed(seed);
    for signals in [1, 2, 1, 2] {
        let context = format!("SENDENSE_TEST_SEED={seed} signals={signals}");
        let folder = Folder::new();
        let image = folder.path("disk.qcow2");
        let (export, address) = Process::export(&image, "64M");
        let mut wire = Wire::open(address.parse().unwrap(), "disk");
        let enough = rng.usize(0..SLOTS - IN_FLIGHT);
        let answers = write_until_the_end(&mut wire, enough, || {
            for _ in 0..signals {
                terminate(&export.0);
            }
        });
        export.assert_ends_well();
        qemu::assert_clean(&image);
        assert!(answers.len() >= enough);
        assert_as_answered(&folder, "disk.qcow2", &answers, &context);
    }
}

/// Waits until a client has written into the image, sends SIGTERM, and waits for both.
fn terminate_under(export: Process, image: &Path, client: &mut Process) {
    let end = Instant::now() + DEADLINE;
    while std::fs::metadata(image).unwrap().len() < UNDER_WAY_BYTES {
        let ended = client.0.try_wait().unwrap();
        assert!(ended.is_none(), "the client ended: {ended:?}");
        assert!(Instant::now() < end, "the client does not write");
        std::thread::park_timeout(Duration::from_millis(2));
    }
    terminate(&export.0);
    export.assert_ends_well();
    let ended = wait(&mut client.0, DEADLINE).expect("the client notices");
    assert!(!ended.success(), "its server is gone");
}

#[test]
fn a_terminated_export_under_nbdcopy_has_what_came() {
    if !(have("qemu-img") && have("nbdcopy") && have("nbdkit")) {
        return;
    }
    let folder = Folder::new();
    let image = folder.path("disk.qcow2");
    let (export, address) = Process::export(&image, "1T");
    // Endless for our purpose: each 8 bytes are their own offset.
    let source = ["[", "nbdkit", "--exit-with-parent", "pattern", "1T", "]"];
    let mut copy = Command::new("nbdcopy");
    copy.arg("--")
        .args(source)
        .arg(format!("nbd://{address}/disk"));
    let mut copy = Process(copy.stderr(Stdio::null()).spawn().unwrap());
    terminate_under(export, &image, &mut copy);
    qemu::assert_clean(&image);
    let chain = folder.chain("disk.qcow2", BackingFormat::Qcow2);
    let extents = chain.extents(0, chain.virtual_size_bytes()).unwrap();
    let mut data_bytes = 0;
    for extent in extents
        .iter()
        .filter(|extent| extent.kind == ExtentKind::Data)
    {
        let mut read = vec![0; usize::try_from(extent.len_bytes).unwrap()];
        chain.read(extent.offset, &mut read).unwrap();
        let mut at = extent.offset;
        for word in read.as_chunks::<8>().0 {
            // A cluster of which a piece was refused is zero there.
            let found = u64::from_be_bytes(*word);
            assert!(found == at || found == 0, "at={at} found={found}");
            at += 8;
        }
        data_bytes += extent.len_bytes;
    }
    assert!(data_bytes >= UNDER_WAY_BYTES / 2, "{data_bytes}");
}

#[test]
fn a_terminated_export_under_fio_is_clean() {
    if !(have("qemu-img") && have("fio")) {
        return;
    }
    if !run("fio", ["--enghelp=nbd"]).status.success() {
        missing("fio with the nbd engine");
        return;
    }
    let folder = Folder::new();
    let image = folder.path("disk.qcow2");
    let (export, address) = Process::export(&image, "64M");
    let mut fio = Command::new("fio");
    fio.args(["--name=w", "--ioengine=nbd", "--rw=randwrite", "--bs=64k"]);
    fio.args(["--size=64m", "--iodepth=16", "--fsync=8", "--time_based"]);
    fio.args(["--runtime=3600", "--allow_file_create=0"]);
    fio.arg(format!("--uri=nbd://{address}/disk"));
    fio.current_dir(folder.path(""));
    let mut fio = Process(
        fio.stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    terminate_under(export, &image, &mut fio);
    qemu::assert_clean(&image);
}

#[tokio::test]
async fn a_terminated_hub_answers_what_is_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(HUB, dir.path());
    hub.register("vm1", &[64 << 20]).await;
    let (status, started) = hub.start_backup("vm1", "full").await;
    assert_eq!(status, 200, "{started}");
    let export = started["disk_results"][0]["nbd_export_name"]
        .as_str()
        .unwrap();
    let mut wire = Wire::open(hub.nbd, export);
    let mut ended = None;
    let answers = write_until_the_end(&mut wire, 100, || ended = Some(hub.stop()));
    assert_eq!(ended.unwrap().code(), Some(0));
    assert!(answers.len() >= 100 + IN_FLIGHT - 1);
    // The job cannot be gone on with, and the next hub knows.
    let hub = Hub::start(HUB, dir.path());
    let id = started["backup_id"].as_str().unwrap();
    let (status, backup) = hub.get(&format!("/api/v1/backups/{id}")).await;
    assert_eq!((status, backup["status"].as_str()), (200, Some("failed")));
}
