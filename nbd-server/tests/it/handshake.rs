use bytes::{BufMut, BytesMut};
use nbd_server::proto::client::{ClientGoal, ClientHandshake, ClientStep, Remote};
use nbd_server::proto::limits::{MAX_OPTION_BYTES, MAX_OPTIONS, MAX_SKIPPED_OPTION_BYTES};
use nbd_server::proto::{
    ClientOption, ExportInfo, ExportName, ExportPurpose, Handshake, Info, InfoKind, InfoRequest,
    MetaQuery, Negotiated, OptionCode, OptionReply, OptionReplyHeader, ProtocolError, Refusal,
    ReplyCode, Step, TransmissionFlags,
};
use proptest::prelude::*;

pub(crate) fn info() -> ExportInfo {
    ExportInfo {
        size_bytes: 256 << 20,
        read_only: false,
        multi_conn: true,
        fast_zero: true,
        description: "a disk".to_owned(),
    }
}

pub(crate) fn name(text: &str) -> ExportName {
    ExportName::new(text).unwrap()
}

/// A server with the exports `disk` and `other`; what it says, asks and decides.
#[derive(Debug, PartialEq)]
pub(crate) struct Transcript {
    pub(crate) output: Vec<u8>,
    pub(crate) questions: Vec<Step>,
    pub(crate) end: Result<Option<Step>, ProtocolError>,
    pub(crate) left: Vec<u8>,
}

impl Transcript {
    fn negotiated(&self) -> &Negotiated {
        match &self.end {
            Ok(Some(Step::Negotiated(negotiated))) => negotiated,
            other => panic!("no negotiation: {other:?}"),
        }
    }

    /// The option replies after the greeting.
    fn replies(&self) -> Vec<(OptionCode, OptionReply)> {
        let mut rest = &self.output[18..];
        let mut replies = Vec::new();
        while !rest.is_empty() {
            let (header, after) = rest.split_at(OptionReplyHeader::BYTES);
            let header = OptionReplyHeader::parse(header).unwrap();
            let (payload, after) = after.split_at(usize::try_from(header.len_bytes).unwrap());
            replies.push((
                header.option,
                OptionReply::parse(header.code, payload).unwrap(),
            ));
            rest = after;
        }
        replies
    }

    fn codes(&self) -> Vec<ReplyCode> {
        self.replies()
            .iter()
            .map(|(_, reply)| reply.code())
            .collect()
    }
}

/// Feeds the parts one by one, as a socket would.
pub(crate) fn serve<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Transcript {
    let mut handshake = Handshake::new();
    let mut input = BytesMut::new();
    let mut questions = Vec::new();
    let mut end = Ok(None);
    'parts: for part in parts {
        input.put_slice(part);
        if end != Ok(None) {
            continue;
        }
        loop {
            match handshake.step(&mut input) {
                Ok(Step::NeedBytes(count)) => {
                    assert!(count > 0);
                    continue 'parts;
                }
                Ok(step @ (Step::Negotiated(_) | Step::Close)) => {
                    end = Ok(Some(step));
                    continue 'parts;
                }
                Ok(question) => {
                    match &question {
                        Step::FindExport(name, _) => match name.as_str() {
                            "disk" | "other" | "" => handshake.export_found(info()),
                            "secret" => {
                                handshake.export_refused(&Refusal::Policy("not you".to_owned()));
                            }
                            "late" => handshake.export_refused(&Refusal::ShuttingDown),
                            _ => handshake.export_refused(&Refusal::Unknown),
                        },
                        Step::ListExports => {
                            let names = vec!["disk".to_owned(), "a\0b".to_owned(), "other".into()];
                            handshake.exports_listed(names);
                        }
                        _ => unreachable!(),
                    }
                    questions.push(question);
                }
                Err(error) => {
                    end = Err(error);
                    continue 'parts;
                }
            }
        }
    }
    let output = handshake.output().to_vec();
    Transcript {
        output,
        questions,
        end,
        left: input.to_vec(),
    }
}

/// Client flags and options as bytes.
pub(crate) fn hello(flags: u32, options: &[ClientOption]) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_u32(flags);
    for option in options {
        option.encode(&mut out);
    }
    out.to_vec()
}

fn raw_option(code: u32, len_bytes: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_slice(b"IHAVEOPT");
    out.put_u32(code);
    out.put_u32(len_bytes);
    out.put_slice(payload);
    out.to_vec()
}

fn go(export: &str, kinds: &[InfoKind]) -> ClientOption {
    ClientOption::Go(InfoRequest {
        name: name(export),
        kinds: kinds.to_vec(),
    })
}

fn set_context(export: &str) -> ClientOption {
    let queries = vec!["base:allocation".to_owned()];
    ClientOption::SetMetaContext(MetaQuery {
        name: name(export),
        queries,
    })
}

/// A conversation that visits every state.
fn long_conversation() -> Vec<u8> {
    let all = [
        InfoKind::EXPORT,
        InfoKind::NAME,
        InfoKind::DESCRIPTION,
        InfoKind::BLOCK_SIZE,
    ];
    let mut bytes = hello(
        3,
        &[
            ClientOption::Unsupported(OptionCode::EXTENDED_HEADERS),
            ClientOption::StructuredReply,
            ClientOption::List,
            ClientOption::Info(InfoRequest {
                name: name("disk"),
                kinds: all.to_vec(),
            }),
            set_context("disk"),
            go("nowhere", &[]),
        ],
    );
    let too_long = usize::try_from(MAX_OPTION_BYTES).unwrap() + 1;
    bytes.extend(raw_option(7, MAX_OPTION_BYTES + 1, &vec![7; too_long]));
    bytes.extend(raw_option(3, 1, b"x"));
    let mut last = BytesMut::new();
    go("disk", &all).encode(&mut last);
    bytes.extend_from_slice(&last);
    bytes.extend_from_slice(b"the first request");
    bytes
}

#[test]
fn cutting_the_input_at_every_byte_gives_the_same_steps() {
    let bytes = long_conversation();
    let whole = serve([&bytes[..]]);
    assert_eq!(whole.negotiated().name, name("disk"));
    assert_eq!(
        whole.left, b"the first request",
        "bytes after the handshake stay"
    );
    for cut in 0..=bytes.len() {
        let (first, second) = bytes.split_at(cut);
        assert_eq!(serve([first, second]), whole, "cut={cut}");
    }
    assert_eq!(serve(bytes.chunks(1)), whole, "byte by byte");
}

#[test]
fn what_is_not_supported_is_refused_and_the_connection_lives() {
    for code in [4, 5, 9999, 11, 0, u32::MAX] {
        let mut bytes = hello(3, &[]);
        bytes.extend(raw_option(code, 3, b"abc"));
        bytes.extend(hello(0, &[go("disk", &[])]).split_off(4));
        let transcript = serve([&bytes[..]]);
        assert_eq!(
            transcript.codes(),
            [ReplyCode::ERR_UNSUP, ReplyCode::INFO, ReplyCode::ACK],
            "code={code}"
        );
        assert_eq!(transcript.replies()[0].0, OptionCode(code));
        transcript.negotiated();
    }
}

#[test]
fn what_is_malformed_is_refused_and_the_connection_lives() {
    let name_past_end = b"\0\0\0\x09disk\0\0";
    let cases: &[(&str, u32, &[u8])] = &[
        ("LIST with a payload", 3, b"x"),
        ("STRUCTURED_REPLY with a payload", 8, b"x"),
        ("GO without anything", 7, b""),
        ("GO without count", 7, b"\0\0\0\x04disk"),
        ("GO with a name past the end", 7, name_past_end),
        ("GO with too few kinds", 7, b"\0\0\0\x04disk\0\x02\0\0"),
        ("GO with bytes after it", 7, b"\0\0\0\x04disk\0\0!"),
        ("GO with NUL in the name", 7, b"\0\0\0\x04di\0k\0\0"),
        (
            "GO with a name that is not UTF-8",
            7,
            b"\0\0\0\x04di\xffk\0\0",
        ),
        ("GO with the longest count", 7, b"\0\0\0\x04disk\xff\xff"),
        ("GO with the longest name", 7, b"\xff\xff\xff\xffdisk\0\0"),
        ("INFO with bytes after it", 6, b"\0\0\0\x04disk\0\0!"),
        ("SET_META_CONTEXT empty", 10, b""),
        (
            "SET_META_CONTEXT with too few queries",
            10,
            b"\0\0\0\x04disk\0\0\0\x02\0\0\0\x01a",
        ),
        (
            "SET_META_CONTEXT with the longest count",
            10,
            b"\0\0\0\x04disk\xff\xff\xff\xff",
        ),
        (
            "SET_META_CONTEXT before structured replies",
            10,
            b"\0\0\0\x04disk\0\0\0\0",
        ),
        (
            "LIST_META_CONTEXT before structured replies",
            9,
            b"\0\0\0\x04disk\0\0\0\0",
        ),
        (
            "LIST_META_CONTEXT with bytes after it",
            9,
            b"\0\0\0\x04disk\0\0\0\0?",
        ),
    ];
    for (what, code, payload) in cases {
        let mut bytes = hello(3, &[]);
        bytes.extend(raw_option(
            *code,
            u32::try_from(payload.len()).unwrap(),
            payload,
        ));
        bytes.extend(hello(0, &[go("disk", &[])]).split_off(4));
        let transcript = serve([&bytes[..]]);
        assert_eq!(
            transcript.codes(),
            [ReplyCode::ERR_INVALID, ReplyCode::INFO, ReplyCode::ACK],
            "{what}"
        );
    }
}

#[test]
fn a_long_option_is_skipped_and_refused() {
    let len = MAX_OPTION_BYTES + 1;
    let mut bytes = hello(3, &[]);
    bytes.extend(raw_option(7, len, &vec![0; usize::try_from(len).unwrap()]));
    bytes.extend(hello(0, &[ClientOption::Abort]).split_off(4));
    let transcript = serve([&bytes[..]]);
    assert_eq!(transcript.codes(), [ReplyCode::ERR_TOO_BIG, ReplyCode::ACK]);
    assert_eq!(transcript.end, Ok(Some(Step::Close)));
}

#[test]
fn what_cannot_be_answered_ends_the_connection() {
    let mut bad_magic = hello(3, &[]);
    bad_magic.extend_from_slice(b"IHAVENOT\0\0\0\x03\0\0\0\0");
    let mut endless = hello(3, &[]);
    endless.extend(raw_option(7, MAX_SKIPPED_OPTION_BYTES + 1, b""));
    let mut long_export_name = hello(3, &[]);
    long_export_name.extend(raw_option(1, MAX_OPTION_BYTES + 1, b""));
    let mut bad_export_name = hello(3, &[]);
    bad_export_name.extend(raw_option(1, 1, b"\xff"));
    let many = vec![ClientOption::StructuredReply; usize::try_from(MAX_OPTIONS).unwrap() + 1];
    for (what, bytes) in [
        ("unknown client flag", hello(4, &[])),
        ("bad option magic", bad_magic),
        ("an option nobody would skip", endless),
        ("EXPORT_NAME too long", long_export_name),
        ("EXPORT_NAME not UTF-8", bad_export_name),
        ("too many options", hello(3, &many)),
    ] {
        let transcript = serve([&bytes[..]]);
        assert!(transcript.end.is_err(), "{what}: {:?}", transcript.end);
    }
}

#[test]
fn exports_that_cannot_be_had_are_refused_with_a_text() {
    let options = [
        go("nowhere", &[]),
        go("secret", &[]),
        go("late", &[]),
        go("disk", &[]),
    ];
    let transcript = serve([&hello(3, &options)[..]]);
    assert_eq!(
        transcript.codes()[..3],
        [
            ReplyCode::ERR_UNKNOWN,
            ReplyCode::ERR_POLICY,
            ReplyCode::ERR_SHUTDOWN
        ]
    );
    for (_, reply) in &transcript.replies()[..3] {
        assert!(
            matches!(reply, OptionReply::Error { text, .. } if !text.is_empty()),
            "{reply:?}"
        );
    }
    transcript.negotiated();
}

#[test]
fn export_name_pads_unless_told_otherwise() {
    for (flags, padding) in [(1, 124), (3, 0), (0, 124)] {
        let option = ClientOption::ExportName(name("disk"));
        let transcript = serve([&hello(flags, &[option])[..]]);
        assert_eq!(transcript.output.len(), 18 + 10 + padding);
        assert_eq!(transcript.output[18..26], (256_u64 << 20).to_be_bytes());
        assert!(!transcript.negotiated().structured_replies);
        assert!(
            !transcript
                .negotiated()
                .flags
                .has(TransmissionFlags::SEND_DF)
        );
    }
    let unknown = serve([&hello(3, &[ClientOption::ExportName(name("nowhere"))])[..]]);
    assert_eq!(unknown.end, Ok(Some(Step::Close)));
    assert_eq!(unknown.output.len(), 18, "there is no way to tell");
}

#[test]
fn info_tells_what_was_asked_and_does_not_begin() {
    let kinds = vec![
        InfoKind::NAME,
        InfoKind::DESCRIPTION,
        InfoKind::BLOCK_SIZE,
        InfoKind(99),
    ];
    let options = [
        ClientOption::Info(InfoRequest {
            name: name("disk"),
            kinds,
        }),
        ClientOption::Abort,
    ];
    let transcript = serve([&hello(3, &options)[..]]);
    let infos: Vec<_> = transcript
        .replies()
        .into_iter()
        .filter_map(|(_, reply)| match reply {
            OptionReply::Info(info) => Some(info),
            _ => None,
        })
        .collect();
    assert_eq!(
        infos[0],
        Info::BlockSize {
            minimum: 1,
            preferred: 65536,
            maximum: 32 << 20
        }
    );
    assert!(matches!(infos[1], Info::Export { size_bytes, .. } if size_bytes == 256 << 20));
    assert_eq!(
        infos[2..],
        [
            Info::Name("disk".into()),
            Info::Description("a disk".into())
        ]
    );
    let purposes: Vec<_> = transcript.questions.iter().collect();
    assert_eq!(
        purposes,
        [&Step::FindExport(name("disk"), ExportPurpose::Inspect)]
    );
    assert_eq!(transcript.end, Ok(Some(Step::Close)));
}

#[test]
fn a_listing_leaves_out_what_is_no_name() {
    let transcript = serve([&hello(3, &[ClientOption::List, ClientOption::Abort])[..]]);
    let names: Vec<_> = transcript
        .replies()
        .into_iter()
        .filter_map(|(_, reply)| match reply {
            OptionReply::Server { name, .. } => Some(name),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["disk", "other"]);
}

#[test]
fn a_context_counts_for_the_export_it_was_set_for() {
    let context = |options: &[ClientOption]| {
        let mut all = vec![ClientOption::StructuredReply];
        all.extend_from_slice(options);
        serve([&hello(3, &all)[..]])
            .negotiated()
            .base_allocation
            .is_some()
    };
    let none = ClientOption::SetMetaContext(MetaQuery {
        name: name("disk"),
        queries: vec![],
    });
    assert!(context(&[set_context("disk"), go("disk", &[])]));
    assert!(!context(&[set_context("other"), go("disk", &[])]));
    assert!(!context(&[set_context("disk"), none, go("disk", &[])]));
    assert!(!context(&[go("disk", &[])]));
}

#[test]
fn transmission_flags_say_what_holds() {
    use TransmissionFlags as F;
    for bits in 0..8_u8 {
        let (read_only, multi_conn, fast_zero) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        let mut handshake = Handshake::new();
        let mut input = BytesMut::from(&hello(3, &[go("disk", &[])])[..]);
        handshake.step(&mut input).unwrap();
        handshake.export_found(ExportInfo {
            read_only,
            multi_conn,
            fast_zero,
            ..info()
        });
        let Step::Negotiated(negotiated) = handshake.step(&mut input).unwrap() else {
            panic!()
        };
        let flags = negotiated.flags;
        assert!(
            flags.has(
                F::HAS_FLAGS
                    .with(F::SEND_FLUSH)
                    .with(F::SEND_FUA)
                    .with(F::SEND_CACHE)
            )
        );
        assert_eq!(flags.has(F::READ_ONLY), read_only);
        assert_eq!(flags.has(F::CAN_MULTI_CONN), multi_conn);
        assert_eq!(flags.has(F::SEND_TRIM), !read_only);
        assert_eq!(flags.has(F::SEND_WRITE_ZEROES), !read_only);
        assert_eq!(flags.has(F::SEND_FAST_ZERO), fast_zero && !read_only);
        assert!(
            !flags.has(F::SEND_DF),
            "structured replies were not negotiated"
        );
    }
}

/// Runs the client against the server, moving at most `step` bytes at a time.
fn converse(goal: ClientGoal, step: usize) -> Result<ClientStep, ProtocolError> {
    let mut server = Handshake::new();
    let mut client = ClientHandshake::new(goal);
    let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
    for _ in 0..1_000_000 {
        match client.step(&mut to_client)? {
            ClientStep::NeedBytes(_) => {}
            done => return Ok(done),
        }
        let sent = client.output();
        let count = step.min(sent.len());
        to_server.unsplit(sent.split_to(count));
        match server.step(&mut to_server)? {
            Step::NeedBytes(_) => {}
            Step::FindExport(name, _) if name.as_str() == "disk" => server.export_found(info()),
            Step::FindExport(..) => server.export_refused(&Refusal::Unknown),
            Step::ListExports => server.exports_listed(vec!["disk".into(), "täst".into()]),
            Step::Negotiated(_) | Step::Close => {
                let rest = server.output().split();
                to_client.unsplit(rest);
                return client.step(&mut to_client);
            }
        }
        let sent = server.output();
        let count = step.min(sent.len());
        to_client.unsplit(sent.split_to(count));
    }
    panic!("the conversation does not end")
}

#[test]
fn client_and_server_understand_each_other() {
    for step in [1, 7, usize::MAX] {
        let goal = ClientGoal::Use {
            name: name("disk"),
            block_status: true,
        };
        let Ok(ClientStep::Ready(remote)) = converse(goal, step) else {
            panic!("step={step}")
        };
        assert_eq!(remote.size_bytes, 256 << 20);
        assert!(remote.structured_replies && remote.base_allocation.is_some());
        let sizes: fn(Remote) -> _ = |r| {
            (
                r.min_block_bytes,
                r.preferred_block_bytes,
                r.max_block_bytes,
            )
        };
        assert_eq!(sizes(remote), (1, 65536, 32 << 20));
        let listed = converse(ClientGoal::List, step);
        assert_eq!(
            listed,
            Ok(ClientStep::Listed(vec!["disk".into(), "täst".into()]))
        );
        let goal = ClientGoal::Use {
            name: name("nowhere"),
            block_status: false,
        };
        assert!(matches!(
            converse(goal, step),
            Err(ProtocolError::Refused {
                reply: ReplyCode::ERR_UNKNOWN,
                ..
            })
        ));
    }
}

fn names() -> impl Strategy<Value = ExportName> {
    "[^\0]{0,40}".prop_map(|text| ExportName::new(text).unwrap())
}

fn options() -> impl Strategy<Value = ClientOption> {
    let kinds = || prop::collection::vec(any::<u16>().prop_map(InfoKind), 0..8);
    let queries = || prop::collection::vec("[^\0]{0,20}", 0..6);
    prop_oneof![
        names().prop_map(ClientOption::ExportName),
        Just(ClientOption::Abort),
        Just(ClientOption::List),
        Just(ClientOption::StructuredReply),
        (names(), kinds())
            .prop_map(|(name, kinds)| ClientOption::Info(InfoRequest { name, kinds })),
        (names(), kinds()).prop_map(|(name, kinds)| ClientOption::Go(InfoRequest { name, kinds })),
        (names(), queries())
            .prop_map(|(name, queries)| ClientOption::ListMetaContext(MetaQuery { name, queries })),
        (names(), queries())
            .prop_map(|(name, queries)| ClientOption::SetMetaContext(MetaQuery { name, queries })),
        (11_u32..).prop_map(|code| ClientOption::Unsupported(OptionCode(code))),
    ]
}

proptest! {
    #[test]
    fn options_survive_the_wire(option in options()) {
        let mut out = BytesMut::new();
        option.encode(&mut out);
        let (header, payload) = out.split_at(16);
        let header = nbd_server::proto::OptionHeader::parse(header).unwrap();
        prop_assert_eq!(header.len_bytes as usize, payload.len());
        prop_assert_eq!(ClientOption::parse(header.code, payload), Ok(option));
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), flags in 0..4_u32) {
        let mut all = flags.to_be_bytes().to_vec();
        all.append(&mut bytes);
        serve([&all[..]]);
    }

    #[test]
    fn arbitrary_options_never_panic_and_cut_the_same(options in prop::collection::vec(options(), 0..6), cut: prop::sample::Index) {
        let bytes = hello(3, &options);
        let (first, second) = bytes.split_at(cut.index(bytes.len()));
        prop_assert_eq!(serve([first, second]), serve([&bytes[..]]));
    }

    #[test]
    fn a_client_survives_arbitrary_servers(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut client = ClientHandshake::new(ClientGoal::Use { name: name("x"), block_status: true });
        let mut input = BytesMut::from(&b"NBDMAGICIHAVEOPT\0\x03"[..]);
        input.extend_from_slice(&bytes);
        // Whatever comes back, it is an answer and not a panic.
        let _ = client.step(&mut input);
    }
}
