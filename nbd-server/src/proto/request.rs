use bytes::BytesMut;

use super::error::ProtocolError;
use super::limits::MAX_PAYLOAD_BYTES;
use super::types::{CommandCode, CommandFlags, Cookie, HeaderStyle, RequestId};
use super::wire::{Reader, Writer};

const COMPACT_MAGIC: u32 = 0x2560_9513;
const EXTENDED_MAGIC: u32 = 0x21e4_1c71;

/// A request header as it came; [`super::admit`] decides what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Modifiers.
    pub flags: CommandFlags,
    /// What is asked for.
    pub command: CommandCode,
    /// Comes back in the reply.
    pub cookie: Cookie,
    /// First byte.
    pub offset: u64,
    /// Length in bytes, of the range or of the payload that follows (see
    /// [`Request::payload_bytes`]).
    pub len_bytes: u64,
}

impl Request {
    /// Length of the magic that each header begins with.
    pub const MAGIC_BYTES: usize = 4;

    /// Looks at the first four bytes of a header.
    ///
    /// # Errors
    ///
    /// Not the magic of this style: the stream has lost its frame, or the client speaks another
    /// style than it negotiated.
    pub fn check_magic(style: HeaderStyle, bytes: &[u8]) -> Result<(), ProtocolError> {
        Reader::new("request", bytes).magic_u32(magic(style))
    }

    /// Reads a header, [`HeaderStyle::request_bytes`] long (NBD proto, "Request message").
    ///
    /// # Errors
    ///
    /// The magic is wrong, or the length is another one: the stream has lost its frame.
    pub fn parse(style: HeaderStyle, bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new("request", bytes);
        reader.magic_u32(magic(style))?;
        let request = Self {
            flags: CommandFlags(reader.u16()?),
            command: CommandCode(reader.u16()?),
            cookie: Cookie(reader.u64()?),
            offset: reader.u64()?,
            len_bytes: match style {
                HeaderStyle::Simple | HeaderStyle::Structured => reader.u32()?.into(),
                HeaderStyle::Extended => reader.u64()?,
            },
        };
        reader.finish()?;
        Ok(request)
    }

    /// Appends the header; a payload follows it on the wire.
    ///
    /// # Errors
    ///
    /// The length needs more than the 32 bits of a compact header; nothing is appended.
    pub fn encode(&self, style: HeaderStyle, out: &mut BytesMut) -> Result<(), ProtocolError> {
        let short_len = u32::try_from(self.len_bytes);
        if style != HeaderStyle::Extended && short_len.is_err() {
            return Err(ProtocolError::TooBig {
                structure: "request length",
                value: self.len_bytes,
                max: u32::MAX.into(),
            });
        }
        let mut writer = Writer::new(out);
        writer
            .u32(magic(style))
            .u16(self.flags.0)
            .u16(self.command.0)
            .u64(self.cookie.0)
            .u64(self.offset);
        match (style, short_len) {
            (HeaderStyle::Simple | HeaderStyle::Structured, Ok(len_bytes)) => writer.u32(len_bytes),
            _ => writer.u64(self.len_bytes),
        };
        Ok(())
    }

    /// What the replies to this request repeat of it.
    #[must_use]
    pub fn id(&self) -> RequestId {
        RequestId {
            cookie: self.cookie,
            offset: self.offset,
        }
    }

    /// How many bytes follow the header, whatever becomes of the request.
    ///
    /// # Errors
    ///
    /// With extended headers: a payload that is longer than any that is accepted; the client must be
    /// cut off (NBD proto, `EXTENDED_HEADERS`).
    pub fn payload_bytes(&self, style: HeaderStyle) -> Result<u32, ProtocolError> {
        let is_write = self.command == CommandCode::WRITE;
        let has_payload = match style {
            HeaderStyle::Simple | HeaderStyle::Structured => is_write,
            // The flag is not asked of a WRITE: QEMU as a client leaves it out, and as a server goes on.
            HeaderStyle::Extended => is_write || self.flags.has(CommandFlags::PAYLOAD_LEN),
        };
        if !has_payload {
            return Ok(0);
        }
        let max = match style {
            HeaderStyle::Simple | HeaderStyle::Structured => u32::MAX,
            HeaderStyle::Extended => MAX_PAYLOAD_BYTES,
        };
        match u32::try_from(self.len_bytes) {
            Ok(payload_bytes) if payload_bytes <= max => Ok(payload_bytes),
            _ => Err(ProtocolError::TooBig {
                structure: "request payload",
                value: self.len_bytes,
                max: max.into(),
            }),
        }
    }
}

const fn magic(style: HeaderStyle) -> u32 {
    match style {
        HeaderStyle::Simple | HeaderStyle::Structured => COMPACT_MAGIC,
        HeaderStyle::Extended => EXTENDED_MAGIC,
    }
}
