//! Replies of the transmission phase, both ways. Data stays apart from its header, so that it goes
//! from the export to the socket without a copy.

use bytes::{Bytes, BytesMut};

use super::error::ProtocolError;
use super::option::clip;
use super::types::{BlockDescriptor, ChunkFlags, ChunkKind, ContextId, Cookie, ErrorCode, Extent};
use super::wire::{ArrayWriter, Reader, Writer};

const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// The longest head: a structured header and the offset of a data chunk.
const MAX_HEAD_BYTES: usize = 28;

/// The bytes of a reply before its payload.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    bytes: [u8; MAX_HEAD_BYTES],
    len: usize,
}

impl Head {
    /// A simple reply. On success of a READ the data follows, else nothing.
    #[must_use]
    pub fn simple(cookie: Cookie, error: ErrorCode) -> Self {
        let writer = ArrayWriter::new()
            .u32(SIMPLE_REPLY_MAGIC)
            .u32(error.0)
            .u64(cookie.0);
        Self::from_writer(writer)
    }

    /// A chunk of any kind whose `payload_bytes` follow.
    #[must_use]
    pub fn chunk(kind: ChunkKind, cookie: Cookie, payload_bytes: u32, done: bool) -> Self {
        Self::from_writer(Self::chunk_writer(kind, cookie, payload_bytes, done))
    }

    /// A chunk of data that begins at `offset` of the device; `data_bytes` follow.
    #[must_use]
    pub fn data(cookie: Cookie, offset: u64, data_bytes: u32, done: bool) -> Self {
        let payload_bytes = data_bytes.saturating_add(8);
        let writer = Self::chunk_writer(ChunkKind::OFFSET_DATA, cookie, payload_bytes, done);
        Self::from_writer(writer.u64(offset))
    }

    fn chunk_writer(
        kind: ChunkKind,
        cookie: Cookie,
        payload_bytes: u32,
        done: bool,
    ) -> ArrayWriter<MAX_HEAD_BYTES> {
        ArrayWriter::new()
            .u32(STRUCTURED_REPLY_MAGIC)
            .u16(ChunkFlags::EMPTY.with_if(done, ChunkFlags::DONE).0)
            .u16(kind.0)
            .u64(cookie.0)
            .u32(payload_bytes)
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

/// The payload of a block status chunk: the extents from the start of the request, equal
/// neighbours joined, cut at `max_bytes` in all and `max_descriptors`. Returns `None` when there is
/// no byte to describe.
#[must_use]
pub fn block_status_payload(
    context: ContextId,
    extents: &[Extent],
    max_bytes: u32,
    max_descriptors: usize,
) -> Option<Bytes> {
    let mut descriptors: Vec<BlockDescriptor> = Vec::new();
    let mut left = max_bytes;
    for extent in extents {
        let len_bytes = u32::try_from(extent.len_bytes)
            .unwrap_or(u32::MAX)
            .min(left);
        if len_bytes == 0 {
            continue;
        }
        let status = extent.status();
        let full = descriptors.len() == max_descriptors;
        match descriptors.last_mut() {
            // No overflow: the sum of all lengths is at most `max_bytes`.
            Some(last) if last.status == status => last.len_bytes += len_bytes,
            _ if full => break,
            _ => descriptors.push(BlockDescriptor { len_bytes, status }),
        }
        left -= len_bytes;
    }
    if descriptors.is_empty() {
        return None;
    }
    let mut out = BytesMut::with_capacity(4 + 8 * descriptors.len());
    let mut writer = Writer::new(&mut out);
    writer.u32(context.0);
    for descriptor in descriptors {
        writer.u32(descriptor.len_bytes).u32(descriptor.status);
    }
    Some(out.freeze())
}

/// The first four bytes of a reply: they tell which header comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyPreamble {
    /// 16 bytes in all.
    Simple,
    /// 20 bytes in all.
    Structured,
}

impl ReplyPreamble {
    /// Length on the wire.
    pub const BYTES: usize = 4;

    /// Looks at the magic.
    ///
    /// # Errors
    ///
    /// Neither magic: the stream has lost its frame.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let found = Reader::new("reply", bytes).u32()?;
        match found {
            SIMPLE_REPLY_MAGIC => Ok(Self::Simple),
            STRUCTURED_REPLY_MAGIC => Ok(Self::Structured),
            _ => Err(ProtocolError::BadMagic {
                structure: "reply",
                expected: SIMPLE_REPLY_MAGIC.into(),
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
        }
    }
}

/// The header of a structured reply chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Whether more chunks of this request come.
    pub flags: ChunkFlags,
    /// What the payload is.
    pub kind: ChunkKind,
    /// Which request is answered.
    pub cookie: Cookie,
    /// Length of the payload that follows.
    pub len_bytes: u32,
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
    pub fn parse(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let preamble = ReplyPreamble::parse(bytes)?;
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
                len_bytes: reader.u32()?,
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

/// Context and descriptors of a block status chunk.
pub(crate) fn parse_block_status(
    bytes: &[u8],
) -> Result<(ContextId, Vec<BlockDescriptor>), ProtocolError> {
    let mut reader = Reader::new("block status chunk", bytes);
    let context = ContextId(reader.u32()?);
    let mut descriptors = Vec::with_capacity(reader.remaining() / 8);
    while reader.remaining() > 0 {
        let descriptor = BlockDescriptor {
            len_bytes: reader.u32()?,
            status: reader.u32()?,
        };
        if descriptor.len_bytes == 0 {
            return Err(ProtocolError::Unexpected {
                structure: "block status chunk",
                field: "descriptor length",
                value: 0,
            });
        }
        descriptors.push(descriptor);
    }
    if descriptors.is_empty() {
        return Err(ProtocolError::Unexpected {
            structure: "block status chunk",
            field: "descriptor count",
            value: 0,
        });
    }
    Ok((context, descriptors))
}

/// The length of a structure as the error types want it.
pub(crate) fn chunk_too_long(len_bytes: u32, max: u32) -> ProtocolError {
    ProtocolError::TooBig {
        structure: "reply chunk",
        value: len_bytes.into(),
        max: max.into(),
    }
}
