//! Reads and writes qcow2 images and backing chains on a [`Storage`].
// SKELETON of the public face that `engine` codes against; bodies and modules are the qcow2 author's.

#![allow(missing_docs, unused)]
use std::sync::Arc;

/// Positional IO on one file. Blocking: callers decide which thread waits. Object safe, shared by `Arc<dyn Storage>`.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// Fills `into` from `offset`; reaching the end early is `UnexpectedEof`.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()>;
    /// Writes all of `data` at `offset`, growing the file where needed.
    fn write_at(&self, offset: u64, data: &[u8]) -> std::io::Result<()>;
    fn len_bytes(&self) -> std::io::Result<u64>;
    fn set_len(&self, len_bytes: u64) -> std::io::Result<()>;
    /// Returns when everything written before the call is durable (fdatasync).
    fn sync(&self) -> std::io::Result<()>;
    /// A hint: begin to write this range back now, so that a later `sync` is short.
    fn start_writeback(&self, offset: u64, len_bytes: u64);
}

#[derive(Debug)]
pub struct FileStorage;
impl FileStorage {
    /// Takes an open file; the caller decided where it lives and how it was opened. Positions are never used.
    pub fn new(file: std::fs::File) -> Self {
        unimplemented!()
    }
}
impl Storage for FileStorage {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        unimplemented!()
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        unimplemented!()
    }
    fn len_bytes(&self) -> std::io::Result<u64> {
        unimplemented!()
    }
    fn set_len(&self, len_bytes: u64) -> std::io::Result<()> {
        unimplemented!()
    }
    fn sync(&self) -> std::io::Result<()> {
        unimplemented!()
    }
    fn start_writeback(&self, offset: u64, len_bytes: u64) {}
}

/// What the caller should do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    Invalid,
    Unsupported,
    Corrupt,
    OutOfRange,
    ReadOnly,
    NoSpace,
    Io,
    Refused,
    NotFound,
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    message: String,
    kind: ErrorKind,
}
impl Error {
    /// For errors made outside of this crate, by an [`Opener`].
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackingFormat {
    Qcow2,
    Raw,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingName {
    pub name: String,
    pub format: Option<BackingFormat>,
}

#[derive(Debug, Clone)]
pub struct CreateOptions {
    pub virtual_size_bytes: u64,
    /// A power of two, 512 B to 2 MiB; 64 KiB unless told.
    pub cluster_size_bytes: u32,
    /// What the header records; the data comes from the `Chain` given to `Image::create`.
    pub backing: Option<BackingName>,
}

/// The hub's facts inside an image: an unknown header extension to everyone else (JSON, versioned, kept by qemu-img).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seal {
    pub point_id: String,
    pub parent_id: Option<String>,
    pub change_id: Option<String>,
}

/// Counted by the image while it is written. Each byte received is in exactly one of zero, equal, stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteCounters {
    pub received_bytes: u64,
    pub zero_bytes: u64,
    pub equal_bytes: u64,
    pub stored_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    Data,
    Zero,
    Unallocated,
}

/// `depth`: 0 is the tip. `host_offset` is where uncompressed data lies in that layer's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub len_bytes: u64,
    pub kind: ExtentKind,
    pub depth: u32,
    pub host_offset: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct ImageInfo {
    pub virtual_size_bytes: u64,
    pub cluster_size_bytes: u32,
    pub version: u32,
    pub refcount_bits: u32,
    pub backing: Option<BackingName>,
    pub seal: Option<Seal>,
    pub file_size_bytes: u64,
}

/// One image, open for writing, on top of its parents. All methods take `&self`; share it by `Arc` among threads.
#[derive(Debug)]
pub struct Image;
impl Image {
    /// Formats an empty storage. `parent` supplies what the image does not have yet (copy-on-write, zeroes as facts).
    pub fn create(
        storage: Arc<dyn Storage>,
        options: &CreateOptions,
        parent: Option<Arc<Chain>>,
    ) -> Result<Self, Error> {
        unimplemented!()
    }
    /// Opens an existing image for writing.
    pub fn open(storage: Arc<dyn Storage>, parent: Option<Arc<Chain>>) -> Result<Self, Error> {
        unimplemented!()
    }
    pub fn info(&self) -> ImageInfo {
        unimplemented!()
    }
    pub fn virtual_size_bytes(&self) -> u64 {
        unimplemented!()
    }
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        unimplemented!()
    }
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        unimplemented!()
    }
    /// Makes a range read as zero, masking the parent; `keep_allocation` leaves the clusters allocated (NBD NO_HOLE).
    pub fn write_zeroes(
        &self,
        offset: u64,
        len_bytes: u64,
        keep_allocation: bool,
    ) -> Result<(), Error> {
        unimplemented!()
    }
    /// A commit point: everything completed before the call is durable when it returns.
    pub fn flush(&self) -> Result<(), Error> {
        unimplemented!()
    }
    /// Extents of the whole chain under this range.
    pub fn extents(&self, offset: u64, len_bytes: u64) -> Result<Vec<Extent>, Error> {
        unimplemented!()
    }
    pub fn counters(&self) -> WriteCounters {
        unimplemented!()
    }
    /// Writes the seal into the header and flushes; the image takes no writes afterwards.
    pub fn seal(&self, seal: &Seal) -> Result<(), Error> {
        unimplemented!()
    }
}

/// Decides which backing files may be opened, and opens them.
pub trait Opener {
    /// Opens `name`, which the image known as `of` records as its backing file.
    /// Returns the storage and a name that identifies the file (loops are found by it).
    fn open_backing(&self, name: &BackingName, of: &str) -> Result<OpenedBacking, Error>;
}
pub struct OpenedBacking {
    pub storage: Arc<dyn Storage>,
    pub identity: String,
    pub format: BackingFormat,
    /// The sealed hash sidecar of the layer, where the caller knows one.
    pub sidecar: Option<Arc<dyn Storage>>,
}

/// base..tip, read-only, flattened into one extent map: read cost does not grow with depth.
#[derive(Debug)]
pub struct Chain;
impl Chain {
    pub fn open(
        tip: Arc<dyn Storage>,
        identity: &str,
        format: BackingFormat,
        opener: &dyn Opener,
    ) -> Result<Self, Error> {
        unimplemented!()
    }
    pub fn virtual_size_bytes(&self) -> u64 {
        unimplemented!()
    }
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        unimplemented!()
    }
    pub fn extents(&self, offset: u64, len_bytes: u64) -> Result<Vec<Extent>, Error> {
        unimplemented!()
    }
    /// Tip first: identity and facts of each layer.
    pub fn layers(&self) -> Vec<(String, ImageInfo)> {
        unimplemented!()
    }
}

/// What `check` found in one image (no backing files looked at).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    pub corruptions: u64,
    pub leaks: u64,
    pub findings: Vec<String>,
    pub allocated_clusters: u64,
    pub total_clusters: u64,
    pub image_end_offset: u64,
}
pub fn check(storage: &dyn Storage) -> Result<CheckReport, Error> {
    unimplemented!()
}
