use nbd_server::proto::limits::MAX_PAYLOAD_BYTES;
use nbd_server::proto::{
    ByteRange, Command, CommandCode, CommandFlags, ContextId, Cookie, ErrorCode, ExportInfo,
    HeaderStyle, MetaContext, Negotiated, Request, SelectedContext, TransmissionFlags, Zero, admit,
    admit_filtered,
};
use proptest::prelude::*;

use crate::handshake::{info, name};

const SIZE: u64 = 256 << 20;

fn selected(ids: impl IntoIterator<Item = u32>) -> Vec<SelectedContext> {
    let context = MetaContext::Allocation;
    let of = |id| SelectedContext {
        id: ContextId(id),
        context: context.clone(),
    };
    ids.into_iter().map(of).collect()
}

fn extended() -> Negotiated {
    Negotiated {
        style: HeaderStyle::Extended,
        flags: TransmissionFlags(0x1ded),
        contexts: selected([0, 5]),
        ..negotiated()
    }
}

fn negotiated() -> Negotiated {
    Negotiated {
        name: name("disk"),
        info: info(),
        flags: TransmissionFlags(0x0ded),
        style: HeaderStyle::Structured,
        contexts: selected([0]),
    }
}

fn request(
    command: CommandCode,
    flags: CommandFlags,
    offset: u64,
    len_bytes: impl Into<u64>,
) -> Request {
    Request {
        flags,
        command,
        cookie: Cookie(1),
        offset,
        len_bytes: len_bytes.into(),
    }
}

fn code(request: &Request, negotiated: &Negotiated) -> ErrorCode {
    admit(request, negotiated).map_or_else(|refused| refused.code, |_| ErrorCode::NONE)
}

#[test]
fn refusals_by_number() {
    use CommandCode as C;
    use CommandFlags as F;
    use ErrorCode as E;
    let none = F::EMPTY;
    let cases = [
        ("read at the end", C::READ, none, SIZE - 1, 1, E::NONE),
        ("read past the end", C::READ, none, SIZE - 1, 2, E::INVAL),
        ("read that overflows", C::READ, none, u64::MAX, 2, E::INVAL),
        (
            "empty read at the very end",
            C::READ,
            none,
            SIZE,
            0,
            E::NONE,
        ),
        (
            "empty read past the end",
            C::READ,
            none,
            SIZE + 1,
            0,
            E::INVAL,
        ),
        ("read with DF", C::READ, F::DF, 0, 1, E::NONE),
        ("read with FUA", C::READ, F::FUA, 0, 1, E::NONE),
        ("read with NO_HOLE", C::READ, F::NO_HOLE, 0, 1, E::INVAL),
        ("longest read", C::READ, none, 0, MAX_PAYLOAD_BYTES, E::NONE),
        (
            "too long a read",
            C::READ,
            none,
            0,
            MAX_PAYLOAD_BYTES + 1,
            E::INVAL,
        ),
        ("write", C::WRITE, F::FUA, 0, 1, E::NONE),
        ("write past the end", C::WRITE, none, SIZE, 1, E::NOSPC),
        (
            "write that overflows",
            C::WRITE,
            none,
            u64::MAX,
            1,
            E::NOSPC,
        ),
        (
            "too long a write",
            C::WRITE,
            none,
            0,
            MAX_PAYLOAD_BYTES + 1,
            E::INVAL,
        ),
        ("write with DF", C::WRITE, F::DF, 0, 1, E::INVAL),
        (
            "write with extended length",
            C::WRITE,
            F::PAYLOAD_LEN,
            0,
            1,
            E::INVAL,
        ),
        (
            "zero the whole device",
            C::WRITE_ZEROES,
            none,
            0,
            256 << 20,
            E::NONE,
        ),
        (
            "zero past the end",
            C::WRITE_ZEROES,
            none,
            SIZE - 1,
            2,
            E::NOSPC,
        ),
        ("zero fast", C::WRITE_ZEROES, F::FAST_ZERO, 0, 1, E::NONE),
        (
            "zero fast but allocated",
            C::WRITE_ZEROES,
            F(2 | 16),
            0,
            1,
            E::NOTSUP,
        ),
        ("trim", C::TRIM, F::FUA, 0, 1, E::NONE),
        ("trim past the end", C::TRIM, none, SIZE, 1, E::INVAL),
        ("flush", C::FLUSH, F::FUA, 0, 0, E::NONE),
        ("flush of a range", C::FLUSH, none, 0, 1, E::INVAL),
        ("cache", C::CACHE, none, 0, 1, E::NONE),
        ("cache past the end", C::CACHE, none, SIZE, 1, E::INVAL),
        ("status", C::BLOCK_STATUS, F::REQ_ONE, 0, 1, E::NONE),
        ("status of nothing", C::BLOCK_STATUS, none, 0, 0, E::INVAL),
        (
            "status past the end",
            C::BLOCK_STATUS,
            none,
            SIZE,
            1,
            E::INVAL,
        ),
        ("resize", C::RESIZE, none, 0, 0, E::INVAL),
        ("unknown command", CommandCode(77), none, 0, 0, E::INVAL),
        ("unknown flag", C::FLUSH, F(1 << 15), 0, 0, E::INVAL),
        ("leave", C::DISC, F(u16::MAX), 1, 1, E::NONE),
    ];
    for (what, command, flags, offset, len_bytes, expected) in cases {
        let request = request(command, flags, offset, len_bytes);
        assert_eq!(code(&request, &negotiated()), expected, "{what}");
    }
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let info = ExportInfo {
        read_only: true,
        ..info()
    };
    let flags = TransmissionFlags::HAS_FLAGS.with(TransmissionFlags::READ_ONLY);
    let negotiated = Negotiated {
        info,
        flags,
        ..negotiated()
    };
    for command in [
        CommandCode::WRITE,
        CommandCode::WRITE_ZEROES,
        CommandCode::TRIM,
    ] {
        let request = request(command, CommandFlags::EMPTY, 0, 1_u32);
        assert_eq!(code(&request, &negotiated), ErrorCode::PERM, "{command}");
    }
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let flags = TransmissionFlags::HAS_FLAGS;
    let plain = Negotiated {
        style: HeaderStyle::Simple,
        contexts: Vec::new(),
        flags,
        ..negotiated()
    };
    for (command, flags) in [
        (CommandCode::READ, CommandFlags::DF),
        (CommandCode::BLOCK_STATUS, CommandFlags::EMPTY),
        (CommandCode::WRITE_ZEROES, CommandFlags::FAST_ZERO),
    ] {
        assert_eq!(
            code(&request(command, flags, 0, 1_u32), &plain),
            ErrorCode::INVAL,
            "{command}"
        );
    }
}

#[test]
fn flags_reach_the_command() {
    let range = ByteRange {
        offset: 3,
        len_bytes: 9,
    };
    let zero = request(CommandCode::WRITE_ZEROES, CommandFlags(3), 3, 9_u32);
    let expected = Command::Zero {
        range,
        how: Zero::KeepAllocated,
        fua: true,
    };
    assert_eq!(admit(&zero, &negotiated()), Ok(expected));
    let read = request(CommandCode::READ, CommandFlags::DF, 3, 9_u32);
    let expected = Command::Read {
        range,
        dont_fragment: true,
    };
    assert_eq!(admit(&read, &negotiated()), Ok(expected));
}

#[test]
fn with_extended_headers_lengths_have_64_bits() {
    use CommandCode as C;
    use CommandFlags as F;
    use ErrorCode as E;
    const HUGE: u64 = 1 << 50;
    let huge = Negotiated {
        info: ExportInfo {
            size_bytes: HUGE,
            ..info()
        },
        ..extended()
    };
    let none = F::EMPTY;
    let payload = F::PAYLOAD_LEN;
    for (command, flags, len_bytes, expected) in [
        (C::WRITE_ZEROES, none, HUGE, E::NONE),
        (C::WRITE_ZEROES, none, HUGE + 1, E::NOSPC),
        (C::TRIM, F::FUA, HUGE, E::NONE),
        (C::TRIM, none, u64::MAX, E::INVAL),
        (C::CACHE, none, HUGE, E::NONE),
        (C::BLOCK_STATUS, none, HUGE, E::NONE),
        (C::BLOCK_STATUS, none, HUGE + 1, E::INVAL),
        (C::READ, none, HUGE, E::INVAL),
        (C::WRITE, payload, 512, E::NONE),
        (C::WRITE, payload, 0, E::NONE),
        (C::WRITE, none, 512, E::NONE),
        // A payload that the command does not know.
        (C::READ, payload, 512, E::INVAL),
        (C::WRITE_ZEROES, payload, 512, E::INVAL),
        (C::TRIM, payload, 512, E::INVAL),
        (C::FLUSH, payload, 0, E::INVAL),
        (C::CACHE, payload, 512, E::INVAL),
        (CommandCode(99), payload, 512, E::INVAL),
        // A list of contexts.
        (C::BLOCK_STATUS, payload, 8 + 4, E::NONE),
        (C::BLOCK_STATUS, payload, 8 + 4 * 3, E::INVAL),
    ] {
        let request = request(command, flags, 0, len_bytes);
        assert_eq!(
            code(&request, &huge),
            expected,
            "{command} {flags:?} {len_bytes}"
        );
    }
    // It is offered only together with contexts.
    let none_selected = Negotiated {
        flags: TransmissionFlags(0x0ded),
        ..extended()
    };
    let filter = request(C::BLOCK_STATUS, payload, 0, 12_u32);
    assert_eq!(code(&filter, &none_selected), E::INVAL);
}

#[test]
fn a_payload_is_announced_by_command_or_by_flag() {
    use CommandCode as C;
    let payload = |style, command, flags, len_bytes: u64| {
        let flags = CommandFlags(flags);
        request(command, flags, 0, len_bytes)
            .payload_bytes(style)
            .ok()
    };
    let (short, long) = (HeaderStyle::Structured, HeaderStyle::Extended);
    let most = u64::from(MAX_PAYLOAD_BYTES);
    for (style, command, flags, len_bytes, expected) in [
        (short, C::WRITE, 0, 9, Some(9)),
        (short, C::WRITE, 32, 9, Some(9)),
        (short, C::READ, 32, 9, Some(0)),
        (short, C::WRITE, 0, u64::from(u32::MAX), Some(u32::MAX)),
        (long, C::WRITE, 32, 9, Some(9)),
        (long, C::READ, 32, 9, Some(9)),
        (long, C::READ, 0, u64::MAX, Some(0)),
        (long, C::TRIM, 32, most, Some(MAX_PAYLOAD_BYTES)),
        (long, C::TRIM, 32, most + 1, None),
        (long, C::WRITE, 32, most + 1, None),
        (long, C::WRITE, 0, 9, Some(9)),
        (long, C::WRITE, 0, most + 1, None),
    ] {
        let found = payload(style, command, flags, len_bytes);
        assert_eq!(found, expected, "{style:?} {command} {flags} {len_bytes}");
    }
}

#[test]
fn a_list_of_contexts_picks_some_of_them() {
    let status = request(CommandCode::BLOCK_STATUS, CommandFlags(32 | 8), 512, 0_u32);
    let ask = |len_bytes: u64, ids: &[u32], tail: &[u8]| {
        let mut payload = len_bytes.to_be_bytes().to_vec();
        payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        payload.extend_from_slice(tail);
        admit_filtered(&status, &payload, &extended())
    };
    for ids in [&[0][..], &[5], &[5, 0]] {
        let expected = Command::BlockStatus {
            range: ByteRange {
                offset: 512,
                len_bytes: 1024,
            },
            only_first: true,
            contexts: ids.iter().map(|id| ContextId(*id)).collect(),
        };
        assert_eq!(ask(1024, ids, b""), Ok(expected));
    }
    for (what, outcome) in [
        ("no context", ask(1024, &[], b"")),
        ("an unknown one", ask(1024, &[0, 1], b"")),
        ("the same twice", ask(1024, &[0, 0], b"")),
        ("half a number", ask(1024, &[0], b"\0\0")),
        ("no length", admit_filtered(&status, b"\0\0\0", &extended())),
        ("nothing to describe", ask(0, &[0], b"")),
        ("beyond the end", ask(SIZE, &[0], b"")),
        ("overflow", ask(u64::MAX, &[0], b"")),
    ] {
        let refused = outcome.unwrap_err();
        assert_eq!(refused.code, ErrorCode::INVAL, "{what}");
    }
}

proptest! {
    #[test]
    fn requests_survive_the_wire(flags: u16, command: u16, cookie: u64, offset: u64, len_bytes: u64, extended: bool) {
        let style = if extended { HeaderStyle::Extended } else { HeaderStyle::Simple };
        let len_bytes = if extended { len_bytes } else { len_bytes >> 32 };
        let request = Request {
            flags: CommandFlags(flags),
            command: CommandCode(command),
            cookie: Cookie(cookie),
            offset,
            len_bytes,
        };
        let mut out = bytes::BytesMut::new();
        request.encode(style, &mut out).unwrap();
        prop_assert_eq!(out.len(), style.request_bytes());
        prop_assert_eq!(Request::parse(style, &out), Ok(request));
        let other = if extended { HeaderStyle::Structured } else { HeaderStyle::Extended };
        prop_assert!(Request::check_magic(other, &out[..4]).is_err());
    }

    /// Whatever a client asks for, what reaches an export lies inside the device.
    #[test]
    fn admitted_ranges_lie_inside(flags in 0..64_u16, command in 0..10_u16, offset: u64, len_bytes: u64, wide: bool) {
        let len_bytes = if wide { len_bytes } else { len_bytes % (2 * SIZE) };
        let offset = if offset % 3 == 0 { offset } else { offset % (SIZE + 10) };
        let request = request(CommandCode(command), CommandFlags(flags), offset, len_bytes);
        let Ok(
            Command::Read { range, .. }
            | Command::Write { range, .. }
            | Command::Zero { range, .. }
            | Command::Trim { range, .. }
            | Command::BlockStatus { range, .. },
        ) = admit(&request, &extended())
        else {
            return Ok(());
        };
        prop_assert!(range.offset <= SIZE && range.len_bytes <= SIZE - range.offset);
        prop_assert_eq!(range.len_bytes, len_bytes);
    }
}
