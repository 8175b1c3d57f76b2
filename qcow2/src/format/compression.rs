//! How compressed clusters are compressed (qcow2 spec, "Header", `compression_type`).

use crate::error::{Error, unsupported};

/// How the compressed clusters of an image are compressed: one way for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CompressionType {
    /// Raw deflate with a window of 12 bits, which every reader of qcow2 knows.
    #[default]
    Zlib,
    /// zstd frames: faster and smaller, known to QEMU from 5.1 on.
    Zstd,
}

impl CompressionType {
    /// The type with a number in the header.
    ///
    /// # Errors
    /// `Unsupported` for a number that has no meaning.
    pub fn parse(raw: u8) -> Result<Self, Error> {
        match raw {
            0 => Ok(Self::Zlib),
            1 => Ok(Self::Zstd),
            _ => Err(unsupported(format!(
                "unknown compression type: compression_type={raw}"
            ))),
        }
    }

    /// Its number in the header.
    pub fn raw(self) -> u8 {
        match self {
            Self::Zlib => 0,
            Self::Zstd => 1,
        }
    }

    /// Its name, as QEMU has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}
