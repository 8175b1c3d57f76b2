//! Options of the client and replies of the server, both ways, so that each side can be tested
//! against the other (NBD proto, "Fixed newstyle negotiation").

use bytes::BytesMut;

use super::context::ContextId;
use super::error::ProtocolError;
use super::limits::{MAX_OPTION_REPLY_BYTES, MAX_STRING_BYTES};
use super::types::{ExportName, InfoKind, OptionCode, ReplyCode, TransmissionFlags};
use super::wire::{Reader, Writer, len_u32};

/// `IHAVEOPT`.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before each option reply.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// The fixed part of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub code: OptionCode,
    /// Length of the payload that follows.
    pub len_bytes: u32,
}

impl OptionHeader {
    /// Length on the wire.
    pub const BYTES: usize = 16;

    /// Reads a header.
    ///
    /// # Errors
    ///
    /// The magic is wrong or bytes are missing: the stream has lost its frame.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new("option header", bytes);
        reader.magic_u64(OPTION_MAGIC)?;
        let header = Self {
            code: OptionCode(reader.u32()?),
            len_bytes: reader.u32()?,
        };
        reader.finish()?;
        Ok(header)
    }
}

/// The payload of INFO and GO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest {
    /// Which export.
    pub name: ExportName,
    /// What the client wants to know beside the size.
    pub kinds: Vec<InfoKind>,
}

/// The payload of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaQuery {
    /// Which export.
    pub name: ExportName,
    /// Context names or patterns.
    pub queries: Vec<String>,
}

/// An option, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientOption {
    /// Choose an export, the old way.
    ExportName(ExportName),
    /// The client gives up.
    Abort,
    /// Names of the exports.
    List,
    /// TLS from now on.
    StartTls,
    /// Structured replies from now on.
    StructuredReply,
    /// 64-bit lengths from now on.
    ExtendedHeaders,
    /// Tell about an export.
    Info(InfoRequest),
    /// Tell about an export and begin transmission.
    Go(InfoRequest),
    /// Which metadata contexts exist.
    ListMetaContext(MetaQuery),
    /// Which metadata contexts the client will ask for.
    SetMetaContext(MetaQuery),
    /// An option that this server does not have; its payload is not looked at.
    Unsupported(OptionCode),
}

impl ClientOption {
    /// Reads the payload of an option.
    ///
    /// # Errors
    ///
    /// The payload is malformed; the stream is still in frame.
    pub fn parse(code: OptionCode, payload: &[u8]) -> Result<Self, ProtocolError> {
        Ok(match code {
            OptionCode::EXPORT_NAME => {
                let mut reader = Reader::new("EXPORT_NAME option", payload);
                Self::ExportName(ExportName::new(reader.text(payload.len())?)?)
            }
            // The client leaves; a payload would not change that.
            OptionCode::ABORT => Self::Abort,
            OptionCode::LIST => empty("LIST option", payload, Self::List)?,
            OptionCode::STARTTLS => empty("STARTTLS option", payload, Self::StartTls)?,
            OptionCode::STRUCTURED_REPLY => {
                empty("STRUCTURED_REPLY option", payload, Self::StructuredReply)?
            }
            OptionCode::EXTENDED_HEADERS => {
                empty("EXTENDED_HEADERS option", payload, Self::ExtendedHeaders)?
            }
            OptionCode::INFO => Self::Info(InfoRequest::parse("INFO option", payload)?),
            OptionCode::GO => Self::Go(InfoRequest::parse("GO option", payload)?),
            OptionCode::LIST_META_CONTEXT => {
                Self::ListMetaContext(MetaQuery::parse("LIST_META_CONTEXT option", payload)?)
            }
            OptionCode::SET_META_CONTEXT => {
                Self::SetMetaContext(MetaQuery::parse("SET_META_CONTEXT option", payload)?)
            }
            other => Self::Unsupported(other),
        })
    }

    /// The number of this option.
    #[must_use]
    pub const fn code(&self) -> OptionCode {
        match self {
            Self::ExportName(_) => OptionCode::EXPORT_NAME,
            Self::Abort => OptionCode::ABORT,
            Self::List => OptionCode::LIST,
            Self::StartTls => OptionCode::STARTTLS,
            Self::StructuredReply => OptionCode::STRUCTURED_REPLY,
            Self::ExtendedHeaders => OptionCode::EXTENDED_HEADERS,
            Self::Info(_) => OptionCode::INFO,
            Self::Go(_) => OptionCode::GO,
            Self::ListMetaContext(_) => OptionCode::LIST_META_CONTEXT,
            Self::SetMetaContext(_) => OptionCode::SET_META_CONTEXT,
            Self::Unsupported(code) => *code,
        }
    }

    /// Appends header and payload.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut payload = BytesMut::new();
        let mut writer = Writer::new(&mut payload);
        match self {
            Self::ExportName(name) => {
                writer.bytes(name.as_str().as_bytes());
            }
            Self::Info(request) | Self::Go(request) => request.encode(&mut writer),
            Self::ListMetaContext(query) | Self::SetMetaContext(query) => {
                query.encode(&mut writer);
            }
            Self::Abort
            | Self::List
            | Self::StartTls
            | Self::StructuredReply
            | Self::ExtendedHeaders
            | Self::Unsupported(_) => {}
        }
        Writer::new(out)
            .u64(OPTION_MAGIC)
            .u32(self.code().0)
            .u32(len_u32(payload.len()))
            .bytes(&payload);
    }
}

fn empty(
    structure: &'static str,
    payload: &[u8],
    option: ClientOption,
) -> Result<ClientOption, ProtocolError> {
    Reader::new(structure, payload).finish()?;
    Ok(option)
}

impl InfoRequest {
    fn parse(structure: &'static str, payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new(structure, payload);
        let name = ExportName::new(reader.counted_text(MAX_STRING_BYTES)?)?;
        let count = reader.u16()?;
        // The payload is bounded, so that a large count ends in a missing byte, not in a large list.
        let mut kinds = Vec::new();
        for _ in 0..count {
            kinds.push(InfoKind(reader.u16()?));
        }
        reader.finish()?;
        Ok(Self { name, kinds })
    }

    fn encode(&self, writer: &mut Writer<'_>) {
        let count = u16::try_from(self.kinds.len()).unwrap_or(u16::MAX);
        writer.counted_text(self.name.as_str()).u16(count);
        for kind in self.kinds.iter().take(count.into()) {
            writer.u16(kind.0);
        }
    }
}

impl MetaQuery {
    fn parse(structure: &'static str, payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new(structure, payload);
        let name = ExportName::new(reader.counted_text(MAX_STRING_BYTES)?)?;
        let count = reader.u32()?;
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(reader.counted_text(MAX_STRING_BYTES)?.to_owned());
        }
        reader.finish()?;
        Ok(Self { name, queries })
    }

    fn encode(&self, writer: &mut Writer<'_>) {
        writer
            .counted_text(self.name.as_str())
            .u32(len_u32(self.queries.len()));
        for query in &self.queries {
            writer.counted_text(query);
        }
    }
}

/// One `NBD_REP_INFO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Info {
    /// Size and abilities.
    Export {
        /// Size of the device.
        size_bytes: u64,
        /// What it can do.
        flags: TransmissionFlags,
    },
    /// The canonical name.
    Name(String),
    /// A sentence for humans.
    Description(String),
    /// Block sizes in bytes.
    BlockSize {
        /// Alignment that requests must have.
        minimum: u32,
        /// Alignment that is quick.
        preferred: u32,
        /// Longest payload.
        maximum: u32,
    },
    /// Something newer.
    Other(InfoKind),
}

impl Info {
    fn encode(&self, writer: &mut Writer<'_>) {
        match self {
            Self::Export { size_bytes, flags } => {
                writer.u16(InfoKind::EXPORT.0).u64(*size_bytes).u16(flags.0);
            }
            Self::Name(text) => {
                writer.u16(InfoKind::NAME.0).bytes(text.as_bytes());
            }
            Self::Description(text) => {
                writer.u16(InfoKind::DESCRIPTION.0).bytes(text.as_bytes());
            }
            Self::BlockSize {
                minimum,
                preferred,
                maximum,
            } => {
                writer
                    .u16(InfoKind::BLOCK_SIZE.0)
                    .u32(*minimum)
                    .u32(*preferred)
                    .u32(*maximum);
            }
            Self::Other(kind) => {
                writer.u16(kind.0);
            }
        }
    }

    fn parse(mut reader: Reader<'_>) -> Result<Self, ProtocolError> {
        let info = match InfoKind(reader.u16()?) {
            InfoKind::EXPORT => Self::Export {
                size_bytes: reader.u64()?,
                flags: TransmissionFlags(reader.u16()?),
            },
            InfoKind::NAME => Self::Name(rest_text(&mut reader)?),
            InfoKind::DESCRIPTION => Self::Description(rest_text(&mut reader)?),
            InfoKind::BLOCK_SIZE => Self::BlockSize {
                minimum: reader.u32()?,
                preferred: reader.u32()?,
                maximum: reader.u32()?,
            },
            other => {
                reader.take_rest();
                Self::Other(other)
            }
        };
        reader.finish()?;
        Ok(info)
    }
}

fn rest_text(reader: &mut Reader<'_>) -> Result<String, ProtocolError> {
    let len = reader.remaining();
    Ok(reader.text(len)?.to_owned())
}

/// The fixed part of an option reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// Which option is answered.
    pub option: OptionCode,
    /// What kind of answer.
    pub code: ReplyCode,
    /// Length of the payload that follows.
    pub len_bytes: u32,
}

impl OptionReplyHeader {
    /// Length on the wire.
    pub const BYTES: usize = 20;

    /// Reads a header.
    ///
    /// # Errors
    ///
    /// The magic is wrong, bytes are missing, or the payload exceeds
    /// [`MAX_OPTION_REPLY_BYTES`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new("option reply header", bytes);
        reader.magic_u64(OPTION_REPLY_MAGIC)?;
        let header = Self {
            option: OptionCode(reader.u32()?),
            code: ReplyCode(reader.u32()?),
            len_bytes: reader.u32()?,
        };
        reader.finish()?;
        if header.len_bytes > MAX_OPTION_REPLY_BYTES {
            return Err(ProtocolError::TooBig {
                structure: "option reply payload",
                value: header.len_bytes.into(),
                max: MAX_OPTION_REPLY_BYTES.into(),
            });
        }
        Ok(header)
    }
}

/// An answer to an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionReply {
    /// Done, or accepted.
    Ack,
    /// One export of a listing.
    Server {
        /// Its name, as the server sends it.
        name: String,
        /// Details for humans; empty for none.
        details: String,
    },
    /// One piece of information.
    Info(Info),
    /// One metadata context.
    MetaContext {
        /// The number used in block status replies.
        id: ContextId,
        /// Its name.
        name: String,
    },
    /// The option is refused.
    Error {
        /// Why, by number.
        code: ReplyCode,
        /// Why, in words.
        text: String,
    },
    /// Something newer that is no error.
    Other(ReplyCode),
}

impl OptionReply {
    /// The number of this kind of reply.
    #[must_use]
    pub const fn code(&self) -> ReplyCode {
        match self {
            Self::Ack => ReplyCode::ACK,
            Self::Server { .. } => ReplyCode::SERVER,
            Self::Info(_) => ReplyCode::INFO,
            Self::MetaContext { .. } => ReplyCode::META_CONTEXT,
            Self::Error { code, .. } | Self::Other(code) => *code,
        }
    }

    /// Appends header and payload; texts are cut at 4096 bytes.
    pub fn encode(&self, option: OptionCode, out: &mut BytesMut) {
        let mut payload = BytesMut::new();
        let mut writer = Writer::new(&mut payload);
        match self {
            Self::Ack | Self::Other(_) => {}
            Self::Server { name, details } => {
                writer
                    .counted_text(clip(name))
                    .bytes(clip(details).as_bytes());
            }
            Self::Info(info) => info.encode(&mut writer),
            Self::MetaContext { id, name } => {
                writer.u32(id.0).bytes(clip(name).as_bytes());
            }
            Self::Error { text, .. } => {
                writer.bytes(clip(text).as_bytes());
            }
        }
        Writer::new(out)
            .u64(OPTION_REPLY_MAGIC)
            .u32(option.0)
            .u32(self.code().0)
            .u32(len_u32(payload.len()))
            .bytes(&payload);
    }

    /// Reads the payload of a reply.
    ///
    /// # Errors
    ///
    /// The payload is malformed.
    pub fn parse(code: ReplyCode, payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new("option reply", payload);
        Ok(match code {
            ReplyCode::ACK => {
                reader.finish()?;
                Self::Ack
            }
            ReplyCode::SERVER => {
                let name = reader.counted_text(MAX_STRING_BYTES)?.to_owned();
                Self::Server {
                    name,
                    details: rest_text(&mut reader)?,
                }
            }
            ReplyCode::INFO => Self::Info(Info::parse(reader)?),
            ReplyCode::META_CONTEXT => {
                let id = ContextId(reader.u32()?);
                Self::MetaContext {
                    id,
                    name: rest_text(&mut reader)?,
                }
            }
            code if code.is_error() => {
                let text = String::from_utf8_lossy(reader.take_rest()).into_owned();
                Self::Error { code, text }
            }
            code => Self::Other(code),
        })
    }
}

/// The longest prefix that a string field may hold.
pub(crate) fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_STRING_BYTES)]
}
