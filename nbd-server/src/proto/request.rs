use super::error::ProtocolError;
use super::types::{CommandCode, CommandFlags, Cookie};
use super::wire::{ArrayWriter, Reader};

/// Before each request.
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;

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
    /// Length in bytes; of the payload, too, when this is a WRITE.
    pub len_bytes: u32,
}

impl Request {
    /// Length on the wire.
    pub const BYTES: usize = 28;

    /// Reads a header (NBD proto, "Request message").
    ///
    /// # Errors
    ///
    /// The magic is wrong or bytes are missing: the stream has lost its frame.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new("request", bytes);
        reader.magic_u32(REQUEST_MAGIC)?;
        let request = Self {
            flags: CommandFlags(reader.u16()?),
            command: CommandCode(reader.u16()?),
            cookie: Cookie(reader.u64()?),
            offset: reader.u64()?,
            len_bytes: reader.u32()?,
        };
        reader.finish()?;
        Ok(request)
    }

    /// The header as bytes; the payload of a WRITE follows it on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        ArrayWriter::new()
            .u32(REQUEST_MAGIC)
            .u16(self.flags.0)
            .u16(self.command.0)
            .u64(self.cookie.0)
            .u64(self.offset)
            .u32(self.len_bytes)
            .finish()
            .0
    }

    /// How many bytes follow the header, whatever becomes of the request.
    #[must_use]
    pub fn payload_bytes(&self) -> u32 {
        if self.command == CommandCode::WRITE {
            self.len_bytes
        } else {
            0
        }
    }
}
