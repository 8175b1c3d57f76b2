use bytes::{BufMut, BytesMut};
use nbd_server::proto::client::{ClientGoal, ClientHandshake, ClientStep, Remote};
use nbd_server::proto::limits::{MAX_OPTION_BYTES, MAX_OPTIONS, MAX_SKIPPED_OPTION_BYTES};
use nbd_server::proto::{
    ClientOption, ContextId, ExportInfo, ExportName, ExportPurpose, Handshake, HeaderStyle, Info,
    InfoKind, InfoRequest, MetaContext, MetaQuery, Negotiated, Offer, OptionCode, OptionReply,
    OptionReplyHeader, ProtocolError, Refusal, ReplyCode, Step, TransmissionFlags,
};
use proptest::prelude::*;

pub(crate) fn info() -> ExportInfo {
    ExportInfo {
        size_bytes: 256 << 20,
        read_only: false,
        multi_conn: true,
        fast_zero: true,
        description: "a disk".to_owned(),
        contexts: vec![
            MetaContext::Allocation,
            MetaContext::AllocationDepth,
            MetaContext::Changes {
                bitmap: "since".to_owned(),
                layers: 1,
            },
        ],
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
    pub(crate) fn negotiated(&self) -> &Negotiated {
        match &self.end {
            Ok(Some(Step::Negotiated(negotiated))) => negotiated,
            other => panic!("no negotiation: {other:?}"),
        }
    }

    /// The option replies after the greeting.
    pub(crate) fn replies(&self) -> Vec<(OptionCode, OptionReply)> {
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

    pub(crate) fn codes(&self) -> Vec<ReplyCode> {
        self.replies()
            .iter()
            .map(|(_, reply)| reply.code())
            .collect()
    }
}

/// Feeds the parts one by one, as a socket would.
pub(crate) fn serve<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Transcript {
    serve_offer(Offer::default(), parts)
}

pub(crate) fn serve_offer<'a>(
    offer: Offer,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> Transcript {
    let mut handshake = Handshake::new(offer);
    let mut output = Vec::new();
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
                        Step::StartTls => {
                            assert!(input.is_empty(), "nothing comes before its time");
                            output.extend_from_slice(&handshake.output().split());
                            handshake.tls_started();
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
    output.extend_from_slice(handshake.output());
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

pub(crate) fn raw_option(code: u32, len_bytes: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_slice(b"IHAVEOPT");
    out.put_u32(code);
    out.put_u32(len_bytes);
    out.put_slice(payload);
    out.to_vec()
}

pub(crate) fn go(export: &str, kinds: &[InfoKind]) -> ClientOption {
    ClientOption::Go(InfoRequest {
        name: name(export),
        kinds: kinds.to_vec(),
    })
}

pub(crate) fn set_context(export: &str) -> ClientOption {
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
            ClientOption::StartTls,
            ClientOption::StructuredReply,
            ClientOption::ListMetaContext(MetaQuery {
                name: name("disk"),
                queries: vec!["qemu:".to_owned()],
            }),
            ClientOption::ExtendedHeaders,
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
    for code in [4, 9999, 12, 0, u32::MAX] {
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
        ("STARTTLS with a payload", 5, b"x"),
        ("STRUCTURED_REPLY with a payload", 8, b"x"),
        ("EXTENDED_HEADERS with a payload", 11, b"x"),
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
        assert_eq!(transcript.negotiated().style, HeaderStyle::Simple);
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
        serve([&hello(3, &all)[..]]).negotiated().contexts.len() == 1
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
        let mut handshake = Handshake::default();
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
fn converse(offer: Offer, goal: ClientGoal, step: usize) -> Result<ClientStep, ProtocolError> {
    let mut server = Handshake::new(offer);
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
            Step::StartTls => unreachable!("it was not offered"),
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
    let use_of = |export: &str, contexts: &[&str], extended_headers| ClientGoal::Use {
        name: name(export),
        contexts: contexts.iter().map(|&context| context.to_owned()).collect(),
        extended_headers,
    };
    let (with, without) = (
        Offer::default(),
        Offer {
            extended_headers: false,
            ..Offer::default()
        },
    );
    for step in [1, 7, usize::MAX] {
        for (offer, wanted, style) in [
            (with, true, HeaderStyle::Extended),
            (with, false, HeaderStyle::Structured),
            (without, true, HeaderStyle::Structured),
        ] {
            let contexts = ["qemu:allocation-depth", "x:none", "base:allocation"];
            let goal = use_of("disk", &contexts, wanted);
            let Ok(ClientStep::Ready(remote)) = converse(offer, goal, step) else {
                panic!("step={step}")
            };
            assert_eq!(remote.size_bytes, 256 << 20);
            assert_eq!(remote.style, style);
            let ids = contexts.map(|context| remote.context(context));
            assert_eq!(ids, [Some(ContextId(1)), None, Some(ContextId(0))]);
            let filter = remote.flags.has(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
            assert_eq!(filter, style == HeaderStyle::Extended);
            assert!(remote.flags.has(TransmissionFlags::SEND_DF));
            let sizes: fn(&Remote) -> _ = |r| {
                (
                    r.min_block_bytes,
                    r.preferred_block_bytes,
                    r.max_block_bytes,
                )
            };
            assert_eq!(sizes(&remote), (1, 65536, 32 << 20));
        }
        let listed = converse(with, ClientGoal::List, step);
        assert_eq!(
            listed,
            Ok(ClientStep::Listed(vec!["disk".into(), "täst".into()]))
        );
        let goal = use_of("nowhere", &[], false);
        assert!(matches!(
            converse(with, goal, step),
            Err(ProtocolError::Refused {
                reply: ReplyCode::ERR_UNKNOWN,
                ..
            })
        ));
    }
}

#[test]
fn extended_headers_take_precedence_and_can_be_switched_off() {
    use ClientOption as O;
    let style = |offer, options: &[ClientOption]| {
        let transcript = serve_offer(offer, [&hello(3, options)[..]]);
        (transcript.codes(), transcript.end)
    };
    let on = Offer::default();
    let off = Offer {
        extended_headers: false,
        ..Offer::default()
    };
    let agreed = |offer, options: &[ClientOption]| match style(offer, options) {
        (codes, Ok(Some(Step::Negotiated(agreed)))) => (codes[0], codes[1], agreed.style),
        other => panic!("{other:?}"),
    };
    let (ack, disk) = (ReplyCode::ACK, go("disk", &[]));
    let pair = |first: O, second: O| [first, second, disk.clone()];
    let structured = || O::StructuredReply;
    let extended = || O::ExtendedHeaders;
    for (first, second, refusal) in [
        (structured(), extended(), ack),
        (extended(), extended(), ack),
        (extended(), structured(), ReplyCode::ERR_EXT_HEADER_REQD),
    ] {
        let order = pair(first, second);
        assert_eq!(agreed(on, &order), (ack, refusal, HeaderStyle::Extended));
    }
    assert_eq!(
        agreed(off, &pair(extended(), structured())),
        (ReplyCode::ERR_UNSUP, ack, HeaderStyle::Structured)
    );
    // Where there is no error to tell, the end tells it.
    let old = [extended(), O::ExportName(name("disk"))];
    assert_eq!(style(on, &old), (vec![ack], Ok(Some(Step::Close))));
    // A payload makes no difference to an option that is switched off.
    let mut bytes = hello(3, &[]);
    bytes.extend(raw_option(11, 1, b"x"));
    bytes.extend(raw_option(2, 0, b""));
    let transcript = serve_offer(off, [&bytes[..]]);
    assert_eq!(transcript.codes(), [ReplyCode::ERR_UNSUP, ack]);
}

#[test]
fn contexts_are_listed_by_wildcard_and_selected_by_name() {
    let ask = |list: bool, export: &str, queries: &[&str]| {
        let query = MetaQuery {
            name: name(export),
            queries: queries.iter().map(|&query| query.to_owned()).collect(),
        };
        let option = if list {
            ClientOption::ListMetaContext(query)
        } else {
            ClientOption::SetMetaContext(query)
        };
        let options = [ClientOption::StructuredReply, option, go("disk", &[])];
        let transcript = serve([&hello(3, &options)[..]]);
        let answers = transcript.replies()[1..].to_vec();
        let told: Vec<_> = answers
            .into_iter()
            .take_while(|(option, _)| *option != OptionCode::GO)
            .map(|(_, reply)| match reply {
                OptionReply::MetaContext { id, name } => format!("{} {name}", id.0),
                reply => reply.code().to_string(),
            })
            .collect();
        let selected: Vec<_> = transcript.negotiated().contexts.iter().collect();
        let ids: Vec<_> = selected.iter().map(|selected| selected.id.0).collect();
        (told.join(", "), ids)
    };
    let (base, depth, since) = (
        "base:allocation",
        "qemu:allocation-depth",
        "qemu:dirty-bitmap:since",
    );
    for (list, queries, told, selected) in [
        (
            true,
            &[][..],
            format!("0 {base}, 0 {depth}, 0 {since}, ACK"),
            vec![],
        ),
        (true, &["base:"], format!("0 {base}, ACK"), vec![]),
        (
            true,
            &["qemu:", depth],
            format!("0 {depth}, 0 {since}, ACK"),
            vec![],
        ),
        (true, &["x-some:thing"], "ACK".to_owned(), vec![]),
        (false, &[], "ACK".to_owned(), vec![]),
        (false, &["base:", "qemu:"], "ACK".to_owned(), vec![]),
        (false, &[since], format!("2 {since}, ACK"), vec![2]),
        (
            false,
            &[since, base, depth, base],
            format!("0 {base}, 1 {depth}, 2 {since}, ACK"),
            vec![0, 1, 2],
        ),
    ] {
        let answer = ask(list, "disk", queries);
        assert_eq!(answer, (told, selected), "list={list} {queries:?}");
    }
    let unknown = ReplyCode::ERR_UNKNOWN.to_string();
    assert_eq!(ask(true, "nowhere", &[base]).0, unknown);
    assert_eq!(ask(false, "nowhere", &[base]), (unknown, vec![]));
    // Contexts of one export are not those of another, also when the empty name means it.
    assert_eq!(ask(false, "", &[base]).1, Vec::<u32>::new());
}

#[test]
fn the_last_selection_counts_whatever_became_of_it() {
    let long = usize::try_from(MAX_OPTION_BYTES).unwrap() + 1;
    let bad_selections = [
        raw_option(10, 3, b"bad"),
        raw_option(10, MAX_OPTION_BYTES + 1, &vec![0; long]),
        hello(0, &[set_context("nowhere")]).split_off(4),
        hello(0, &[set_context("secret")]).split_off(4),
    ];
    for (place, bad) in bad_selections.into_iter().enumerate() {
        let mut bytes = hello(3, &[ClientOption::StructuredReply, set_context("disk")]);
        bytes.extend(bad);
        bytes.extend(hello(0, &[go("disk", &[])]).split_off(4));
        let transcript = serve([&bytes[..]]);
        assert_eq!(transcript.negotiated().contexts, [], "place={place}");
    }
}

#[test]
fn info_and_go_say_the_same() {
    let kinds = || (0..5).map(InfoKind).collect::<Vec<_>>();
    for style in [ClientOption::StructuredReply, ClientOption::ExtendedHeaders] {
        let request = InfoRequest {
            name: name("disk"),
            kinds: kinds(),
        };
        let options = [
            style,
            set_context("disk"),
            ClientOption::Info(request.clone()),
            ClientOption::Go(request),
        ];
        let replies = serve([&hello(3, &options)[..]]).replies();
        let of = |code| {
            let mut found = replies.clone();
            found.retain(|(option, _)| *option == code);
            found.into_iter().map(|(_, reply)| reply).collect()
        };
        let (info, go): (Vec<_>, Vec<_>) = (of(OptionCode::INFO), of(OptionCode::GO));
        assert_eq!(info.len(), 5, "all that is known, and the end");
        assert_eq!(info, go);
    }
}

#[test]
fn names_up_to_the_bound_reach_the_server() {
    let longest = "ä".repeat(2048);
    let options = [go(&longest, &[]), go("", &[InfoKind::NAME])];
    let transcript = serve([&hello(3, &options)[..]]);
    assert_eq!(
        transcript.questions[0],
        Step::FindExport(name(&longest), ExportPurpose::Use)
    );
    let replies = transcript.replies();
    assert_eq!(replies[0].1.code(), ReplyCode::ERR_UNKNOWN);
    // The default export has a name of its own, which is not the empty one.
    assert!(matches!(
        replies[1].1,
        OptionReply::Info(Info::Export { .. })
    ));
    assert_eq!(replies[2].1, OptionReply::Ack);
    let mut too_long = (4097_u32).to_be_bytes().to_vec();
    too_long.extend([b'x'; 4097]);
    too_long.extend([0, 0]);
    let mut bytes = hello(3, &[]);
    bytes.extend(raw_option(7, 4097 + 6, &too_long));
    let transcript = serve([&bytes[..]]);
    assert_eq!(transcript.codes(), [ReplyCode::ERR_INVALID]);
    assert_eq!(transcript.questions, []);
    let mut bytes = hello(3, &[]);
    bytes.extend(raw_option(1, 4097, &[b'x'; 4097]));
    assert!(serve([&bytes[..]]).end.is_err());
}

fn names() -> impl Strategy<Value = ExportName> {
    "[^\0]{0,40}".prop_map(|text| ExportName::new(text).unwrap())
}

pub(crate) fn options() -> impl Strategy<Value = ClientOption> {
    let kinds = || prop::collection::vec(any::<u16>().prop_map(InfoKind), 0..8);
    let queries = || prop::collection::vec("[^\0]{0,20}", 0..6);
    prop_oneof![
        names().prop_map(ClientOption::ExportName),
        Just(ClientOption::Abort),
        Just(ClientOption::List),
        Just(ClientOption::StartTls),
        Just(ClientOption::StructuredReply),
        Just(ClientOption::ExtendedHeaders),
        (names(), kinds())
            .prop_map(|(name, kinds)| ClientOption::Info(InfoRequest { name, kinds })),
        (names(), kinds()).prop_map(|(name, kinds)| ClientOption::Go(InfoRequest { name, kinds })),
        (names(), queries())
            .prop_map(|(name, queries)| ClientOption::ListMetaContext(MetaQuery { name, queries })),
        (names(), queries())
            .prop_map(|(name, queries)| ClientOption::SetMetaContext(MetaQuery { name, queries })),
        (12_u32..).prop_map(|code| ClientOption::Unsupported(OptionCode(code))),
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
        let contexts = vec!["base:allocation".to_owned()];
        let goal = ClientGoal::Use { name: name("x"), contexts, extended_headers: true };
        let mut client = ClientHandshake::new(goal);
        let mut input = BytesMut::from(&b"NBDMAGICIHAVEOPT\0\x03"[..]);
        input.extend_from_slice(&bytes);
        // Whatever comes back, it is an answer and not a panic.
        let _ = client.step(&mut input);
    }
}
