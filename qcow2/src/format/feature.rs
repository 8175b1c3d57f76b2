//! Feature bits of version 3 (qcow2 spec, "Header").

/// Refcounts may be wrong: an image that was not closed by a writer with lazy refcounts.
pub const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
/// A writer saw that the image is corrupt.
pub const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
/// Guest data lives in another file.
pub const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;
/// Compressed clusters are not zlib; the header names the type.
pub const INCOMPATIBLE_COMPRESSION_TYPE: u64 = 1 << 3;
/// L2 entries are 128 bits wide and describe subclusters.
pub const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// Bits that this crate understands; images with any other are refused.
pub const INCOMPATIBLE_KNOWN: u64 =
    INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT | INCOMPATIBLE_COMPRESSION_TYPE;

/// Persistent bitmaps are consistent with the data. Cleared by every writer that does not keep them.
pub const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
