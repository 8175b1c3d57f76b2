//! Every option of the handshake, sound and malformed, against qemu and nbdkit: where we differ from both, the table says
//! why.

use std::path::Path;

use nbd_server::exports::MemoryExport;
use nbd_server::proto::{
    ClientOption as O, ExportName, InfoKind, InfoRequest, MetaQuery, OptionCode as C, ReplyCode,
};
use nbd_server::{Exports, OpenError, Peer};
use tests::options::{Said, Word, converse};
use tests::peers::have;
use tests::servers::Served;

const SIZE: u64 = 8 << 20;
/// FIXED_NEWSTYLE and NO_ZEROES, as every client of today says.
const MODERN: u32 = 3;

/// Names that can be used, and those of them that a listing shows.
struct Names {
    known: &'static [&'static str],
    listed: &'static [&'static str],
}

impl Exports for Names {
    type Export = MemoryExport;

    async fn open(&self, name: &ExportName, _peer: &Peer) -> Result<MemoryExport, OpenError> {
        if self.known.contains(&name.as_str()) {
            Ok(MemoryExport::new(SIZE))
        } else {
            Err(OpenError::Unknown)
        }
    }

    async fn list(&self, _peer: &Peer) -> Vec<String> {
        self.listed.iter().map(|&name| name.to_owned()).collect()
    }
}

/// A handshake and what we say to it. `why` is given exactly where every peer says something else.
struct Row {
    what: &'static str,
    flags: u32,
    words: Vec<Word>,
    says: Vec<Said>,
    why: Option<&'static str>,
}

fn row(what: &'static str, words: Vec<Word>, says: Vec<Said>) -> Row {
    Row {
        what,
        flags: MODERN,
        words,
        says,
        why: None,
    }
}

impl Row {
    fn flags(self, flags: u32) -> Self {
        Self { flags, ..self }
    }

    fn why(self, why: &'static str) -> Self {
        let why = Some(why);
        Self { why, ..self }
    }
}

fn compare(servers: &[Served], rows: &[Row]) {
    let mut wrong = Vec::new();
    for row in rows {
        let says = |served: &Served| {
            let mut says = converse(served.socket(), row.flags, &row.words);
            says.retain(|said| !is_volunteered(said, &row.says));
            says
        };
        let told: Vec<_> = servers.iter().map(|one| (one.name, says(one))).collect();
        let Some(((_, ours), peers)) = told.split_first() else {
            panic!("our own server is the first")
        };
        let like_a_peer = peers.iter().any(|(_, theirs)| theirs == ours);
        let what = format!("{}: {told:?}", row.what);
        if *ours != row.says {
            wrong.push(format!("expected {:?}: {what}", row.says));
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

/// Servers may tell more than they were asked (NBD proto, `NBD_OPT_GO`); that is no difference.
fn is_volunteered(said: &Said, expected: &[Said]) -> bool {
    matches!(said, Said::BlockSize | Said::Description) && !expected.contains(said)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Our server first, then the peers that are installed: each with these names.
fn servers(dir: &Path, names: Names) -> Vec<Served> {
    let (known, listed) = (names.known, names.listed);
    let mut servers = vec![Served::ours(dir, names)];
    if have("qemu-storage-daemon") && known == listed {
        let socket = dir.join("qemu.sock");
        let node = format!("driver=null-co,node-name=disk,read-zeroes=on,size={SIZE}");
        let server = format!("addr.type=unix,addr.path={}", text(&socket));
        let mut args = vec!["--blockdev".to_owned(), node];
        args.extend(["--nbd-server".to_owned(), server]);
        for (place, name) in known.iter().enumerate() {
            let export = format!(
                "type=nbd,id=e{place},node-name=disk,writable=on,name={name},description=a disk"
            );
            args.extend(["--export".to_owned(), export]);
        }
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        servers.push(Served::program("qemu-storage-daemon", &socket, &args));
    }
    if have("nbdkit") {
        let socket = dir.join("nbdkit.sock");
        let mode = if listed.is_empty() {
            "empty"
        } else {
            "explicit"
        };
        let mut args = vec!["-f", "-U", text(&socket), "--filter=exportname", "memory"];
        let size = format!("{}M", SIZE >> 20);
        let list = format!("exportname-list={mode}");
        let exports: Vec<_> = known
            .iter()
            .map(|name| format!("exportname={name}"))
            .collect();
        args.extend([&*size, &*list, "exportname-strict=true"]);
        args.push("exportdesc=fixed:a disk");
        args.extend(exports.iter().map(String::as_str));
        servers.push(Served::program("nbdkit", &socket, &args));
    }
    servers
}

fn name(text: &str) -> ExportName {
    ExportName::new(text).expect("a name")
}

fn request(export: &str, kinds: &[InfoKind]) -> InfoRequest {
    InfoRequest {
        name: name(export),
        kinds: kinds.to_vec(),
    }
}

fn info(export: &str, kinds: &[InfoKind]) -> Word {
    Word::of(&O::Info(request(export, kinds)))
}

fn go(export: &str) -> Word {
    Word::of(&O::Go(request(export, &[])))
}

fn by_name(export: &str) -> Word {
    Word::of(&O::ExportName(name(export)))
}

fn query(queries: &[&str]) -> MetaQuery {
    MetaQuery {
        name: name("disk"),
        queries: queries.iter().map(|&query| query.to_owned()).collect(),
    }
}

fn contexts(queries: &[&str]) -> Word {
    Word::of(&O::ListMetaContext(query(queries)))
}

fn select(queries: &[&str]) -> Word {
    Word::of(&O::SetMetaContext(query(queries)))
}

fn structured() -> Word {
    Word::of(&O::StructuredReply)
}

fn extended() -> Word {
    Word::of(&O::ExtendedHeaders)
}

fn list() -> Word {
    Word::of(&O::List)
}

fn abort() -> Word {
    Word::of(&O::Abort)
}

fn refused(code: ReplyCode) -> Said {
    Said::Refused(code.0)
}

fn listed(name: &str) -> Said {
    Said::Name(name.to_owned())
}

fn context(name: &str) -> Said {
    Said::Context(name.to_owned())
}

/// What a GO that works is answered with when nothing was asked for.
fn begun() -> Vec<Said> {
    vec![Said::Size(SIZE), Said::Ack, Said::Serves]
}

fn then(first: Vec<Said>, rest: Vec<Said>) -> Vec<Said> {
    [first, rest].concat()
}

/// The old way to choose an export.
fn export_name() -> Vec<Row> {
    let works = || vec![Said::Size(SIZE), Said::Serves];
    vec![
        row("EXPORT_NAME without zeroes", vec![by_name("disk")], works()),
        row("EXPORT_NAME with zeroes", vec![by_name("disk")], works()).flags(1),
        row(
            "EXPORT_NAME of the oldest clients",
            vec![by_name("disk")],
            works(),
        )
        .flags(0),
        row(
            "EXPORT_NAME that is unknown",
            vec![by_name("nowhere")],
            vec![Said::Closed],
        ),
        row(
            "EXPORT_NAME after other options",
            vec![info("disk", &[]), list(), by_name("disk")],
            then(
                vec![Said::Size(SIZE), Said::Ack, listed("disk"), Said::Ack],
                works(),
            ),
        ),
        row(
            "flags that are unknown",
            vec![by_name("disk")],
            vec![Said::Closed],
        )
        .flags(0x83),
    ]
}

/// LIST, ABORT, and what is not known.
fn small_options() -> Vec<Row> {
    let unknown = C(77);
    let invalid = || refused(ReplyCode::ERR_INVALID);
    let unsup = || refused(ReplyCode::ERR_UNSUP);
    vec![
        row("LIST", vec![list()], vec![listed("disk"), Said::Ack]),
        row(
            "LIST with a payload, then GO",
            vec![Word::raw(C::LIST, b"x"), go("disk")],
            then(vec![invalid()], begun()),
        ),
        row(
            "ABORT",
            vec![abort(), list()],
            vec![Said::Ack, Said::Closed],
        ),
        row(
            "ABORT with a payload",
            vec![Word::raw(C::ABORT, b"x"), list()],
            vec![Said::Ack, Said::Closed],
        ),
        row(
            "an unknown option, then GO",
            vec![Word::raw(unknown, b""), go("disk")],
            then(vec![unsup()], begun()),
        ),
        row(
            "an unknown option with a payload, then GO",
            vec![Word::raw(unknown, &[7; 300]), go("disk")],
            then(vec![unsup()], begun()),
        ),
        row(
            "an option that was withdrawn",
            vec![Word::raw(C::PEEK_EXPORT, b"disk"), go("disk")],
            then(vec![unsup()], begun()),
        ),
    ]
}

/// INFO and GO with every kind of information, and with none.
fn info_and_go() -> Vec<Row> {
    let (name, description) = (InfoKind::NAME, InfoKind::DESCRIPTION);
    let (block_size, export) = (InfoKind::BLOCK_SIZE, InfoKind::EXPORT);
    let odd = InfoKind(0x7777);
    let called = || Said::CalledName("disk".to_owned());
    let size = || Said::Size(SIZE);
    let unknown = || refused(ReplyCode::ERR_UNKNOWN);
    vec![
        row("INFO", vec![info("disk", &[])], vec![size(), Said::Ack]),
        row(
            "INFO about the export, which is told anyway",
            vec![info("disk", &[export])],
            vec![size(), Said::Ack],
        ),
        row(
            "INFO about the name",
            vec![info("disk", &[name])],
            vec![size(), called(), Said::Ack],
        ),
        row(
            "INFO about the description",
            vec![info("disk", &[description])],
            vec![size(), Said::Description, Said::Ack],
        ),
        row(
            "INFO about block sizes",
            vec![info("disk", &[block_size])],
            vec![size(), Said::BlockSize, Said::Ack],
        ),
        row(
            "INFO about what nobody knows",
            vec![info("disk", &[odd])],
            vec![size(), Said::Ack],
        ),
        row(
            "INFO about everything, some of it twice",
            vec![info(
                "disk",
                &[odd, name, block_size, name, description, export],
            )],
            vec![
                size(),
                Said::BlockSize,
                called(),
                Said::Description,
                Said::Ack,
            ],
        ),
        row(
            "INFO that is unknown",
            vec![info("nowhere", &[])],
            vec![unknown()],
        ),
        row("GO", vec![go("disk")], begun()),
        row(
            "GO after INFO",
            vec![info("disk", &[]), go("disk")],
            then(vec![size(), Said::Ack], begun()),
        ),
        row(
            "GO after several that failed",
            vec![
                go("nowhere"),
                info("nowhere", &[]),
                go("nowhere"),
                go("disk"),
            ],
            then(vec![unknown(), unknown(), unknown()], begun()),
        ),
    ]
}

/// INFO and GO that are malformed, and the connection that lives.
fn malformed() -> Vec<Row> {
    let cases: [(&'static str, &[u8]); 7] = [
        ("GO without anything, then GO", b""),
        ("GO with half a length, then GO", b"\0\0"),
        ("GO with a name that is cut, then GO", b"\0\0\0\x05disk\0\0"),
        ("GO without a count, then GO", b"\0\0\0\x04disk"),
        (
            "GO with a list that is cut, then GO",
            b"\0\0\0\x04disk\0\x02\0\x03",
        ),
        (
            "GO with more than its list, then GO",
            b"\0\0\0\x04disk\0\0\0\x03",
        ),
        (
            "GO with an endless name, then GO",
            b"\xff\xff\xff\xffdisk\0\0",
        ),
    ];
    let invalid = || refused(ReplyCode::ERR_INVALID);
    let row = |(what, payload): (&'static str, &[u8])| {
        let words = vec![Word::raw(C::GO, payload), go("disk")];
        row(what, words, then(vec![invalid()], begun()))
    };
    cases.into_iter().map(row).collect()
}

/// Styles of replies, and the contexts that need them.
fn styles_and_contexts() -> Vec<Row> {
    let invalid = || refused(ReplyCode::ERR_INVALID);
    let allocation = || context("base:allocation");
    vec![
        row(
            "STRUCTURED_REPLY, then GO",
            vec![structured(), go("disk")],
            then(vec![Said::Ack], begun()),
        ),
        row(
            "STRUCTURED_REPLY with a payload, then GO",
            vec![Word::raw(C::STRUCTURED_REPLY, b"x"), go("disk")],
            then(vec![invalid()], begun()),
        ),
        row(
            "STRUCTURED_REPLY twice, then GO",
            vec![structured(), structured(), go("disk")],
            then(vec![Said::Ack, Said::Ack], begun()),
        ),
        row(
            "STRUCTURED_REPLY, then EXPORT_NAME",
            vec![structured(), by_name("disk")],
            vec![Said::Ack, Said::Size(SIZE), Said::Serves],
        ),
        row(
            "a choice before structured replies, then GO",
            vec![select(&["base:allocation"]), go("disk")],
            then(vec![invalid()], begun()),
        ),
        row(
            "contexts before structured replies, then GO",
            vec![contexts(&[]), go("disk")],
            then(vec![invalid()], begun()),
        )
        .why("the specification lets us refuse: without structured replies they are of no use"),
        row(
            "every context there is",
            vec![structured(), contexts(&[])],
            vec![Said::Ack, allocation(), Said::Ack],
        ),
        row(
            "contexts of a namespace",
            vec![structured(), contexts(&["base:"])],
            vec![Said::Ack, allocation(), Said::Ack],
        ),
        row(
            "contexts that nobody knows",
            vec![structured(), contexts(&["x-else:what", "base:nothing"])],
            vec![Said::Ack, Said::Ack],
        ),
        row(
            "a context chosen, another one not",
            vec![
                structured(),
                select(&["x-else:what", "base:allocation"]),
                go("disk"),
            ],
            then(vec![Said::Ack, allocation(), Said::Ack], begun()),
        ),
        row(
            "a namespace is not chosen",
            vec![structured(), select(&["base:"]), go("disk")],
            then(vec![Said::Ack, Said::Ack], begun()),
        ),
        row(
            "a choice without queries",
            vec![structured(), select(&[]), go("disk")],
            then(vec![Said::Ack, Said::Ack], begun()),
        ),
        row(
            "a choice that is cut, then GO",
            vec![
                structured(),
                Word::raw(
                    C::SET_META_CONTEXT,
                    b"\0\0\0\x04disk\0\0\0\x01\0\0\0\x09base",
                ),
                go("disk"),
            ],
            then(vec![Said::Ack, invalid()], begun()),
        ),
    ]
}

/// Extended headers, which nbdkit may not have: those of qemu decide.
fn extended_headers() -> Vec<Row> {
    let invalid = || refused(ReplyCode::ERR_INVALID);
    let required = || refused(ReplyCode::ERR_EXT_HEADER_REQD);
    vec![
        row(
            "EXTENDED_HEADERS, then GO",
            vec![extended(), go("disk")],
            then(vec![Said::Ack], begun()),
        ),
        row(
            "EXTENDED_HEADERS with a payload, then GO",
            vec![Word::raw(C::EXTENDED_HEADERS, b"x"), go("disk")],
            then(vec![invalid()], begun()),
        ),
        row(
            "EXTENDED_HEADERS after STRUCTURED_REPLY",
            vec![structured(), extended(), go("disk")],
            then(vec![Said::Ack, Said::Ack], begun()),
        ),
        row(
            "STRUCTURED_REPLY after EXTENDED_HEADERS",
            vec![extended(), structured(), go("disk")],
            then(vec![Said::Ack, required()], begun()),
        ),
        row(
            "EXTENDED_HEADERS twice, then GO",
            vec![extended(), extended(), go("disk")],
            then(vec![Said::Ack, Said::Ack], begun()),
        )
        .why("asking again changes nothing, as with STRUCTURED_REPLY"),
        row(
            "EXPORT_NAME after EXTENDED_HEADERS",
            vec![extended(), by_name("disk")],
            vec![Said::Ack, Said::Closed],
        ),
    ]
}

#[test]
fn one_export() {
    let dir = tempfile::tempdir().expect("a folder");
    let one: &[&str] = &["disk"];
    let names = Names {
        known: one,
        listed: one,
    };
    let mut rows = export_name();
    rows.extend(small_options());
    rows.extend(info_and_go());
    rows.extend(malformed());
    rows.extend(styles_and_contexts());
    rows.extend(extended_headers());
    compare(&servers(dir.path(), names), &rows);
}

#[test]
fn several_exports_are_listed_and_used() {
    let dir = tempfile::tempdir().expect("a folder");
    let several: &[&str] = &["a", "b", "disk"];
    let names = Names {
        known: several,
        listed: several,
    };
    let all = vec![listed("a"), listed("b"), listed("disk"), Said::Ack];
    let rows = [
        row("LIST of several", vec![list()], all.clone()),
        row("one of several", vec![list(), go("b")], then(all, begun())),
        row(
            "the empty name among several",
            vec![go("")],
            vec![refused(ReplyCode::ERR_UNKNOWN)],
        ),
    ];
    compare(&servers(dir.path(), names), &rows);
}

#[test]
fn exports_that_are_not_listed_can_be_used() {
    let dir = tempfile::tempdir().expect("a folder");
    let names = Names {
        known: &["disk", "other"],
        listed: &[],
    };
    let rows = [
        row("LIST of nothing", vec![list()], vec![Said::Ack]),
        row(
            "one that is not listed",
            vec![list(), go("other")],
            then(vec![Said::Ack], begun()),
        ),
    ];
    compare(&servers(dir.path(), names), &rows);
}
