//! What callers see of an image.

use crate::format::compression::CompressionType;
use crate::format::limits::{
    DEFAULT_CLUSTER_BITS, DEFAULT_REFCOUNT_ORDER, MAX_CACHED_L2_BYTES, MAX_CACHED_REFCOUNT_BYTES,
    MAX_DIRTY_L2_BYTES, MAX_DIRTY_REFCOUNT_BYTES, MAX_PENDING_FREES,
};
use crate::format::seal::Seal;

/// How a backing file is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackingFormat {
    /// A qcow2 image.
    Qcow2,
    /// The bytes of a disk.
    Raw,
}

impl BackingFormat {
    /// The name in the header extension.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// A backing file as the header records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingName {
    /// The name, best relative to the image; at most 1023 bytes.
    pub name: String,
    /// The format; `None` if the header does not say (the content is never guessed at).
    pub format: Option<BackingFormat>,
}

/// How to format a new image. Take [`CreateOptions::new`] for what is not named: more may come.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Bytes of the virtual disk, a multiple of 512.
    pub virtual_size_bytes: u64,
    /// A power of two, 512 B to 2 MiB; 64 KiB unless told.
    pub cluster_size_bytes: u32,
    /// What the header records; the data comes from the `Chain` given to `Image::create`.
    pub backing: Option<BackingName>,
    /// 2 or 3; 3 unless told. Version 2 has no zero clusters: zeroes over data below are stored as data.
    pub version: u32,
    /// Width of a refcount: a power of two, 1 to 64, and 16 in version 2; 16 unless told.
    pub refcount_bits: u32,
    /// How compressed clusters are compressed, if any are written; zlib unless told, and in version 2.
    pub compression: CompressionType,
}

impl CreateOptions {
    /// Options for a disk of this many bytes, all else as usual.
    pub fn new(virtual_size_bytes: u64) -> Self {
        Self {
            virtual_size_bytes,
            cluster_size_bytes: 1 << DEFAULT_CLUSTER_BITS,
            backing: None,
            version: 3,
            refcount_bits: 1 << DEFAULT_REFCOUNT_ORDER,
            compression: CompressionType::Zlib,
        }
    }
}

/// How much of its tables an image keeps in memory; the defaults are good for disks of any size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Changed L2 tables; more force a commit.
    pub dirty_l2_bytes: u64,
    /// L2 tables together, changed or not; beyond it clean ones are dropped.
    pub cached_l2_bytes: u64,
    /// Changed refcount blocks; more force a commit.
    pub dirty_refcount_bytes: u64,
    /// Refcount blocks together, changed or not; beyond it clean ones are dropped.
    pub cached_refcount_bytes: u64,
    /// Clusters that wait for a commit to be free; more force one.
    pub pending_frees: usize,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self {
            dirty_l2_bytes: MAX_DIRTY_L2_BYTES,
            cached_l2_bytes: MAX_CACHED_L2_BYTES,
            dirty_refcount_bytes: MAX_DIRTY_REFCOUNT_BYTES,
            cached_refcount_bytes: MAX_CACHED_REFCOUNT_BYTES,
            pending_frees: MAX_PENDING_FREES,
        }
    }
}

/// Counted by the image while it is written. Each byte received, as data or as a request for zeroes, is in exactly
/// one of zero, equal, stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteCounters {
    /// All bytes of successful writes and requests for zeroes.
    pub received_bytes: u64,
    /// Bytes that were zero.
    pub zero_bytes: u64,
    /// Bytes not stored because the parent has the same.
    pub equal_bytes: u64,
    /// Bytes written into the file.
    pub stored_bytes: u64,
}

/// What a range is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Data, stored in some layer.
    Data,
    /// A layer says that it is zero.
    Zero,
    /// No layer has it; it reads as zero.
    Unallocated,
    /// The layer ends before, and hides what lies below; it reads as zero.
    Beyond,
}

/// A range of the virtual disk with one kind, in one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes, never 0.
    pub len_bytes: u64,
    /// What it is.
    pub kind: ExtentKind,
    /// The layer that decides: 0 is the tip.
    pub depth: u32,
    /// Where uncompressed data lies in that layer's file, or space is kept for what is zero.
    pub host_offset: Option<u64>,
}

/// Facts of one layer.
#[derive(Debug, Clone)]
pub struct ImageInfo {
    /// Bytes of the virtual disk.
    pub virtual_size_bytes: u64,
    /// Bytes of a cluster; 0 for a raw layer.
    pub cluster_size_bytes: u32,
    /// 2 or 3; 0 for a raw layer.
    pub version: u32,
    /// Width of a refcount; 0 for a raw layer.
    pub refcount_bits: u32,
    /// How compressed clusters are compressed; `None` for a raw layer.
    pub compression: Option<CompressionType>,
    /// The backing file that the header records.
    pub backing: Option<BackingName>,
    /// The hub's facts, if the image is sealed.
    pub seal: Option<Seal>,
    /// Bytes of the file.
    pub file_size_bytes: u64,
}
