//! Every command × flag × edge, against qemu-nbd and nbdkit: where we differ from both, the table says why.

use std::path::Path;

use nbd_server::exports::{MemoryExport, SingleExport};
use nbd_server::proto::{CommandCode as C, CommandFlags as F, ErrorCode as E, HeaderStyle};
use nbd_server::{ByteRange, Content, Export, ExportError, ExportInfo, Extent, Zero};
use tests::peers::have;
use tests::servers::{Outcome, Served};

const SIZE: u64 = 128 << 20;
const MIB: u64 = 1 << 20;

/// A device in memory that takes no writes.
#[derive(Clone)]
struct ReadOnly(MemoryExport);

impl Export for ReadOnly {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            read_only: true,
            ..self.0.info()
        }
    }

    async fn read(&self, range: ByteRange) -> Result<Content, ExportError> {
        self.0.read(range).await
    }

    async fn write(&self, _: u64, _: bytes::Bytes) -> Result<(), ExportError> {
        panic!("a write reached a read-only device")
    }

    async fn zero(&self, _: ByteRange, _: Zero) -> Result<(), ExportError> {
        panic!("a zero reached a read-only device")
    }

    async fn trim(&self, _: ByteRange) -> Result<(), ExportError> {
        panic!("a trim reached a read-only device")
    }

    async fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, ExportError> {
        self.0.extents(range).await
    }
}

/// What is expected of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Ok,
    Err(E),
    Closed,
}

/// One line of the table. `why` is given exactly where every peer does something else.
struct Row {
    what: String,
    command: C,
    flags: F,
    at: (u64, u64),
    /// Bytes that follow the header.
    payload: u64,
    is: Is,
    why: Option<&'static str>,
}

fn row(what: impl Into<String>, command: C, flags: F, at: (u64, u64), is: Is) -> Row {
    Row {
        what: what.into(),
        command,
        flags,
        at,
        payload: if command == C::WRITE { at.1 } else { 0 },
        is,
        why: None,
    }
}

impl Row {
    fn payload(self, payload: u64) -> Self {
        Self { payload, ..self }
    }
}

fn run(served: &Served, style: HeaderStyle, row: &Row) -> Option<Is> {
    let mut client = served.connect("", style, &["base:allocation"]);
    if client.remote().style != style {
        return None;
    }
    let payload = vec![7; usize::try_from(row.payload).expect("in memory")];
    let outcome = client.ask(row.command, row.flags, row.at, &payload);
    let is = match outcome {
        Outcome::Done(_) | Outcome::Status(_) => Is::Ok,
        Outcome::Failed(code) => Is::Err(code),
        Outcome::Closed => Is::Closed,
    };
    if is != Is::Closed {
        // The frame is kept: the next request is understood.
        let next = client.ask(C::READ, F::EMPTY, (0, 512), &[]);
        let kept = matches!(next, Outcome::Done(data) if data.len() == 512);
        if !kept {
            return Some(Is::Closed);
        }
    }
    Some(is)
}

fn compare(servers: &[Served], style: HeaderStyle, rows: &[Row]) {
    let mut wrong = Vec::new();
    for row in rows {
        let told: Vec<_> = servers
            .iter()
            .filter_map(|served| Some((served.name, run(served, style, row)?)))
            .collect();
        let Some(((_, ours), peers)) = told.split_first() else {
            panic!("our own server is the first")
        };
        let like_a_peer = peers.iter().any(|(_, theirs)| theirs == ours);
        let what = format!("{style:?} {}: {told:?}", row.what);
        if *ours != row.is {
            wrong.push(format!("expected {:?}: {what}", row.is));
        } else if peers.is_empty() {
            // Nobody to compare with: the specification alone decides.
        } else if like_a_peer && row.why.is_some() {
            wrong.push(format!("a reason that is none any more: {what}"));
        } else if !like_a_peer && row.why.is_none() {
            wrong.push(format!("unlike every peer, without a reason: {what}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Our server first, then the peers that are installed.
fn servers(dir: &Path, read_only: bool) -> Vec<Served> {
    let memory = MemoryExport::new(SIZE);
    let mut servers = vec![if read_only {
        Served::ours(dir, SingleExport::new("disk", ReadOnly(memory)))
    } else {
        Served::ours(dir, SingleExport::new("disk", memory))
    }];
    let text = |path: &Path| path.to_str().expect("a plain path").to_owned();
    if have("qemu-nbd") {
        let raw = dir.join("disk.raw");
        let file = std::fs::File::create(&raw).expect("a file");
        file.set_len(SIZE).expect("a size");
        let socket = dir.join("qemu.sock");
        let (raw, path) = (text(&raw), text(&socket));
        let mut args = vec!["-t", "-e", "0", "-f", "raw", "--discard=unmap", "-k", &path];
        if read_only {
            args.push("-r");
        }
        args.push(&raw);
        servers.push(Served::program("qemu-nbd", &socket, &args));
    }
    if have("nbdkit") {
        let socket = dir.join("nbdkit.sock");
        let path = text(&socket);
        let mut args = vec!["-f", "-U", &path];
        if read_only {
            args.push("-r");
        }
        args.extend(["memory", "128M"]);
        servers.push(Served::program("nbdkit", &socket, &args));
    }
    servers
}

/// Lines that hold whatever the style.
fn table() -> Vec<Row> {
    let none = F::EMPTY;
    let top = u64::MAX;
    let odd = F(1 << 15);
    let (ok, inval, nospc) = (Is::Ok, Is::Err(E::INVAL), Is::Err(E::NOSPC));
    vec![
        row("read", C::READ, none, (4096, 4096), ok),
        row("read the last byte", C::READ, none, (SIZE - 1, 1), ok),
        row("read over the end", C::READ, none, (SIZE - 1, 2), inval),
        row("read at the end", C::READ, none, (SIZE, 1), inval),
        row("read with overflow", C::READ, none, (top, 1), inval),
        row("read with FUA", C::READ, F::FUA, (0, 512), ok),
        row("read with NO_HOLE", C::READ, F::NO_HOLE, (0, 512), inval),
        row("read with REQ_ONE", C::READ, F::REQ_ONE, (0, 512), inval),
        row(
            "read with FAST_ZERO",
            C::READ,
            F::FAST_ZERO,
            (0, 512),
            inval,
        ),
        row("read with an unknown flag", C::READ, odd, (0, 512), inval),
        row("read the advertised most", C::READ, none, (0, 32 * MIB), ok),
        row("read the accepted most", C::READ, none, (0, 64 * MIB), ok),
        row("read too much", C::READ, none, (0, 64 * MIB + 1), inval),
        row("read nothing", C::READ, none, (0, 0), ok),
        row("write", C::WRITE, none, (4096, 4096), ok),
        row("write a byte", C::WRITE, none, (12345, 1), ok),
        row("write the last byte", C::WRITE, none, (SIZE - 1, 1), ok),
        row("write with FUA", C::WRITE, F::FUA, (0, 512), ok),
        row("write over the end", C::WRITE, none, (SIZE - 1, 2), nospc),
        row("write at the end", C::WRITE, none, (SIZE, 1), nospc),
        row("write with overflow", C::WRITE, none, (top, 1), nospc),
        row("write with DF", C::WRITE, F::DF, (0, 512), inval),
        row("write with NO_HOLE", C::WRITE, F::NO_HOLE, (0, 512), inval),
        row("write with an unknown flag", C::WRITE, odd, (0, 512), inval),
        row("write nothing", C::WRITE, none, (0, 0), ok),
        row(
            "write the advertised most",
            C::WRITE,
            none,
            (0, 32 * MIB),
            ok,
        ),
        row("write the accepted most", C::WRITE, none, (0, 64 * MIB), ok),
        row("zero", C::WRITE_ZEROES, none, (4096, 4096), ok),
        row(
            "zero with NO_HOLE",
            C::WRITE_ZEROES,
            F::NO_HOLE,
            (0, 512),
            ok,
        ),
        row("zero with FUA", C::WRITE_ZEROES, F::FUA, (0, 512), ok),
        row("zero fast", C::WRITE_ZEROES, F::FAST_ZERO, (0, MIB), ok),
        row("zero everything", C::WRITE_ZEROES, none, (0, SIZE), ok),
        row(
            "zero the last byte",
            C::WRITE_ZEROES,
            none,
            (SIZE - 1, 1),
            ok,
        ),
        row(
            "zero over the end",
            C::WRITE_ZEROES,
            none,
            (SIZE - 1, 2),
            nospc,
        ),
        row("zero with overflow", C::WRITE_ZEROES, none, (top, 2), nospc),
        row("zero with DF", C::WRITE_ZEROES, F::DF, (0, 512), inval),
        row(
            "zero with an unknown flag",
            C::WRITE_ZEROES,
            odd,
            (0, 512),
            inval,
        ),
        row("zero nothing", C::WRITE_ZEROES, none, (0, 0), ok),
        row("trim", C::TRIM, none, (4096, 4096), ok),
        row("trim with FUA", C::TRIM, F::FUA, (0, 512), ok),
        row("trim everything", C::TRIM, none, (0, SIZE), ok),
        row("trim over the end", C::TRIM, none, (SIZE - 1, 2), inval),
        row("trim with overflow", C::TRIM, none, (top, 2), inval),
        row("trim with NO_HOLE", C::TRIM, F::NO_HOLE, (0, 512), inval),
        row("trim nothing", C::TRIM, none, (0, 0), ok),
        row("flush", C::FLUSH, none, (0, 0), ok),
        row("flush with FUA", C::FLUSH, F::FUA, (0, 0), ok),
        row("flush a range", C::FLUSH, none, (0, 512), inval),
        row("flush an offset", C::FLUSH, none, (512, 0), inval),
        row("flush with DF", C::FLUSH, F::DF, (0, 0), inval),
        row("cache", C::CACHE, none, (0, 4096), ok),
        row("cache with FUA", C::CACHE, F::FUA, (0, 512), ok),
        row("cache over the end", C::CACHE, none, (SIZE - 1, 2), inval),
        row("cache with DF", C::CACHE, F::DF, (0, 512), inval),
        row("cache nothing", C::CACHE, none, (0, 0), ok),
        row("resize", C::RESIZE, none, (0, SIZE), inval),
        row("an unknown command", C(77), none, (0, 0), inval),
        row(
            "an unknown command on a range",
            C(u16::MAX),
            none,
            (0, 512),
            inval,
        ),
        row("leave", C::DISC, none, (0, 0), Is::Closed),
        row("leave with nonsense", C::DISC, odd, (512, 0), Is::Closed),
    ]
}

/// Lines about chunks: block status, and READ in one of them.
fn chunked() -> Vec<Row> {
    let none = F::EMPTY;
    let (ok, inval) = (Is::Ok, Is::Err(E::INVAL));
    vec![
        row("read with DF", C::READ, F::DF, (0, 65536), ok),
        row("read a lot with DF", C::READ, F::DF, (0, 32 * MIB), ok),
        row("status", C::BLOCK_STATUS, none, (0, SIZE), ok),
        row(
            "status of one run",
            C::BLOCK_STATUS,
            F::REQ_ONE,
            (0, SIZE),
            ok,
        ),
        row("status with FUA", C::BLOCK_STATUS, F::FUA, (0, 512), ok),
        row("status with DF", C::BLOCK_STATUS, F::DF, (0, 512), inval),
        row(
            "status of the last byte",
            C::BLOCK_STATUS,
            none,
            (SIZE - 1, 1),
            ok,
        ),
        row(
            "status over the end",
            C::BLOCK_STATUS,
            none,
            (SIZE - 1, 2),
            inval,
        ),
        row("status of nothing", C::BLOCK_STATUS, none, (0, 0), inval),
    ]
}

#[test]
fn compact_requests_with_simple_replies() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut rows = table();
    let inval = Is::Err(E::INVAL);
    rows.push(row("DF without chunks", C::READ, F::DF, (0, 512), inval));
    let status = row(
        "status without contexts",
        C::BLOCK_STATUS,
        F::EMPTY,
        (0, 512),
        inval,
    );
    rows.push(status);
    compare(&servers(dir.path(), false), HeaderStyle::Simple, &rows);
}

#[test]
fn compact_requests_with_structured_replies() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut rows = table();
    rows.extend(chunked());
    let inval = Is::Err(E::INVAL);
    let flag = F::PAYLOAD_LEN;
    rows.push(row(
        "a flag of extended headers",
        C::TRIM,
        flag,
        (0, 512),
        inval,
    ));
    rows.push(row("the same for a write", C::WRITE, flag, (0, 512), inval));
    compare(&servers(dir.path(), false), HeaderStyle::Structured, &rows);
}

/// Only qemu-nbd speaks extended headers here; in the other styles nbdkit is with us.
const UNLIKE_QEMU: [(&str, &str); 15] = [
    ("read the accepted most", MORE),
    ("write the accepted most", MORE),
    ("write over the end", NO_SPACE),
    ("write at the end", NO_SPACE),
    ("write with overflow", NO_SPACE),
    ("zero over the end", NO_SPACE),
    ("zero with overflow", NO_SPACE),
    ("zero 2^63", NO_SPACE),
    ("zero 2^64-1", NO_SPACE),
    ("flush a range", RESERVED),
    ("flush an offset", RESERVED),
    ("a write where none is allowed", READ_ONLY),
    ("a write over the end where none is allowed", READ_ONLY),
    ("a zero where none is allowed", READ_ONLY),
    ("a trim where none is allowed", READ_ONLY),
];
const MORE: &str = "clients in the field go past 32 MiB; nbdkit takes 64 MiB as well";
const NO_SPACE: &str = "ENOSPC is what the specification asks for beyond the end";
const RESERVED: &str = "offset and length of a flush are reserved and must be zero";
const NOT_FAST: &str = "an allocation that is filled with zeroes is not faster than a write";
const READ_ONLY: &str = "EPERM is what the specification asks for on a read-only export";

fn with_reasons(mut rows: Vec<Row>) -> Vec<Row> {
    for row in &mut rows {
        let mut reasons = UNLIKE_QEMU.iter();
        row.why = reasons
            .find(|(what, _)| *what == row.what)
            .map(|(_, why)| *why);
    }
    rows
}

#[test]
fn extended_requests() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut rows = table();
    rows.extend(chunked());
    let none = F::EMPTY;
    let flag = F::PAYLOAD_LEN;
    let (inval, nospc) = (Is::Err(E::INVAL), Is::Err(E::NOSPC));
    let huge = u64::MAX;
    rows.extend([
        row("zero 2^63", C::WRITE_ZEROES, none, (0, 1 << 63), nospc),
        row("zero 2^64-1", C::WRITE_ZEROES, none, (1, huge), nospc),
        row("trim 2^64-1", C::TRIM, none, (1, huge), inval),
        row("cache 2^64-1", C::CACHE, none, (0, huge), inval),
        row("read 2^64-1", C::READ, none, (0, huge), inval),
        row("status of 2^64-1", C::BLOCK_STATUS, none, (0, huge), inval),
        row("a payload to read", C::READ, flag, (0, 512), inval).payload(512),
        row("a payload to trim", C::TRIM, flag, (0, 512), inval).payload(512),
        row("a payload to zero", C::WRITE_ZEROES, flag, (0, 4096), inval).payload(4096),
        row("a payload to flush", C::FLUSH, flag, (0, 64), inval).payload(64),
        row("a payload to cache", C::CACHE, flag, (0, 64), inval).payload(64),
        row("a payload to nothing known", C(77), flag, (0, 64), inval).payload(64),
        row(
            "a list of no contexts",
            C::BLOCK_STATUS,
            flag,
            (0, 8),
            inval,
        )
        .payload(8),
        row("a list that is cut", C::BLOCK_STATUS, flag, (0, 10), inval).payload(10),
        row(
            "a list of unknown contexts",
            C::BLOCK_STATUS,
            flag,
            (0, 12),
            inval,
        )
        .payload(12),
        row("a long list", C::BLOCK_STATUS, flag, (0, 4096), inval).payload(4096),
        row(
            "a payload beyond the bound",
            C::TRIM,
            flag,
            (0, 65 * MIB),
            Is::Closed,
        ),
        row("an endless payload", C::READ, flag, (0, huge), Is::Closed),
    ]);
    let rows = with_reasons(rows);
    compare(&servers(dir.path(), false), HeaderStyle::Extended, &rows);
}

#[test]
fn a_read_only_device() {
    let dir = tempfile::tempdir().expect("a folder");
    let none = F::EMPTY;
    let (ok, inval, perm) = (Is::Ok, Is::Err(E::INVAL), Is::Err(E::PERM));
    let rows = || {
        vec![
            row("read", C::READ, none, (0, 4096), ok),
            row(
                "a write where none is allowed",
                C::WRITE,
                none,
                (0, 4096),
                perm,
            ),
            row(
                "a write over the end where none is allowed",
                C::WRITE,
                none,
                (SIZE, 1),
                perm,
            ),
            row(
                "a zero where none is allowed",
                C::WRITE_ZEROES,
                none,
                (0, 4096),
                perm,
            ),
            row(
                "a trim where none is allowed",
                C::TRIM,
                none,
                (0, 4096),
                perm,
            ),
            row(
                "a fast zero, which is not offered",
                C::WRITE_ZEROES,
                F::FAST_ZERO,
                (0, 512),
                inval,
            ),
            row("flush", C::FLUSH, none, (0, 0), ok),
            row("cache", C::CACHE, none, (0, 4096), ok),
        ]
    };
    let servers = servers(dir.path(), true);
    compare(&servers, HeaderStyle::Simple, &rows());
    compare(&servers, HeaderStyle::Structured, &rows());
    compare(&servers, HeaderStyle::Extended, &with_reasons(rows()));
}

const COMMANDS: [(&str, C); 6] = [
    ("read", C::READ),
    ("write", C::WRITE),
    ("zero", C::WRITE_ZEROES),
    ("trim", C::TRIM),
    ("cache", C::CACHE),
    ("status", C::BLOCK_STATUS),
];

const FLAGS: [(&str, F); 8] = [
    ("no flag", F::EMPTY),
    ("FUA", F::FUA),
    ("NO_HOLE", F::NO_HOLE),
    ("DF", F::DF),
    ("REQ_ONE", F::REQ_ONE),
    ("FAST_ZERO", F::FAST_ZERO),
    ("NO_HOLE and FAST_ZERO", F::NO_HOLE.with(F::FAST_ZERO)),
    ("an unknown flag", F(1 << 15)),
];

const EDGES: [(&str, u64, u64); 8] = [
    ("nothing", 4096, 0),
    ("nothing at the end", SIZE, 0),
    ("nothing beyond the end", SIZE + 1, 0),
    ("a block", 4096, 512),
    ("the last byte", SIZE - 1, 1),
    ("one byte beyond", SIZE - 1, 2),
    ("a byte at the end", SIZE, 1),
    ("a byte at 2^64-1", u64::MAX, 1),
];

/// A request of the product of commands, flags and edges.
#[derive(Clone, Copy)]
struct Asked {
    style: HeaderStyle,
    read_only: bool,
    command: C,
    flags: F,
    offset: u64,
    len: u64,
}

impl Asked {
    fn changes(self) -> bool {
        [C::WRITE, C::WRITE_ZEROES, C::TRIM].contains(&self.command)
    }

    fn is_beyond(self) -> bool {
        let end = self.offset.checked_add(self.len);
        end.is_none_or(|end| end > SIZE)
    }

    /// FUA goes with every command; the others belong to one each.
    fn has_odd_flags(self) -> bool {
        let own = match self.command {
            C::READ if self.style != HeaderStyle::Simple => F::DF,
            C::WRITE_ZEROES if self.read_only => F::NO_HOLE,
            C::WRITE_ZEROES => F::NO_HOLE.with(F::FAST_ZERO),
            C::BLOCK_STATUS => F::REQ_ONE,
            _ => F::EMPTY,
        };
        !self.flags.without(own.with(F::FUA)).is_empty()
    }

    /// What the specification asks for (NBD proto, "Error values").
    fn is(self) -> Is {
        let status = self.command == C::BLOCK_STATUS;
        let writes = [C::WRITE, C::WRITE_ZEROES].contains(&self.command);
        if self.has_odd_flags() || (status && self.style == HeaderStyle::Simple) {
            Is::Err(E::INVAL)
        } else if self.read_only && self.changes() {
            Is::Err(E::PERM)
        } else if self.is_beyond() {
            Is::Err(if writes { E::NOSPC } else { E::INVAL })
        } else if status && self.len == 0 {
            Is::Err(E::INVAL)
        } else if self.flags == F::NO_HOLE.with(F::FAST_ZERO) {
            Is::Err(E::NOTSUP)
        } else {
            Is::Ok
        }
    }

    /// Why that is not what any of the peers does.
    fn why(self) -> Option<&'static str> {
        // With extended headers qemu-nbd is the only peer.
        let extended = self.style == HeaderStyle::Extended;
        match self.is() {
            Is::Err(E::NOTSUP) => Some(NOT_FAST),
            Is::Err(E::NOSPC) if extended => Some(NO_SPACE),
            Is::Err(E::PERM) if extended => Some(READ_ONLY),
            _ => None,
        }
    }
}

fn product(style: HeaderStyle, read_only: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for (command_name, command) in COMMANDS {
        for (flags_name, flags) in FLAGS {
            for (edge, offset, len) in EDGES {
                let asked = Asked {
                    style,
                    read_only,
                    command,
                    flags,
                    offset,
                    len,
                };
                let what = format!("{command_name} {edge} with {flags_name}");
                let row = row(what, command, flags, (offset, len), asked.is());
                let why = asked.why();
                rows.push(Row { why, ..row });
            }
        }
    }
    rows
}

#[test]
fn every_command_with_every_flag_at_every_edge() {
    let dir = tempfile::tempdir().expect("a folder");
    let servers = servers(dir.path(), false);
    for style in STYLES {
        compare(&servers, style, &product(style, false));
    }
}

#[test]
fn every_command_with_every_flag_at_every_edge_of_a_read_only_device() {
    let dir = tempfile::tempdir().expect("a folder");
    let servers = servers(dir.path(), true);
    for style in STYLES {
        compare(&servers, style, &product(style, true));
    }
}

const STYLES: [HeaderStyle; 3] = [
    HeaderStyle::Simple,
    HeaderStyle::Structured,
    HeaderStyle::Extended,
];
