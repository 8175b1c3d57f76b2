//! The protocol without any IO: bytes in, decisions out.
//!
//! Nothing here knows sockets, clocks or tasks; `cargo check --no-default-features` keeps it so.
//! In reading order:

mod context;
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

pub use admission::{Command, Refused, admit, admit_filtered};
pub use context::{
    ALLOCATION_DEPTH, BASE_ALLOCATION, BlockDescriptor, ContextId, Extent, MetaContext,
    SelectedContext,
};
pub use error::ProtocolError;
pub use handshake::{ExportPurpose, Handshake, Offer, Refusal, Step, TlsPolicy};
pub use negotiated::Negotiated;
pub use option::{
    ClientOption, Info, InfoRequest, MetaQuery, OptionHeader, OptionReply, OptionReplyHeader,
};
pub use reply::{
    ChunkHeader, Head, ReplyHeader, ReplyPreamble, block_status_payload, error_payload,
};
pub use request::Request;
pub use types::{
    ByteRange, ChunkFlags, ChunkKind, ClientFlags, CommandCode, CommandFlags, Cookie, ErrorCode,
    ExportInfo, ExportName, HandshakeFlags, HeaderStyle, InfoKind, NameError, OptionCode,
    ReplyCode, RequestId, TransmissionFlags, Zero,
};
