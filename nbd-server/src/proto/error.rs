use super::types::{NameError, ReplyCode};

/// Why bytes of the peer could not be understood.
///
/// Inside an option it is answered by `NBD_REP_ERR_INVALID`; elsewhere the stream has lost its
/// frame and the connection ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A structure ends before its last field.
    #[error("truncated structure structure={structure} offset={offset} need={need} have={have}")]
    Truncated {
        /// Which structure.
        structure: &'static str,
        /// Where in it the missing field begins.
        offset: usize,
        /// Bytes the field takes.
        need: usize,
        /// Bytes that were left.
        have: usize,
    },
    /// Bytes follow where a structure should have ended.
    #[error("trailing bytes structure={structure} count={count}")]
    Trailing {
        /// Which structure.
        structure: &'static str,
        /// How many bytes too many.
        count: usize,
    },
    /// A magic number is another one.
    #[error("bad magic structure={structure} expected={expected:#x} found={found:#x}")]
    BadMagic {
        /// Which structure.
        structure: &'static str,
        /// What the specification says.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// A length or count exceeds its bound.
    #[error("over the limit structure={structure} value={value} max={max}")]
    TooBig {
        /// Which structure and field.
        structure: &'static str,
        /// What was announced.
        value: u64,
        /// The bound (see [`super::limits`]).
        max: u64,
    },
    /// A string that must be UTF-8 is not, or holds a NUL.
    #[error("not a valid string structure={structure}")]
    NotText {
        /// Which structure.
        structure: &'static str,
    },
    /// The client set flags that were not offered (NBD proto, "Client flags": drop the connection).
    #[error("unknown client flags flags={flags:#x}")]
    ClientFlags {
        /// All flags of the client.
        flags: u32,
    },
    /// More came behind STARTTLS, without waiting for its answer: somebody on the line wants it to be
    /// heard as if it had come through TLS.
    #[error("plaintext follows STARTTLS count={count}")]
    PlaintextAfterStartTls {
        /// How many bytes were there already.
        count: usize,
    },
    /// More options than a client that wants an export needs.
    #[error("too many options before an export was chosen max={max}")]
    TooManyOptions {
        /// The bound.
        max: u32,
    },
    /// A field has a value that is not allowed there.
    #[error("unexpected value structure={structure} field={field} value={value}")]
    Unexpected {
        /// Which structure.
        structure: &'static str,
        /// Which field.
        field: &'static str,
        /// What came.
        value: u64,
    },
    /// The server refused an option that the client cannot do without.
    #[error("refused by the server option={option} reply={reply} text={text:?}")]
    Refused {
        /// The option, by name.
        option: String,
        /// The server's reason.
        reply: ReplyCode,
        /// The server's words.
        text: String,
    },
}

impl From<NameError> for ProtocolError {
    fn from(error: NameError) -> Self {
        match error {
            NameError::TooLong { len_bytes, max } => Self::TooBig {
                structure: "export name",
                value: u64::try_from(len_bytes).unwrap_or(u64::MAX),
                max: u64::try_from(max).unwrap_or(u64::MAX),
            },
            NameError::NotText => Self::NotText {
                structure: "export name",
            },
        }
    }
}
