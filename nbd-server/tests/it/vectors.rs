//! What libnbd and qemu-nbd say to each other, byte for byte.

use nbd_server::proto::{
    ChunkKind, ClientOption, CommandCode, CommandFlags, ContextId, Cookie, ErrorCode, Extent, Head,
    HeaderStyle, Info, InfoKind, InfoRequest, MetaContext, MetaQuery, OptionCode, OptionReply,
    ReplyCode, Request, RequestId, SelectedContext, Step, TransmissionFlags, block_status_payload,
};

use crate::handshake::{hello, name, serve};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn option_reply(option: u32, reply: &OptionReply) -> Vec<u8> {
    let mut out = bytes::BytesMut::new();
    reply.encode(OptionCode(option), &mut out);
    out.to_vec()
}

#[test]
fn the_greeting_and_the_flags() {
    assert_eq!(
        serve([]).output,
        hex("4e42444d41474943 49484156454f5054 0003"),
        "greeting"
    );
    assert_eq!(hello(3, &[]), hex("00000003"));
}

#[test]
fn options_of_the_legacy_client() {
    let disk = || name("vm-disk0");
    let cases = [
        (
            ClientOption::StructuredReply,
            "49484156454f5054 00000008 00000000",
        ),
        (
            ClientOption::SetMetaContext(MetaQuery {
                name: disk(),
                queries: vec!["base:allocation".to_owned()],
            }),
            "49484156454f5054 0000000a 00000023 00000008 766d2d6469736b30 00000001 0000000f
             626173653a616c6c6f636174696f6e",
        ),
        (
            ClientOption::Go(InfoRequest {
                name: disk(),
                kinds: vec![InfoKind::BLOCK_SIZE],
            }),
            "49484156454f5054 00000007 00000010 00000008 766d2d6469736b30 0001 0003",
        ),
        (ClientOption::Abort, "49484156454f5054 00000002 00000000"),
    ];
    for (option, bytes) in cases {
        assert_eq!(
            hello(3, std::slice::from_ref(&option))[4..],
            hex(bytes),
            "{option:?}"
        );
    }
}

#[test]
fn replies_to_the_options() {
    assert_eq!(
        option_reply(8, &OptionReply::Ack),
        hex("0003e889045565a9 00000008 00000001 00000000")
    );
    assert_eq!(
        option_reply(
            10,
            &OptionReply::MetaContext {
                id: ContextId(0),
                name: "base:allocation".to_owned()
            }
        ),
        hex("0003e889045565a9 0000000a 00000004 00000013 00000000 626173653a616c6c6f636174696f6e")
    );
    let block_size = Info::BlockSize {
        minimum: 1,
        preferred: 4096,
        maximum: 32 << 20,
    };
    assert_eq!(
        option_reply(7, &OptionReply::Info(block_size)),
        hex("0003e889045565a9 00000007 00000003 0000000e 0003 00000001 00001000 02000000")
    );
    let export = Info::Export {
        size_bytes: 256 << 20,
        flags: TransmissionFlags(0x0ded),
    };
    assert_eq!(
        option_reply(7, &OptionReply::Info(export)),
        hex("0003e889045565a9 00000007 00000003 0000000c 0000 0000000010000000 0ded")
    );
}

/// The whole conversation of connection B: only the preferred block size differs from the recording.
#[test]
fn the_conversation_of_the_legacy_client() {
    let client = hex("00000003
         49484156454f5054 00000008 00000000
         49484156454f5054 0000000a 0000001f 00000004 6469736b 00000001 0000000f
         626173653a616c6c6f636174696f6e
         49484156454f5054 00000007 0000000c 00000004 6469736b 0001 0003");
    let transcript = serve([&client[..]]);
    assert_eq!(
        transcript.output,
        hex("4e42444d41474943 49484156454f5054 0003
             0003e889045565a9 00000008 00000001 00000000
             0003e889045565a9 0000000a 00000004 00000013 00000000 626173653a616c6c6f636174696f6e
             0003e889045565a9 0000000a 00000001 00000000
             0003e889045565a9 00000007 00000003 0000000e 0003 00000001 00010000 02000000
             0003e889045565a9 00000007 00000003 0000000c 0000 0000000010000000 0ded
             0003e889045565a9 00000007 00000001 00000000")
    );
}

#[test]
fn an_unknown_export_then_abort() {
    let options = [
        ClientOption::Go(InfoRequest {
            name: name("nowhere"),
            kinds: vec![],
        }),
        ClientOption::Abort,
    ];
    let transcript = serve([&hello(3, &options)[..]]);
    let refused = &transcript.output[18..];
    assert_eq!(refused[..16], hex("0003e889045565a9 00000007 80000006"));
    assert!(
        transcript
            .output
            .ends_with(&hex("0003e889045565a9 00000002 00000001 00000000"))
    );
    assert_eq!(transcript.end, Ok(Some(Step::Close)));
    assert_eq!(ReplyCode::ERR_UNKNOWN, ReplyCode(0x8000_0006));
}

#[test]
fn requests_and_replies() {
    let request = |command, cookie, offset, len_bytes| Request {
        flags: CommandFlags::EMPTY,
        command,
        cookie: Cookie(cookie),
        offset,
        len_bytes,
    };
    let style = HeaderStyle::Structured;
    for (request, bytes) in [
        (
            request(CommandCode::WRITE, 1, 1, 100),
            "25609513 0000 0001 0000000000000001 0000000000000001 00000064",
        ),
        (
            request(CommandCode::WRITE_ZEROES, 2, 0, 256 << 20),
            "25609513 0000 0006 0000000000000002 0000000000000000 10000000",
        ),
    ] {
        assert_eq!(encoded(&request, style), hex(bytes));
        assert_eq!(Request::parse(style, &hex(bytes)), Ok(request));
    }
    assert_eq!(
        Head::simple(Cookie(7), ErrorCode::NONE).as_bytes(),
        hex("67446698 00000000 0000000000000007")
    );
    assert_eq!(
        Head::chunk(style, ChunkKind::ERROR, id(7, 1), 6, true).as_bytes(),
        hex("668e33ef 0001 8001 0000000000000007 00000006")
    );
}

fn id(cookie: u64, offset: u64) -> RequestId {
    let cookie = Cookie(cookie);
    RequestId { cookie, offset }
}

fn encoded(request: &Request, style: HeaderStyle) -> Vec<u8> {
    let mut out = bytes::BytesMut::new();
    request.encode(style, &mut out).unwrap();
    out.to_vec()
}

/// Written down from the text of the extension `EXTENDED_HEADERS`, field by field.
#[test]
fn requests_and_replies_with_extended_headers() {
    let style = HeaderStyle::Extended;
    let write = Request {
        flags: CommandFlags::PAYLOAD_LEN.with(CommandFlags::FUA),
        command: CommandCode::WRITE,
        cookie: Cookie(1),
        offset: 2,
        len_bytes: 3,
    };
    let bytes = "21e41c71 0021 0001 0000000000000001 0000000000000002 0000000000000003";
    assert_eq!(encoded(&write, style), hex(bytes));
    assert_eq!(Request::parse(style, &hex(bytes)), Ok(write));
    let trim = Request {
        flags: CommandFlags::EMPTY,
        command: CommandCode::TRIM,
        len_bytes: 1 << 40,
        ..write
    };
    let bytes = "21e41c71 0000 0004 0000000000000001 0000000000000002 0000010000000000";
    assert_eq!(encoded(&trim, style), hex(bytes));
    let mut nothing = bytes::BytesMut::new();
    let compact = trim.encode(HeaderStyle::Structured, &mut nothing);
    assert!(compact.is_err() && nothing.is_empty(), "{compact:?}");
    assert_eq!(
        Head::success(style, id(7, 9)).as_bytes(),
        hex("6e8a278c 0001 0000 0000000000000007 0000000000000009 0000000000000000")
    );
    assert_eq!(
        Head::data(style, id(7, 9), 10, 5, false).as_bytes(),
        hex(
            "6e8a278c 0000 0001 0000000000000007 0000000000000009 000000000000000d 000000000000000a"
        )
    );
    let selected = SelectedContext {
        id: ContextId(2),
        context: MetaContext::AllocationDepth,
    };
    let extents = [
        Extent::flat(1 << 33, false, false),
        Extent::flat(1, true, true),
    ];
    assert_eq!(
        block_status_payload(style, &selected, &extents, u64::MAX, 9).unwrap()[..],
        hex(
            "00000002 00000002 0000000200000000 0000000000000001 0000000000000001 0000000000000000"
        )
    );
    assert_eq!(
        hello(3, &[ClientOption::ExtendedHeaders])[4..],
        hex("49484156454f5054 0000000b 00000000")
    );
}
