//! The words of the protocol. Unknown values survive: they are refused by number, not lost.

use std::fmt;

use super::context::MetaContext;
use super::limits;

/// Wire codes: a number with named values, which prints its name where it has one.
macro_rules! codes {
    ($(#[$doc:meta])* $type:ident($repr:ty) { $($(#[$value_doc:meta])* $name:ident = $value:expr, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(pub $repr);

        impl $type {
            $($(#[$value_doc])* pub const $name: Self = Self($value);)*
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(Self::$name => f.write_str($text),)*
                    Self(other) => write!(f, "{other:#x}"),
                }
            }
        }
    };
}

/// Wire flags: a set of bits with named members.
macro_rules! flags {
    ($(#[$doc:meta])* $type:ident($repr:ty) { $($(#[$value_doc:meta])* $name:ident = $bit:expr;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $type(pub $repr);

        impl $type {
            /// No flag.
            pub const EMPTY: Self = Self(0);
            $($(#[$value_doc])* pub const $name: Self = Self(1 << $bit);)*

            /// Whether every flag of `other` is set.
            #[must_use]
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The flags of both.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The flags of both when `condition` holds.
            #[must_use]
            pub const fn with_if(self, condition: bool, other: Self) -> Self {
                if condition { self.with(other) } else { self }
            }

            /// The flags that are not among `other`.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// Whether no flag is set.
            #[must_use]
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }
        }
    };
}

flags! {
    /// What the server offers before anything else (NBD proto, "Handshake flags").
    HandshakeFlags(u16) {
        /// Options can be refused without losing the connection.
        FIXED_NEWSTYLE = 0;
        /// The 124 zero bytes after `NBD_OPT_EXPORT_NAME` can be left out.
        NO_ZEROES = 1;
    }
}

flags! {
    /// The client's answer to [`HandshakeFlags`] (NBD proto, "Client flags").
    ClientFlags(u32) {
        /// The client speaks fixed newstyle.
        FIXED_NEWSTYLE = 0;
        /// The client does not want the 124 zero bytes.
        NO_ZEROES = 1;
    }
}

flags! {
    /// What an export can do (NBD proto, "Transmission flags").
    TransmissionFlags(u16) {
        /// Always set.
        HAS_FLAGS = 0;
        /// Writing commands are refused.
        READ_ONLY = 1;
        /// FLUSH is understood.
        SEND_FLUSH = 2;
        /// The FUA flag is understood.
        SEND_FUA = 3;
        /// Seeks are slow.
        ROTATIONAL = 4;
        /// TRIM is understood.
        SEND_TRIM = 5;
        /// `WRITE_ZEROES` is understood.
        SEND_WRITE_ZEROES = 6;
        /// The DF flag is understood.
        SEND_DF = 7;
        /// A flush on one connection covers the completed writes of all.
        CAN_MULTI_CONN = 8;
        /// Resizing is understood.
        SEND_RESIZE = 9;
        /// CACHE is understood.
        SEND_CACHE = 10;
        /// The `FAST_ZERO` flag is understood.
        SEND_FAST_ZERO = 11;
        /// `BLOCK_STATUS` takes a payload that picks contexts (extended headers only).
        BLOCK_STATUS_PAYLOAD = 12;
    }
}

flags! {
    /// Modifiers of one request (NBD proto, "Command flags").
    CommandFlags(u16) {
        /// Answer when the data is durable.
        FUA = 0;
        /// Zeroes leave an allocation behind.
        NO_HOLE = 1;
        /// The reply has one data chunk at most.
        DF = 2;
        /// One block descriptor is enough.
        REQ_ONE = 3;
        /// Fail at once rather than zero slowly.
        FAST_ZERO = 4;
        /// The length is that of a payload (extended headers only).
        PAYLOAD_LEN = 5;
    }
}

flags! {
    /// Flags of a structured reply chunk.
    ChunkFlags(u16) {
        /// The last chunk of its request.
        DONE = 0;
    }
}

codes! {
    /// An option of the client (NBD proto, "Option types").
    OptionCode(u32) {
        /// Choose an export, the old way: no error can be told.
        EXPORT_NAME = 1, "EXPORT_NAME";
        /// The client gives up.
        ABORT = 2, "ABORT";
        /// Names of the exports.
        LIST = 3, "LIST";
        /// Withdrawn.
        PEEK_EXPORT = 4, "PEEK_EXPORT";
        /// Continue in TLS.
        STARTTLS = 5, "STARTTLS";
        /// Tell about an export.
        INFO = 6, "INFO";
        /// Tell about an export and begin transmission.
        GO = 7, "GO";
        /// Structured replies from now on.
        STRUCTURED_REPLY = 8, "STRUCTURED_REPLY";
        /// Which metadata contexts exist.
        LIST_META_CONTEXT = 9, "LIST_META_CONTEXT";
        /// Which metadata contexts the client will ask for.
        SET_META_CONTEXT = 10, "SET_META_CONTEXT";
        /// 64-bit lengths.
        EXTENDED_HEADERS = 11, "EXTENDED_HEADERS";
    }
}

codes! {
    /// The kind of an option reply (NBD proto, "Option reply types").
    ReplyCode(u32) {
        /// Done, or accepted.
        ACK = 1, "ACK";
        /// One export of a listing.
        SERVER = 2, "SERVER";
        /// One piece of information about an export.
        INFO = 3, "INFO";
        /// One metadata context.
        META_CONTEXT = 4, "META_CONTEXT";
        /// The option is not known here.
        ERR_UNSUP = 0x8000_0001, "ERR_UNSUP";
        /// Known, but forbidden.
        ERR_POLICY = 0x8000_0002, "ERR_POLICY";
        /// Known, but malformed.
        ERR_INVALID = 0x8000_0003, "ERR_INVALID";
        /// Not on this platform.
        ERR_PLATFORM = 0x8000_0004, "ERR_PLATFORM";
        /// TLS first.
        ERR_TLS_REQD = 0x8000_0005, "ERR_TLS_REQD";
        /// No such export.
        ERR_UNKNOWN = 0x8000_0006, "ERR_UNKNOWN";
        /// The server is going down.
        ERR_SHUTDOWN = 0x8000_0007, "ERR_SHUTDOWN";
        /// Ask for the block size first.
        ERR_BLOCK_SIZE_REQD = 0x8000_0008, "ERR_BLOCK_SIZE_REQD";
        /// The option is too long.
        ERR_TOO_BIG = 0x8000_0009, "ERR_TOO_BIG";
        /// Extended headers are agreed, or come first.
        ERR_EXT_HEADER_REQD = 0x8000_000a, "ERR_EXT_HEADER_REQD";
    }
}

impl ReplyCode {
    /// Whether this reply refuses the option.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & 0x8000_0000 != 0
    }
}

codes! {
    /// What an `NBD_REP_INFO` is about.
    InfoKind(u16) {
        /// Size and transmission flags.
        EXPORT = 0, "EXPORT";
        /// The canonical name.
        NAME = 1, "NAME";
        /// A sentence for humans.
        DESCRIPTION = 2, "DESCRIPTION";
        /// Minimum, preferred and maximum block size.
        BLOCK_SIZE = 3, "BLOCK_SIZE";
    }
}

codes! {
    /// The type of a request (NBD proto, "Request types").
    CommandCode(u16) {
        /// Read a range.
        READ = 0, "READ";
        /// Write the payload.
        WRITE = 1, "WRITE";
        /// The client leaves.
        DISC = 2, "DISC";
        /// Make completed writes durable.
        FLUSH = 3, "FLUSH";
        /// A range is no longer needed.
        TRIM = 4, "TRIM";
        /// Read ahead.
        CACHE = 5, "CACHE";
        /// Zero a range.
        WRITE_ZEROES = 6, "WRITE_ZEROES";
        /// Which parts of a range are allocated.
        BLOCK_STATUS = 7, "BLOCK_STATUS";
        /// Change the size.
        RESIZE = 8, "RESIZE";
    }
}

codes! {
    /// The type of a structured reply chunk (NBD proto, "Structured reply types").
    ChunkKind(u16) {
        /// Nothing to say.
        NONE = 0, "NONE";
        /// Data at an offset.
        OFFSET_DATA = 1, "OFFSET_DATA";
        /// Zeroes at an offset.
        OFFSET_HOLE = 2, "OFFSET_HOLE";
        /// Block descriptors of one context.
        BLOCK_STATUS = 5, "BLOCK_STATUS";
        /// Block descriptors of one context, 64 bits wide.
        BLOCK_STATUS_EXT = 6, "BLOCK_STATUS_EXT";
        /// An error.
        ERROR = 0x8001, "ERROR";
        /// An error at an offset.
        ERROR_OFFSET = 0x8002, "ERROR_OFFSET";
    }
}

impl ChunkKind {
    /// Whether the request failed.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & 0x8000 != 0
    }

    /// The kind that carries block descriptors in this style; only one of them is allowed.
    #[must_use]
    pub const fn block_status(style: HeaderStyle) -> Self {
        match style {
            HeaderStyle::Simple | HeaderStyle::Structured => Self::BLOCK_STATUS,
            HeaderStyle::Extended => Self::BLOCK_STATUS_EXT,
        }
    }
}

codes! {
    /// An error as the client is told (NBD proto, "Error values").
    ErrorCode(u32) {
        /// No error, in a simple reply.
        NONE = 0, "success";
        /// Not permitted: the export is read-only.
        PERM = 1, "EPERM";
        /// Input or output failed.
        IO = 5, "EIO";
        /// Out of memory.
        NOMEM = 12, "ENOMEM";
        /// The request makes no sense.
        INVAL = 22, "EINVAL";
        /// No space, or beyond the end of the device.
        NOSPC = 28, "ENOSPC";
        /// Too large for one unfragmented reply.
        OVERFLOW = 75, "EOVERFLOW";
        /// Not possible, or not fast.
        NOTSUP = 95, "ENOTSUP";
        /// The server, or this export, is going away.
        SHUTDOWN = 108, "ESHUTDOWN";
    }
}

/// The client's name for a request; it comes back in the reply and means nothing to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

/// What a reply repeats of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId {
    /// The client's name for it.
    pub cookie: Cookie,
    /// Where the request begins; only extended headers repeat it.
    pub offset: u64,
}

/// How requests and replies begin, as the handshake has settled it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HeaderStyle {
    /// Compact requests; every answer is one simple reply.
    Simple,
    /// Compact requests; READ, `BLOCK_STATUS` and errors are answered in chunks.
    Structured,
    /// 64-bit lengths; every answer comes in chunks (NBD proto, extension `EXTENDED_HEADERS`).
    Extended,
}

impl HeaderStyle {
    /// Whether answers may come in chunks.
    #[must_use]
    pub const fn has_chunks(self) -> bool {
        !matches!(self, Self::Simple)
    }

    /// Length of a request header.
    #[must_use]
    pub const fn request_bytes(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 28,
            Self::Extended => 32,
        }
    }
}

/// Why a string is no export name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Longer than the specification allows.
    #[error("export name too long len_bytes={len_bytes} max={max}")]
    TooLong {
        /// Its length.
        len_bytes: usize,
        /// The bound.
        max: usize,
    },
    /// Holds a NUL, or is not UTF-8.
    #[error("export name is not a string without NUL")]
    NotText,
}

/// The name of an export: UTF-8 without NUL, at most 4096 bytes; the empty name means the default.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExportName(String);

impl ExportName {
    /// The name, when it is one.
    ///
    /// # Errors
    ///
    /// The string is longer than 4096 bytes or holds a NUL.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        if name.len() > limits::MAX_STRING_BYTES {
            return Err(NameError::TooLong {
                len_bytes: name.len(),
                max: limits::MAX_STRING_BYTES,
            });
        }
        if name.contains('\0') {
            return Err(NameError::NotText);
        }
        Ok(Self(name))
    }

    /// The name as the client wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ExportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A part of a device. `offset + len_bytes` never overflows and lies inside the device: whoever
/// makes one has checked it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Length in bytes; may be 0.
    pub len_bytes: u64,
}

impl ByteRange {
    /// The first byte after the range.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.offset + self.len_bytes
    }

    /// What follows `part`, which is at the front of the range.
    #[must_use]
    pub const fn after(self, part: Self) -> Self {
        Self {
            offset: part.end(),
            len_bytes: self.end() - part.end(),
        }
    }

    /// The range in order, cut at multiples of `piece_bytes` (not 0).
    pub fn pieces(self, piece_bytes: u32) -> impl Iterator<Item = Self> + Send {
        let piece_bytes = u64::from(piece_bytes);
        let mut next = self.offset;
        std::iter::from_fn(move || {
            let left = self.end() - next;
            if left == 0 {
                return None;
            }
            let len_bytes = left.min(piece_bytes - next % piece_bytes);
            let piece = Self {
                offset: next,
                len_bytes,
            };
            next += len_bytes;
            Some(piece)
        })
    }
}

/// What a client is told about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size of the device.
    pub size_bytes: u64,
    /// Writing commands are refused before they reach the export.
    pub read_only: bool,
    /// FLUSH on one connection covers the completed writes of all.
    pub multi_conn: bool,
    /// Zeroing that may leave a hole is always quicker than writing the zeroes. Then `FAST_ZERO` is
    /// offered; together with `NO_HOLE` it is still refused, because allocating is not fast.
    pub fast_zero: bool,
    /// A sentence for humans; empty for none.
    pub description: String,
    /// What block status can be asked about; the number of a context on the wire is its place here.
    pub contexts: Vec<MetaContext>,
}

/// What zeroing may leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zero {
    /// A hole may be made.
    MayUnmap,
    /// An allocation stays (`NBD_CMD_FLAG_NO_HOLE`).
    KeepAllocated,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_at_multiples() {
        let cut = |offset, len_bytes| {
            ByteRange { offset, len_bytes }
                .pieces(100)
                .map(|p| (p.offset, p.len_bytes))
                .collect::<Vec<_>>()
        };
        assert_eq!(cut(50, 0), []);
        assert_eq!(cut(50, 50), [(50, 50)]);
        assert_eq!(cut(50, 151), [(50, 50), (100, 100), (200, 1)]);
        let top = u64::MAX - 10;
        assert_eq!(cut(top, 10).iter().map(|p| p.1).sum::<u64>(), 10);
    }

    #[test]
    fn what_follows_a_part_is_the_rest() {
        let range = |offset, len_bytes| ByteRange { offset, len_bytes };
        assert_eq!(range(50, 100).after(range(50, 30)), range(80, 70));
        assert_eq!(range(50, 100).after(range(50, 100)), range(150, 0));
    }

    #[test]
    fn unknown_codes_print_their_number() {
        assert_eq!(OptionCode::GO.to_string(), "GO");
        assert_eq!(OptionCode(77).to_string(), "0x4d");
        assert!(ReplyCode::ERR_TOO_BIG.is_error());
        assert!(!ReplyCode::ACK.is_error());
    }

    #[test]
    fn names_are_bounded_text() {
        assert!(ExportName::new("").is_ok());
        assert!(ExportName::new("x".repeat(4096)).is_ok());
        assert!(matches!(
            ExportName::new("x".repeat(4097)),
            Err(NameError::TooLong { .. })
        ));
        assert_eq!(ExportName::new("a\0b"), Err(NameError::NotText));
    }
}
