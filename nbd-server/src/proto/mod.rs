//! The protocol without any IO: bytes in, decisions out.
//!
//! Nothing here knows sockets, clocks or tasks; `cargo check --no-default-features` keeps it so.
//! In reading order:

pub mod limits;
mod types;
mod wire;

mod error;
mod option;
mod reply;
mod request;

mod admission;
mod handshake;
mod negotiated;

pub mod client;

pub use admission::{Command, Refused, admit};
pub use error::ProtocolError;
pub use handshake::{ExportPurpose, Handshake, Refusal, Step};
pub use negotiated::Negotiated;
pub use option::{
    ClientOption, Info, InfoRequest, MetaQuery, OptionHeader, OptionReply, OptionReplyHeader,
};
pub use reply::{
    ChunkHeader, Head, ReplyHeader, ReplyPreamble, block_status_payload, error_payload,
};
pub use request::Request;
pub use types::{
    BASE_ALLOCATION, BlockDescriptor, ByteRange, ChunkFlags, ChunkKind, ClientFlags, CommandCode,
    CommandFlags, ContextId, Cookie, ErrorCode, ExportInfo, ExportName, Extent, HandshakeFlags,
    InfoKind, NameError, OptionCode, ReplyCode, TransmissionFlags, Zero,
};
