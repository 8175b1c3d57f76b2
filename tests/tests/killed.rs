//! `sendense-hub export` is killed in the midst of its work: what it had made durable is there.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use qcow2::BackingFormat;
use tests::disk::SECTOR;
use tests::hub::first_line;
use tests::images::{Folder, read_ours, read_qemu_img};
use tests::peers::have;
use tests::wire::Wire;
use tests::{qemu, seed};

const HUB: &str = env!("CARGO_BIN_EXE_hub");
/// Not a multiple of the cluster size.
const SECTORS: usize = (6 << 20) / SECTOR + 5;
/// Requests that are under way at any time.
const IN_FLIGHT: usize = 8;

/// What NBD calls the commands.
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const WRITE_ZEROES: u16 = 6;
const FUA: u16 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    Zero,
    Flush,
}

/// A request, and when it was what; moments are counted from the start of the process.
#[derive(Debug)]
struct Request {
    kind: Kind,
    sectors: Range<usize>,
    fua: bool,
    sent: usize,
    answered: Option<usize>,
}

/// One life of the process, from its first request to its death.
struct Life {
    wire: Wire,
    /// The disk at its start.
    start: Vec<u8>,
    /// In the order of sending: the cookie of the first one is 1.
    requests: Vec<Request>,
    moment: usize,
    answers: usize,
}

impl Life {
    fn send(&mut self, rng: &mut fastrand::Rng) {
        let first = rng.usize(0..SECTORS);
        let most = if rng.u8(0..8) == 0 { 1500 } else { 200 };
        let sectors = first..(first + rng.usize(1..most)).min(SECTORS);
        let kind = match rng.u8(0..12) {
            0..2 => Kind::Flush,
            2..5 => Kind::Zero,
            _ => Kind::Write,
        };
        let fua = kind != Kind::Flush && rng.u8(0..8) == 0;
        let flags = if fua { FUA } else { 0 };
        let offset = (sectors.start * SECTOR) as u64;
        let len = u32::try_from(sectors.len() * SECTOR).unwrap();
        let cookie = match kind {
            Kind::Write => self.wire.send_header(flags, WRITE, offset, len),
            Kind::Zero => self.wire.send_header(flags, WRITE_ZEROES, offset, len),
            Kind::Flush => self.wire.send_header(flags, FLUSH, 0, 0),
        };
        if kind == Kind::Write {
            let data = data(cookie).repeat(sectors.len());
            self.wire.send(&data).unwrap();
        }
        self.moment += 1;
        self.requests.push(Request {
            kind,
            sectors,
            fua,
            sent: self.moment,
            answered: None,
        });
    }

    fn fill(&mut self, rng: &mut fastrand::Rng) {
        while self.requests.len() - self.answers < IN_FLIGHT {
            self.send(rng);
        }
    }

    /// Takes one answer, if there is one more.
    fn answer(&mut self) -> std::io::Result<()> {
        let (error, cookie) = self.wire.reply()?;
        assert_eq!(error, 0, "cookie={cookie}");
        self.moment += 1;
        self.answers += 1;
        self.requests[usize::try_from(cookie).unwrap() - 1].answered = Some(self.moment);
        Ok(())
    }

    /// Whether a request outlives the process: it was answered, and itself had FUA or was before a FLUSH that was
    /// answered.
    fn is_durable(&self, request: &Request) -> bool {
        let Some(answered) = request.answered else {
            return false;
        };
        let is_flush = |other: &&Request| other.kind == Kind::Flush && other.answered.is_some();
        let mut flushes = self.requests.iter().filter(is_flush);
        request.fua || flushes.any(|flush| flush.sent > answered)
    }

    /// Requires that each sector is what a request made it, or the start, and no older than what is durable. Returns
    /// how many sectors are not as the last request would have made them.
    fn assert_survived(&self, read: &[u8], context: &str) -> usize {
        assert_eq!(read.len(), self.start.len(), "{context}");
        let changes = self.requests.iter().zip(1..);
        let changes = changes.filter(|(request, _)| request.kind != Kind::Flush);
        let changes: Vec<_> = changes
            .map(|(request, cookie)| {
                let data = match request.kind {
                    Kind::Write => data(cookie),
                    _ => [0; SECTOR],
                };
                (request, data, self.is_durable(request))
            })
            .collect();
        let mut old = 0;
        for (sector, found) in read.chunks(SECTOR).enumerate() {
            let mut here = changes
                .iter()
                .filter(|(request, ..)| request.sectors.contains(&sector));
            // Who was sent after an answer comes after whom it was for.
            let durable = here.clone().filter(|(_, _, durable)| *durable);
            let newest_durable = durable.map(|(request, ..)| request.sent).max();
            let is_over = |answered: Option<usize>| {
                answered.is_some_and(|answered| newest_durable.is_some_and(|sent| sent > answered))
            };
            let before = &self.start[sector * SECTOR..][..SECTOR];
            let known = (before == found && !is_over(Some(0)))
                || here
                    .clone()
                    .any(|(request, data, _)| data == found && !is_over(request.answered));
            assert!(
                known,
                "sector {sector} is neither new nor what it may be: {context}"
            );
            old += usize::from(here.next_back().is_some_and(|(_, data, _)| data != found));
        }
        old
    }
}

/// What a write with this cookie puts into each of its sectors.
fn data(cookie: u64) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    fastrand::Rng::with_seed(cookie).fill(&mut sector);
    sector
}

/// Killed and waited for, also by a panic.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn export(args: &[&str]) -> (Killed, Wire) {
    let mut command = Command::new(HUB);
    command.args(["export", "--name", "disk", "--listen", "127.0.0.1:0"]);
    let mut child = Killed(command.args(args).stdout(Stdio::piped()).spawn().unwrap());
    let line = first_line(&mut child.0);
    let address = line.strip_prefix("ready nbd://").unwrap();
    let address = address.split(['/', ' ']).next().unwrap();
    (child, Wire::open(address.parse().unwrap(), "disk"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Each image is made by one process and written on by a second one; both are killed with requests under way.
#[test]
fn a_killed_export_keeps_what_it_flushed() {
    const IMAGES: usize = 12;
    if !have("qemu-img") {
        return;
    }
    let seed = seed::seed("a_killed_export_keeps_what_it_flushed");
    let (mut unanswered, mut durable, mut old) = (0, 0, 0);
    for image in 0..IMAGES {
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_add(image as u64));
        let folder = Folder::new();
        let mut disk = vec![0; SECTORS * SECTOR];
        let (path, size) = (folder.path("image.qcow2"), disk.len().to_string());
        let mut first = vec!["--create", &size, text(&path)];
        let base = folder.path("base");
        if image % 2 == 1 {
            rng.fill(&mut disk);
            fs::write(&base, &disk).unwrap();
            first.extend(["--backing", text(&base), "--backing-format", "raw"]);
        }
        for (life, args) in [first.as_slice(), &[text(&path)]].into_iter().enumerate() {
            let context = format!("SENDENSE_TEST_SEED={seed} image={image} life={life}");
            let (process, wire) = export(args);
            let mut life = Life {
                wire,
                start: disk,
                requests: Vec::new(),
                moment: 0,
                answers: 0,
            };
            for _ in 0..rng.usize(1..120) {
                life.fill(&mut rng);
                life.answer().unwrap();
            }
            life.fill(&mut rng);
            drop(process);
            // What it said before it died, it said.
            while life.answer().is_ok() {}
            unanswered += life.requests.len() - life.answers;
            durable += life
                .requests
                .iter()
                .filter(|request| life.is_durable(request))
                .count();

            qemu::assert_not_corrupt(&path);
            disk = read_qemu_img(&folder, "image.qcow2");
            old += life.assert_survived(&disk, &context);
            let chain = folder.chain("image.qcow2", BackingFormat::Qcow2);
            assert!(read_ours(&chain) == disk, "we read it as QEMU: {context}");
        }
    }
    eprintln!(
        "kills={} unanswered={unanswered} durable={durable} old={old}",
        IMAGES * 2
    );
    // What this is about did happen.
    assert!(unanswered > IMAGES * 2 && durable > 100 && old > 100);
}
