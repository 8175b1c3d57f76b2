//! What libnbd and qemu-nbd say to each other, byte for byte.

use nbd_server::proto::{
    ChunkKind, ClientOption, CommandCode, CommandFlags, Cookie, ErrorCode, Head, Info, InfoKind,
    InfoRequest, MetaQuery, OptionCode, OptionReply, ReplyCode, Request, Step, TransmissionFlags,
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
                id: nbd_server::proto::ContextId(0),
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
        assert_eq!(request.encode()[..], hex(bytes));
        assert_eq!(Request::parse(&hex(bytes)), Ok(request));
    }
    assert_eq!(
        Head::simple(Cookie(7), ErrorCode::NONE).as_bytes(),
        hex("67446698 00000000 0000000000000007")
    );
    assert_eq!(
        Head::chunk(ChunkKind::ERROR, Cookie(7), 6, true).as_bytes(),
        hex("668e33ef 0001 8001 0000000000000007 00000006")
    );
}
