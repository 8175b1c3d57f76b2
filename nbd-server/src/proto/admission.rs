//! What may reach an export, and what is told to the client instead.

use super::context::ContextId;
use super::limits::MAX_PAYLOAD_BYTES;
use super::negotiated::Negotiated;
use super::request::Request;
use super::types::{
    ByteRange, CommandCode, CommandFlags, ErrorCode, HeaderStyle, TransmissionFlags, Zero,
};
use super::wire::Reader;

/// A request that the export can carry out: range, flags and permission are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Send the data.
    Read {
        /// At most [`MAX_PAYLOAD_BYTES`].
        range: ByteRange,
        /// One data chunk at most.
        dont_fragment: bool,
    },
    /// Take the payload.
    Write {
        /// At most [`MAX_PAYLOAD_BYTES`].
        range: ByteRange,
        /// Answer when it is durable.
        fua: bool,
    },
    /// Zero the range.
    Zero {
        /// Up to the whole device.
        range: ByteRange,
        /// What may be left behind.
        how: Zero,
        /// Answer when it is durable.
        fua: bool,
    },
    /// The range is not needed any more.
    Trim {
        /// Up to the whole device.
        range: ByteRange,
        /// Answer when it is durable.
        fua: bool,
    },
    /// Make completed writes durable.
    Flush,
    /// Read ahead; nothing needs to happen.
    Cache,
    /// Tell which parts are allocated.
    BlockStatus {
        /// Not empty.
        range: ByteRange,
        /// One descriptor of each context is enough.
        only_first: bool,
        /// The contexts to tell about, each once.
        contexts: Vec<ContextId>,
    },
    /// Take a payload of a few bytes, then ask [`admit_filtered`].
    BlockStatusFilter {
        /// Length of the payload.
        payload_bytes: u32,
    },
    /// The client leaves; there is no reply.
    Disconnect,
}

/// What the client is told of a request that does not reach the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// By number.
    pub code: ErrorCode,
    /// In words.
    pub text: &'static str,
}

/// The length that begins the payload of a block status request.
const FILTER_LEN_BYTES: u64 = 8;
/// Each number of a context after it.
const FILTER_ID_BYTES: u64 = 4;

const fn refuse<T>(code: ErrorCode, text: &'static str) -> Result<T, Refused> {
    Err(Refused { code, text })
}

/// Decides about one request.
///
/// # Errors
///
/// The refusal to send, after [`Request::payload_bytes`] have been read away. The codes follow NBD
/// proto, "Error values": writing past the end is `ENOSPC`, reading past it `EINVAL`, writing to a
/// read-only export `EPERM`, anything not understood `EINVAL`.
pub fn admit(request: &Request, negotiated: &Negotiated) -> Result<Command, Refused> {
    if request.command == CommandCode::DISC {
        return Ok(Command::Disconnect);
    }
    check_flags(request, negotiated)?;
    let fua = request.flags.has(CommandFlags::FUA);
    match request.command {
        CommandCode::READ => {
            let range = inside(request, negotiated, ErrorCode::INVAL)?;
            check_payload(request)?;
            Ok(Command::Read {
                range,
                dont_fragment: request.flags.has(CommandFlags::DF),
            })
        }
        CommandCode::WRITE => {
            check_writable(negotiated)?;
            check_payload(request)?;
            Ok(Command::Write {
                range: inside(request, negotiated, ErrorCode::NOSPC)?,
                fua,
            })
        }
        CommandCode::WRITE_ZEROES => {
            check_writable(negotiated)?;
            let range = inside(request, negotiated, ErrorCode::NOSPC)?;
            Ok(Command::Zero {
                range,
                how: zero_how(request)?,
                fua,
            })
        }
        CommandCode::TRIM => {
            check_writable(negotiated)?;
            Ok(Command::Trim {
                range: inside(request, negotiated, ErrorCode::INVAL)?,
                fua,
            })
        }
        CommandCode::FLUSH => {
            if request.offset != 0 || request.len_bytes != 0 {
                return refuse(ErrorCode::INVAL, "a flush has no range");
            }
            Ok(Command::Flush)
        }
        CommandCode::CACHE => {
            inside(request, negotiated, ErrorCode::INVAL)?;
            Ok(Command::Cache)
        }
        CommandCode::BLOCK_STATUS => block_status(request, negotiated),
        _ => refuse(ErrorCode::INVAL, "unknown command"),
    }
}

fn block_status(request: &Request, negotiated: &Negotiated) -> Result<Command, Refused> {
    if negotiated.contexts.is_empty() {
        return refuse(ErrorCode::INVAL, "no metadata context was negotiated");
    }
    if request.flags.has(CommandFlags::PAYLOAD_LEN) {
        let largest =
            FILTER_LEN_BYTES + count(negotiated.contexts.len()).saturating_mul(FILTER_ID_BYTES);
        return match u32::try_from(request.len_bytes) {
            Ok(payload_bytes) if request.len_bytes <= largest => {
                Ok(Command::BlockStatusFilter { payload_bytes })
            }
            _ => refuse(ErrorCode::INVAL, "more contexts than were negotiated"),
        };
    }
    let ids = negotiated.contexts.iter().map(|selected| selected.id);
    status_of(request, negotiated, ids.collect())
}

/// Decides about a block status request whose payload picks contexts (NBD proto,
/// `NBD_CMD_BLOCK_STATUS`, extension `EXTENDED_HEADERS`): a length, and the numbers of contexts.
///
/// # Errors
///
/// As [`admit`]; also for a payload that is malformed, names a context twice or one that was not
/// negotiated.
pub fn admit_filtered(
    request: &Request,
    payload: &[u8],
    negotiated: &Negotiated,
) -> Result<Command, Refused> {
    let mut reader = Reader::new("block status payload", payload);
    let malformed = || Refused {
        code: ErrorCode::INVAL,
        text: "malformed list of contexts",
    };
    let len_bytes = reader.u64().map_err(|_| malformed())?;
    let mut ids: Vec<ContextId> = Vec::new();
    while reader.remaining() > 0 {
        let id = ContextId(reader.u32().map_err(|_| malformed())?);
        let known = negotiated.contexts.iter().any(|known| known.id == id);
        if !known || ids.contains(&id) {
            return refuse(ErrorCode::INVAL, "context not negotiated, or named twice");
        }
        ids.push(id);
    }
    if ids.is_empty() {
        return Err(malformed());
    }
    let effect = Request {
        len_bytes,
        ..*request
    };
    status_of(&effect, negotiated, ids)
}

fn status_of(
    request: &Request,
    negotiated: &Negotiated,
    contexts: Vec<ContextId>,
) -> Result<Command, Refused> {
    if request.len_bytes == 0 {
        return refuse(ErrorCode::INVAL, "a block status has at least one byte");
    }
    Ok(Command::BlockStatus {
        range: inside(request, negotiated, ErrorCode::INVAL)?,
        only_first: request.flags.has(CommandFlags::REQ_ONE),
        contexts,
    })
}

/// FUA goes with every command that can carry it at all; the others belong to one command each.
fn check_flags(request: &Request, negotiated: &Negotiated) -> Result<(), Refused> {
    let own = match request.command {
        CommandCode::READ if negotiated.flags.has(TransmissionFlags::SEND_DF) => CommandFlags::DF,
        CommandCode::WRITE_ZEROES => {
            let fast = negotiated.flags.has(TransmissionFlags::SEND_FAST_ZERO);
            CommandFlags::NO_HOLE.with_if(fast, CommandFlags::FAST_ZERO)
        }
        CommandCode::WRITE if negotiated.style == HeaderStyle::Extended => {
            CommandFlags::PAYLOAD_LEN
        }
        CommandCode::BLOCK_STATUS => {
            let filter = (negotiated.flags).has(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
            CommandFlags::REQ_ONE.with_if(filter, CommandFlags::PAYLOAD_LEN)
        }
        _ => CommandFlags::EMPTY,
    };
    if request
        .flags
        .without(own.with(CommandFlags::FUA))
        .is_empty()
    {
        Ok(())
    } else {
        refuse(ErrorCode::INVAL, "flag not known for this command")
    }
}

fn check_writable(negotiated: &Negotiated) -> Result<(), Refused> {
    if negotiated.info.read_only {
        refuse(ErrorCode::PERM, "the export is read-only")
    } else {
        Ok(())
    }
}

fn check_payload(request: &Request) -> Result<(), Refused> {
    if request.len_bytes > u64::from(MAX_PAYLOAD_BYTES) {
        refuse(ErrorCode::INVAL, "longer than the largest payload")
    } else {
        Ok(())
    }
}

fn inside(
    request: &Request,
    negotiated: &Negotiated,
    beyond: ErrorCode,
) -> Result<ByteRange, Refused> {
    match request.offset.checked_add(request.len_bytes) {
        Some(end) if end <= negotiated.info.size_bytes => Ok(ByteRange {
            offset: request.offset,
            len_bytes: request.len_bytes,
        }),
        _ => refuse(beyond, "beyond the end of the device"),
    }
}

fn zero_how(request: &Request) -> Result<Zero, Refused> {
    if !request.flags.has(CommandFlags::NO_HOLE) {
        return Ok(Zero::MayUnmap);
    }
    if request.flags.has(CommandFlags::FAST_ZERO) {
        return refuse(
            ErrorCode::NOTSUP,
            "zeroing that keeps an allocation is not fast",
        );
    }
    Ok(Zero::KeepAllocated)
}

fn count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
