use nbd_server::proto::limits::MAX_PAYLOAD_BYTES;
use nbd_server::proto::{
    ByteRange, Command, CommandCode, CommandFlags, ContextId, Cookie, ErrorCode, ExportInfo,
    Negotiated, Request, TransmissionFlags, Zero, admit,
};
use proptest::prelude::*;

use crate::handshake::{info, name};

const SIZE: u64 = 256 << 20;

fn negotiated() -> Negotiated {
    Negotiated {
        name: name("disk"),
        info: info(),
        flags: TransmissionFlags(0x0ded),
        structured_replies: true,
        base_allocation: Some(ContextId(0)),
    }
}

fn request(command: CommandCode, flags: CommandFlags, offset: u64, len_bytes: u32) -> Request {
    Request {
        flags,
        command,
        cookie: Cookie(1),
        offset,
        len_bytes,
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
        let request = request(command, CommandFlags::EMPTY, 0, 1);
        assert_eq!(code(&request, &negotiated), ErrorCode::PERM, "{command}");
    }
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let flags = TransmissionFlags::HAS_FLAGS;
    let plain = Negotiated {
        structured_replies: false,
        base_allocation: None,
        flags,
        ..negotiated()
    };
    for (command, flags) in [
        (CommandCode::READ, CommandFlags::DF),
        (CommandCode::BLOCK_STATUS, CommandFlags::EMPTY),
        (CommandCode::WRITE_ZEROES, CommandFlags::FAST_ZERO),
    ] {
        assert_eq!(
            code(&request(command, flags, 0, 1), &plain),
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
    let zero = request(CommandCode::WRITE_ZEROES, CommandFlags(3), 3, 9);
    let expected = Command::Zero {
        range,
        how: Zero::KeepAllocated,
        fua: true,
    };
    assert_eq!(admit(&zero, &negotiated()), Ok(expected));
    let read = request(CommandCode::READ, CommandFlags::DF, 3, 9);
    let expected = Command::Read {
        range,
        dont_fragment: true,
    };
    assert_eq!(admit(&read, &negotiated()), Ok(expected));
}

proptest! {
    #[test]
    fn requests_survive_the_wire(flags: u16, command: u16, cookie: u64, offset: u64, len_bytes: u32) {
        let request = Request {
            flags: CommandFlags(flags),
            command: CommandCode(command),
            cookie: Cookie(cookie),
            offset,
            len_bytes,
        };
        prop_assert_eq!(Request::parse(&request.encode()), Ok(request));
    }

    /// Whatever a client asks for, what reaches an export lies inside the device.
    #[test]
    fn admitted_ranges_lie_inside(flags in 0..32_u16, command in 0..10_u16, offset: u64, len_bytes: u32) {
        let offset = if offset % 3 == 0 { offset } else { offset % (SIZE + 10) };
        let request = request(CommandCode(command), CommandFlags(flags), offset, len_bytes);
        let Ok(
            Command::Read { range, .. }
            | Command::Write { range, .. }
            | Command::Zero { range, .. }
            | Command::Trim { range, .. }
            | Command::BlockStatus { range, .. },
        ) = admit(&request, &negotiated())
        else {
            return Ok(());
        };
        prop_assert!(range.offset <= SIZE && range.len_bytes <= SIZE - range.offset);
        prop_assert_eq!(range.len_bytes, u64::from(len_bytes));
    }
}
