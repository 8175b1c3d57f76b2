//! What may reach an export, and what is told to the client instead.

use super::limits::MAX_PAYLOAD_BYTES;
use super::negotiated::Negotiated;
use super::request::Request;
use super::types::{
    ByteRange, CommandCode, CommandFlags, ContextId, ErrorCode, TransmissionFlags, Zero,
};

/// A request that the export can carry out: range, flags and permission are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        /// Up to 4 GiB.
        range: ByteRange,
        /// What may be left behind.
        how: Zero,
        /// Answer when it is durable.
        fua: bool,
    },
    /// The range is not needed any more.
    Trim {
        /// Up to 4 GiB.
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
        /// One descriptor is enough.
        only_first: bool,
        /// The number under which the answer goes.
        context: ContextId,
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
    let Some(context) = negotiated.base_allocation else {
        return refuse(ErrorCode::INVAL, "no metadata context was negotiated");
    };
    if request.len_bytes == 0 {
        return refuse(ErrorCode::INVAL, "a block status has at least one byte");
    }
    Ok(Command::BlockStatus {
        range: inside(request, negotiated, ErrorCode::INVAL)?,
        only_first: request.flags.has(CommandFlags::REQ_ONE),
        context,
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
        CommandCode::BLOCK_STATUS => CommandFlags::REQ_ONE,
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
    if request.len_bytes > MAX_PAYLOAD_BYTES {
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
    let len_bytes = u64::from(request.len_bytes);
    match request.offset.checked_add(len_bytes) {
        Some(end) if end <= negotiated.info.size_bytes => Ok(ByteRange {
            offset: request.offset,
            len_bytes,
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
