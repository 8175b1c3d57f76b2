//! Work on image files without a hub: what `sendense-hub export` and `sendense-hub image …` do.
// SKELETON: the face that `api` codes against; bodies come from the engine author.
use crate::{Comparison, Error};
use nbd_server::ListenAddress;
use std::path::{Path, PathBuf};

/// How the bytes of an image file are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    Raw,
    Qcow2,
}

/// An existing image file.
///
/// A format is never found from content alone: a guest can write a qcow2 header, with a backing file of its choice, into
/// its raw disk. Without `format`, magic and file name must agree, or the file is refused with a text that says `--format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub path: PathBuf,
    pub format: Option<ImageFormat>,
}

/// What one name on the wire stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// An existing image file, qcow2 (any legal feature, or a plain refusal) or raw.
    Open { source: Source, read_only: bool },
    /// A new qcow2 file; refuses to overwrite.
    Create {
        path: PathBuf,
        size_bytes: u64,
        backing: Option<Source>,
    },
    /// Accepts and forgets writes, reads as zero: for measuring the wire.
    DiscardSink { size_bytes: u64 },
}

/// A device and the export name that means it. With exactly one device the empty name means it, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedDevice {
    pub name: String,
    pub device: Device,
}

/// Devices being served; `stop` (not drop) is the orderly end.
pub struct Server;
impl Server {
    /// Where it listens, with the port that was given for port 0; same order as asked.
    pub fn local_addresses(&self) -> Vec<ListenAddress> {
        unimplemented!()
    }
    /// Stops accepting, answers what is in flight, flushes every writable image, closes.
    pub async fn stop(self) -> Result<(), Error> {
        unimplemented!()
    }
}

/// Opens every device first (a refusal comes before anything listens), then binds every address and serves.
pub async fn serve(devices: Vec<NamedDevice>, listen: &[ListenAddress]) -> Result<Server, Error> {
    unimplemented!()
}

#[derive(Debug, Clone)]
pub struct CreateImage {
    pub path: PathBuf,
    /// Absent: the size of `backing`.
    pub size_bytes: Option<u64>,
    pub cluster_size_bytes: u32,
    /// Recorded in the header as given.
    pub backing: Option<Source>,
}
/// Makes an empty qcow2 file; refuses to overwrite.
pub async fn create(image: CreateImage) -> Result<ImageFacts, Error> {
    unimplemented!()
}

/// Facts of one file of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    pub path: PathBuf,
    pub format: ImageFormat,
    pub virtual_size_bytes: u64,
    /// Length of the file.
    pub file_size_bytes: u64,
    /// Space that the filesystem has given to it.
    pub allocated_bytes: u64,
    /// The rest is `None` for raw files.
    pub cluster_size_bytes: Option<u32>,
    pub version: Option<u32>,
    pub refcount_bits: Option<u32>,
    pub backing_name: Option<String>,
    pub backing_format: Option<ImageFormat>,
    /// The hub's seal: which point this is, its parent, its change id.
    pub point_id: Option<String>,
    pub parent_id: Option<String>,
    pub change_id: Option<String>,
}
/// The chain of `tip`, tip first.
pub async fn info(tip: &Source) -> Result<Vec<ImageFacts>, Error> {
    unimplemented!()
}

pub use qcow2::CheckReport;
/// Checks one qcow2 file (no backing file is looked at).
pub async fn check(path: &Path) -> Result<CheckReport, Error> {
    unimplemented!()
}

/// One run of equal state of the guest's view; the runs cover the device from 0 without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapExtent {
    pub offset: u64,
    pub len_bytes: u64,
    /// 0 is the tip: which layer answers.
    pub depth: u32,
    /// Some layer of the chain has it (`present` of `qemu-img map`).
    pub present: bool,
    /// Reads as zero without looking at data.
    pub zero: bool,
    /// Where the data lies in that layer's file; `None` for zero, absent and compressed runs.
    pub host_offset: Option<u64>,
}
pub async fn map(tip: &Source) -> Result<Vec<MapExtent>, Error> {
    unimplemented!()
}

/// Compares what two images read as; where one is longer, its tail must be zero.
pub async fn compare(left: &Source, right: &Source) -> Result<Comparison, Error> {
    unimplemented!()
}

#[derive(Debug, Clone)]
pub struct ConvertImage {
    pub source: Source,
    pub target: PathBuf,
    pub format: ImageFormat,
    /// For a qcow2 target.
    pub cluster_size_bytes: u32,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Converted {
    pub virtual_size_bytes: u64,
    /// Bytes that were neither zero nor unallocated.
    pub written_bytes: u64,
}
/// Writes the guest's view of `source` (its whole chain) to a new thin raw file or flat qcow2; refuses to overwrite.
pub async fn convert(request: ConvertImage) -> Result<Converted, Error> {
    unimplemented!()
}
