use bytes::BytesMut;

use crate::proto::context::{BlockDescriptor, ContextId};
use crate::proto::error::ProtocolError;
use crate::proto::limits::MAX_CHUNK_BYTES;
use crate::proto::reply::{
    ChunkHeader, ReplyHeader, ReplyPreamble, chunk_too_long, parse_block_status, parse_data_offset,
    parse_error, parse_hole,
};
use crate::proto::types::{ChunkFlags, ChunkKind, Cookie, ErrorCode, HeaderStyle};

/// Bytes of a data chunk before the data.
const DATA_OFFSET_BYTES: usize = 8;

/// A part of a reply. `done` says that no more parts of this request come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyEvent {
    /// Append at least this many bytes to the input and ask again.
    NeedBytes(usize),
    /// A simple reply. When it answers a READ with success, the requested number of bytes follows
    /// in the input and on the socket; the caller takes them before it asks again.
    Simple {
        /// Which request.
        cookie: Cookie,
        /// [`ErrorCode::NONE`] for success.
        error: ErrorCode,
    },
    /// Data of a READ: `len_bytes` follow in the input and on the socket, for `offset` of the
    /// device; the caller takes them before it asks again. The caller checks that they lie in what
    /// was asked for.
    Data {
        /// Which request.
        cookie: Cookie,
        /// Where on the device.
        offset: u64,
        /// How many bytes follow; may be more than a caller asked for, if the server is hostile.
        len_bytes: u32,
        /// Whether the request is answered.
        done: bool,
    },
    /// A part of a READ that is zero.
    Hole {
        /// Which request.
        cookie: Cookie,
        /// Where on the device.
        offset: u64,
        /// How long, not checked against the request.
        len_bytes: u32,
        /// Whether the request is answered.
        done: bool,
    },
    /// Block status of one context.
    Status {
        /// Which request.
        cookie: Cookie,
        /// Which context.
        context: ContextId,
        /// Consecutive runs from the start of the request; at least one.
        descriptors: Vec<BlockDescriptor>,
        /// Whether the request is answered.
        done: bool,
    },
    /// The request failed. When `done` is not set the failure holds, but more parts come.
    Error {
        /// Which request.
        cookie: Cookie,
        /// Why, by number.
        code: ErrorCode,
        /// Why, in words.
        text: String,
        /// Whether the request is answered.
        done: bool,
    },
    /// The end of an answer; success, unless an error came before.
    End {
        /// Which request.
        cookie: Cookie,
    },
}

/// Cuts the server's bytes into parts of replies. It keeps nothing between calls: what is not
/// understood yet stays in the input.
#[derive(Debug, Clone, Copy)]
pub struct Replies {
    style: HeaderStyle,
}

impl Replies {
    /// Replies in the style that was agreed on.
    #[must_use]
    pub const fn new(style: HeaderStyle) -> Self {
        Self { style }
    }

    /// The next part, taken off the front of `input`.
    ///
    /// # Errors
    ///
    /// The server broke the protocol; close the connection.
    pub fn next(self, input: &mut BytesMut) -> Result<ReplyEvent, ProtocolError> {
        let Some(magic) = input.get(..ReplyPreamble::BYTES) else {
            return Ok(ReplyEvent::NeedBytes(ReplyPreamble::BYTES - input.len()));
        };
        let header_bytes = ReplyPreamble::parse(self.style, magic)?.header_bytes();
        let Some(header) = input.get(..header_bytes) else {
            return Ok(ReplyEvent::NeedBytes(header_bytes - input.len()));
        };
        match ReplyHeader::parse(self.style, header)? {
            ReplyHeader::Simple { cookie, error } => {
                let _ = input.split_to(header_bytes);
                Ok(ReplyEvent::Simple { cookie, error })
            }
            ReplyHeader::Chunk(chunk) if chunk.kind == ChunkKind::OFFSET_DATA => {
                data_chunk(chunk, header_bytes, input)
            }
            ReplyHeader::Chunk(chunk) => whole_chunk(self.style, chunk, header_bytes, input),
        }
    }
}

fn data_chunk(
    chunk: ChunkHeader,
    header_bytes: usize,
    input: &mut BytesMut,
) -> Result<ReplyEvent, ProtocolError> {
    let whole = header_bytes + DATA_OFFSET_BYTES;
    let Some(offset) = input.get(header_bytes..whole) else {
        return Ok(ReplyEvent::NeedBytes(whole - input.len()));
    };
    let offset = parse_data_offset(offset)?;
    // A data chunk has at least one byte of data (NBD proto, NBD_REPLY_TYPE_OFFSET_DATA).
    let data_bytes = chunk.len_bytes.checked_sub(8).map(u32::try_from);
    let Some(Ok(len_bytes @ 1..)) = data_bytes else {
        return Err(ProtocolError::Unexpected {
            structure: "data chunk",
            field: "length",
            value: chunk.len_bytes,
        });
    };
    let _ = input.split_to(whole);
    let done = chunk.flags.has(ChunkFlags::DONE);
    Ok(ReplyEvent::Data {
        cookie: chunk.cookie,
        offset,
        len_bytes,
        done,
    })
}

fn whole_chunk(
    style: HeaderStyle,
    chunk: ChunkHeader,
    header_bytes: usize,
    input: &mut BytesMut,
) -> Result<ReplyEvent, ProtocolError> {
    if chunk.len_bytes > MAX_CHUNK_BYTES.into() {
        return Err(chunk_too_long(chunk.len_bytes, MAX_CHUNK_BYTES));
    }
    let payload_bytes = usize::try_from(chunk.len_bytes).unwrap_or(usize::MAX);
    let whole = header_bytes.saturating_add(payload_bytes);
    if input.len() < whole {
        return Ok(ReplyEvent::NeedBytes(whole - input.len()));
    }
    let message = input.split_to(whole);
    let payload = &message[header_bytes..];
    let ChunkHeader { cookie, kind, .. } = chunk;
    let done = chunk.flags.has(ChunkFlags::DONE);
    let unexpected = |field, value| ProtocolError::Unexpected {
        structure: "reply chunk",
        field,
        value,
    };
    match kind {
        ChunkKind::NONE if done && payload.is_empty() => Ok(ReplyEvent::End { cookie }),
        ChunkKind::NONE => Err(unexpected("length of NONE", chunk.len_bytes)),
        ChunkKind::OFFSET_HOLE => {
            let (offset, len_bytes) = parse_hole(payload)?;
            Ok(ReplyEvent::Hole {
                cookie,
                offset,
                len_bytes,
                done,
            })
        }
        kind if kind == ChunkKind::block_status(style) => {
            let wide = style == HeaderStyle::Extended;
            let (context, descriptors) = parse_block_status(wide, payload)?;
            Ok(ReplyEvent::Status {
                cookie,
                context,
                descriptors,
                done,
            })
        }
        kind if kind.is_error() => {
            let (code, text) = parse_error(payload)?;
            Ok(ReplyEvent::Error {
                cookie,
                code,
                text,
                done,
            })
        }
        other => Err(unexpected("kind", other.0.into())),
    }
}
