//! Replies of the transmission phase, both ways. Data stays apart from its header, so that it goes
//! from the export to the socket without a copy.

use bytes::{Bytes, BytesMut};

use super::context::{BlockDescriptor, ContextId, Extent, MetaContext, SelectedContext};
use super::error::ProtocolError;
use super::option::clip;
use super::types::{ChunkFlags, ChunkKind, Cookie, ErrorCode, HeaderStyle, RequestId};
use super::wire::{ArrayWriter, Reader, Writer, len_u32};

const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// The longest head: an extended header, and the offset and length of a hole.
const MAX_HEAD_BYTES: usize = 44;

/// The bytes of a reply before its payload.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    bytes: [u8; MAX_HEAD_BYTES],
    len: usize,
}

impl Head {
    /// A simple reply. On success of a READ the data follows, else nothing. Extended headers have no
    /// such reply.
    #[must_use]
    pub fn simple(cookie: Cookie, error: ErrorCode) -> Self {
        let writer = ArrayWriter::new()
            .u32(SIMPLE_REPLY_MAGIC)
            .u32(error.0)
            .u64(cookie.0);
        Self::from_writer(writer)
    }

    /// The whole answer to a request that succeeded and has no data.
    #[must_use]
    pub fn success(style: HeaderStyle, id: RequestId) -> Self {
        match style {
            HeaderStyle::Simple | HeaderStyle::Structured => {
                Self::simple(id.cookie, ErrorCode::NONE)
            }
            HeaderStyle::Extended => Self::chunk(style, ChunkKind::NONE, id, 0, true),
        }
    }

    /// A chunk of any kind whose `payload_bytes` follow; where [`HeaderStyle::has_chunks`].
    #[must_use]
    pub fn chunk(
        style: HeaderStyle,
        kind: ChunkKind,
        id: RequestId,
        payload_bytes: u32,
        done: bool,
    ) -> Self {
        Self::from_writer(Self::chunk_writer(style, kind, id, payload_bytes, done))
    }

    /// A chunk of data that begins at `offset` of the device; `data_bytes` follow.
    #[must_use]
    pub fn data(
        style: HeaderStyle,
        id: RequestId,
        offset: u64,
        data_bytes: u32,
        done: bool,
    ) -> Self {
        let payload_bytes = data_bytes.saturating_add(8);
        let kind = ChunkKind::OFFSET_DATA;
        let writer = Self::chunk_writer(style, kind, id, payload_bytes, done);
        Self::from_writer(writer.u64(offset))
    }

    /// A whole chunk that says that `len_bytes` (not 0) from `offset` of the device are zero.
    #[must_use]
    pub fn hole(
        style: HeaderStyle,
        id: RequestId,
        offset: u64,
        len_bytes: u32,
        done: bool,
    ) -> Self {
        let writer = Self::chunk_writer(style, ChunkKind::OFFSET_HOLE, id, 12, done);
        Self::from_writer(writer.u64(offset).u32(len_bytes))
    }

    fn chunk_writer(
        style: HeaderStyle,
        kind: ChunkKind,
        id: RequestId,
        payload_bytes: u32,
        done: bool,
    ) -> ArrayWriter<MAX_HEAD_BYTES> {
        let flags = ChunkFlags::EMPTY.with_if(done, ChunkFlags::DONE);
        let extended = style == HeaderStyle::Extended;
        let magic = if extended {
            EXTENDED_REPLY_MAGIC
        } else {
            STRUCTURED_REPLY_MAGIC
        };
        let writer = ArrayWriter::new()
            .u32(magic)
            .u16(flags.0)
            .u16(kind.0)
            .u64(id.cookie.0);
        if extended {
            writer.u64(id.offset).u64(payload_bytes.into())
        } else {
            writer.u32(payload_bytes)
        }
    }

    fn from_writer(writer: ArrayWriter<MAX_HEAD_BYTES>) -> Self {
        let (bytes, len) = writer.finish();
        Self { bytes, len }
    }

    /// As the wire wants it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The payload of an error chunk; the text is cut at 4096 bytes.
#[must_use]
pub fn error_payload(code: ErrorCode, text: &str) -> Bytes {
    let text = clip(text);
    let mut out = BytesMut::with_capacity(6 + text.len());
    let len = u16::try_from(text.len()).expect("clip leaves at most 4096 bytes");
    Writer::new(&mut out)
        .u32(code.0)
        .u16(len)
        .bytes(text.as_bytes());
    out.freeze()
}

/// The payload of a block status chunk, whose kind is [`ChunkKind::block_status`]: what the context
/// says of the extents, which begin where the request does, equal neighbours joined, cut at
/// `max_bytes` in all and `max_descriptors`. Returns `None` when there is no byte to describe.
#[must_use]
pub fn block_status_payload(
    style: HeaderStyle,
    selected: &SelectedContext,
    extents: &[Extent],
    max_bytes: u64,
    max_descriptors: usize,
) -> Option<Bytes> {
    let wide = style == HeaderStyle::Extended;
    let max_bytes = if wide {
        max_bytes
    } else {
        max_bytes.min(u32::MAX.into())
    };
    let descriptors = describe(&selected.context, extents, max_bytes, max_descriptors);
    if descriptors.is_empty() {
        return None;
    }
    let mut out = BytesMut::with_capacity(8 + 16 * descriptors.len());
    let mut writer = Writer::new(&mut out);
    writer.u32(selected.id.0);
    if wide {
        writer.u32(len_u32(descriptors.len()));
    }
    for (len_bytes, status) in descriptors {
        match u32::try_from(len_bytes) {
            Ok(len_bytes) if !wide => writer.u32(len_bytes).u32(status),
            _ => writer.u64(len_bytes).u64(status.into()),
        };
    }
    Some(out.freeze())
}

/// Lengths and states, at least one byte each.
fn describe(
    context: &MetaContext,
    extents: &[Extent],
    max_bytes: u64,
    max_descriptors: usize,
) -> Vec<(u64, u32)> {
    let mut descriptors: Vec<(u64, u32)> = Vec::new();
    let mut left = max_bytes;
    for extent in extents {
        let len_bytes = extent.len_bytes.min(left);
        if len_bytes == 0 {
            continue;
        }
        let status = context.status(extent);
        let full = descriptors.len() == max_descriptors;
        match descriptors.last_mut() {
            // No overflow: the sum of all lengths is at most `max_bytes`.
            Some(last) if last.1 == status => last.0 += len_bytes,
            _ if full => break,
            _ => descriptors.push((len_bytes, status)),
        }
        left -= len_bytes;
    }
    descriptors
}

/// The first four bytes of a reply: they tell which header comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyPreamble {
    /// 16 bytes in all.
    Simple,
    /// 20 bytes in all.
    Structured,
    /// 32 bytes in all.
    Extended,
}

impl ReplyPreamble {
    /// Length on the wire.
    pub const BYTES: usize = 4;

    /// Looks at the magic.
    ///
    /// # Errors
    ///
    /// Not a magic of this style: the stream has lost its frame, or the server speaks another style
    /// than it agreed to.
    pub fn parse(style: HeaderStyle, bytes: &[u8]) -> Result<Self, ProtocolError> {
        let found = Reader::new("reply", bytes).u32()?;
        let expected = match style {
            HeaderStyle::Simple => SIMPLE_REPLY_MAGIC,
            HeaderStyle::Structured => STRUCTURED_REPLY_MAGIC,
            HeaderStyle::Extended => EXTENDED_REPLY_MAGIC,
        };
        match (found, style) {
            (EXTENDED_REPLY_MAGIC, HeaderStyle::Extended) => Ok(Self::Extended),
            (STRUCTURED_REPLY_MAGIC, HeaderStyle::Structured) => Ok(Self::Structured),
            (SIMPLE_REPLY_MAGIC, HeaderStyle::Simple | HeaderStyle::Structured) => Ok(Self::Simple),
            _ => Err(ProtocolError::BadMagic {
                structure: "reply",
                expected: expected.into(),
                found: found.into(),
            }),
        }
    }

    /// The length of the whole header, these four bytes included.
    #[must_use]
    pub const fn header_bytes(self) -> usize {
        match self {
            Self::Simple => 16,
            Self::Structured => 20,
            Self::Extended => 32,
        }
    }
}

/// The header of a reply chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Whether more chunks of this request come.
    pub flags: ChunkFlags,
    /// What the payload is.
    pub kind: ChunkKind,
    /// Which request is answered.
    pub cookie: Cookie,
    /// Where that request begins; extended headers only.
    pub offset: Option<u64>,
    /// Length of the payload that follows.
    pub len_bytes: u64,
}

/// The header of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHeader {
    /// The whole answer, but for the data of a successful READ.
    Simple {
        /// Which request is answered.
        cookie: Cookie,
        /// [`ErrorCode::NONE`] for success.
        error: ErrorCode,
    },
    /// A part of an answer.
    Chunk(ChunkHeader),
}

impl ReplyHeader {
    /// Reads a whole header, [`ReplyPreamble::header_bytes`] long.
    ///
    /// # Errors
    ///
    /// The magic is wrong, or the length is another one.
    pub fn parse(style: HeaderStyle, bytes: &[u8]) -> Result<Self, ProtocolError> {
        let preamble = ReplyPreamble::parse(style, bytes)?;
        let mut reader = Reader::new("reply header", bytes);
        reader.u32()?;
        let header = match preamble {
            ReplyPreamble::Simple => {
                let error = ErrorCode(reader.u32()?);
                Self::Simple {
                    cookie: Cookie(reader.u64()?),
                    error,
                }
            }
            ReplyPreamble::Structured => Self::Chunk(ChunkHeader {
                flags: ChunkFlags(reader.u16()?),
                kind: ChunkKind(reader.u16()?),
                cookie: Cookie(reader.u64()?),
                offset: None,
                len_bytes: reader.u32()?.into(),
            }),
            ReplyPreamble::Extended => Self::Chunk(ChunkHeader {
                flags: ChunkFlags(reader.u16()?),
                kind: ChunkKind(reader.u16()?),
                cookie: Cookie(reader.u64()?),
                offset: Some(reader.u64()?),
                len_bytes: reader.u64()?,
            }),
        };
        reader.finish()?;
        Ok(header)
    }
}

/// The offset in front of the data of an `OFFSET_DATA` chunk.
pub(crate) fn parse_data_offset(bytes: &[u8]) -> Result<u64, ProtocolError> {
    Reader::new("data chunk", bytes).u64()
}

/// Offset and length of an `OFFSET_HOLE` chunk.
pub(crate) fn parse_hole(bytes: &[u8]) -> Result<(u64, u32), ProtocolError> {
    let mut reader = Reader::new("hole chunk", bytes);
    let hole = (reader.u64()?, reader.u32()?);
    reader.finish()?;
    Ok(hole)
}

/// Error and text of an error chunk; fields after the text are not looked at.
pub(crate) fn parse_error(bytes: &[u8]) -> Result<(ErrorCode, String), ProtocolError> {
    let mut reader = Reader::new("error chunk", bytes);
    let code = ErrorCode(reader.u32()?);
    let len = reader.u16()?;
    let text = String::from_utf8_lossy(reader.bytes(len.into())?).into_owned();
    Ok((code, text))
}

/// Context and descriptors of a block status chunk, of 64 bits each when `wide`.
pub(crate) fn parse_block_status(
    wide: bool,
    bytes: &[u8],
) -> Result<(ContextId, Vec<BlockDescriptor>), ProtocolError> {
    let unexpected = |field, value| ProtocolError::Unexpected {
        structure: "block status chunk",
        field,
        value,
    };
    let mut reader = Reader::new("block status chunk", bytes);
    let context = ContextId(reader.u32()?);
    let announced = if wide { Some(reader.u32()?) } else { None };
    let mut descriptors = Vec::with_capacity(reader.remaining() / 8);
    while reader.remaining() > 0 {
        let descriptor = if wide {
            BlockDescriptor {
                len_bytes: reader.u64()?,
                status: reader.u64()?,
            }
        } else {
            BlockDescriptor {
                len_bytes: reader.u32()?.into(),
                status: reader.u32()?.into(),
            }
        };
        if descriptor.len_bytes == 0 {
            return Err(unexpected("descriptor length", 0));
        }
        descriptors.push(descriptor);
    }
    let found = len_u32(descriptors.len());
    if found == 0 || announced.is_some_and(|announced| announced != found) {
        return Err(unexpected("descriptor count", found.into()));
    }
    Ok((context, descriptors))
}

/// The length of a structure as the error types want it.
pub(crate) fn chunk_too_long(len_bytes: u64, max: u32) -> ProtocolError {
    ProtocolError::TooBig {
        structure: "reply chunk",
        value: len_bytes,
        max: max.into(),
    }
}
