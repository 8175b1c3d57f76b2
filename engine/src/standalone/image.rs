//! Makes, describes, checks, maps, compares and converts image files, and tells what changed between two.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow2::{BackingFormat, BackingName, Chain, CreateOptions, ExtentKind, FileStorage, Image};

use super::copy::{compare_devices, compare_ranges, copy_compressed, copy_data};
use super::files::{NewFile, RawFile};
use super::serve::lock;
use super::source::{ImageFormat, OpenedSource, Source, file_sizes, open_image_file};
use crate::blocking::blocking;
use crate::error::Error;
use crate::export::Device;
use crate::limits::{EXTENT_QUERY_BYTES_MAX, MAP_EXTENTS_MAX};
use crate::model::Comparison;
use crate::repository::{file_error, image_error};

pub use qcow2::{CheckReport, CompressionType, Repair, RepairReport};

/// An empty qcow2 file to make.
#[derive(Debug, Clone)]
pub struct CreateImage {
    /// The new file.
    pub path: PathBuf,
    /// Size of the disk in bytes. Absent: the size of `backing`.
    pub size_bytes: Option<u64>,
    /// A power of two, 512 B to 2 MiB.
    pub cluster_size_bytes: u32,
    /// The image below; its path is recorded in the header as given, and seen from the new file.
    pub backing: Option<Source>,
    /// Version of the format: 2 (QEMU's `compat=0.10`) or 3 (`1.1`).
    pub version: u32,
    /// Width of a reference count: a power of two, 1 to 64; 16 in version 2.
    pub refcount_bits: u32,
    /// How compressed clusters will be compressed, if any are written.
    pub compression: CompressionType,
}

impl CreateImage {
    /// An image of 64 KiB clusters, without backing, as usual in all else.
    pub fn new(path: impl Into<PathBuf>, size_bytes: Option<u64>) -> Self {
        let usual = CreateOptions::new(0);
        Self {
            path: path.into(),
            size_bytes,
            cluster_size_bytes: usual.cluster_size_bytes,
            backing: None,
            version: usual.version,
            refcount_bits: usual.refcount_bits,
            compression: usual.compression,
        }
    }
}

/// Facts of one file of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Size of the disk it holds.
    pub virtual_size_bytes: u64,
    /// Length of the file.
    pub file_size_bytes: u64,
    /// Space that the filesystem has given to it.
    pub allocated_bytes: u64,
    /// Size of a cluster; like everything below `None` for raw files.
    pub cluster_size_bytes: Option<u32>,
    /// Version of the qcow2 header.
    pub version: Option<u32>,
    /// Width of a reference count.
    pub refcount_bits: Option<u32>,
    /// How compressed clusters are compressed, if it has any.
    pub compression: Option<CompressionType>,
    /// The backing file as the header has it.
    pub backing_name: Option<String>,
    /// Its format, where the header tells it.
    pub backing_format: Option<ImageFormat>,
    /// The hub's seal: which point this is.
    pub point_id: Option<String>,
    /// The hub's seal: which point is below.
    pub parent_id: Option<String>,
    /// The hub's seal: the change id that the disk was completed with.
    pub change_id: Option<String>,
}

/// One run of equal state of the guest's view; the runs cover the device from 0 without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapExtent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len_bytes: u64,
    /// Which layer answers; 0 is the tip.
    pub depth: u32,
    /// Some layer of the chain has it (`present` of `qemu-img map`).
    pub present: bool,
    /// Reads as zero without looking at data.
    pub zero: bool,
    /// Data that is stored compressed.
    pub compressed: bool,
    /// Where the data lies in that layer's file; `None` for zero, absent and compressed runs.
    pub host_offset: Option<u64>,
}

/// A conversion to make.
#[derive(Debug, Clone)]
pub struct ConvertImage {
    /// The image to read, with its whole chain.
    pub source: Source,
    /// The new file.
    pub target: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// For a qcow2 target.
    pub cluster_size_bytes: u32,
    /// Whether and how a qcow2 target is compressed.
    pub compression: Option<CompressionType>,
}

/// What a conversion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Converted {
    /// Size of the disk.
    pub virtual_size_bytes: u64,
    /// Bytes that were written; blocks of zeroes are not.
    pub written_bytes: u64,
}

/// Makes an empty qcow2 file; refuses to overwrite.
///
/// # Errors
///
/// `Conflict` if the file exists, `Invalid` for a size or cluster size that cannot be, and what opening `backing` says.
pub async fn create(image: CreateImage) -> Result<ImageFacts, Error> {
    blocking(move || {
        let new = NewFile::create(&image.path)?;
        let made = format_image(new.file()?, &image)?;
        made.flush()
            .map_err(|error| image_error("failed to create image", at(&image.path), error))?;
        drop(made);
        new.finish()?;
        let roots = image
            .backing
            .map(|backing| backing.roots)
            .unwrap_or_default();
        let source = Source {
            path: image.path.clone(),
            format: Some(ImageFormat::Qcow2),
            roots,
        };
        let mut facts = chain_facts(&source.open(true)?)?;
        if facts.is_empty() {
            return Err(Error::internal("new image has no layers", at(&image.path)));
        }
        Ok(facts.swap_remove(0))
    })
    .await
}

/// Formats an empty file, on top of a backing image if one is wanted.
pub(crate) fn format_image(file: std::fs::File, image: &CreateImage) -> Result<Image, Error> {
    let mut backing = None;
    let mut parent = None;
    if let Some(source) = &image.backing {
        let beside = image.path.parent().unwrap_or(Path::new(""));
        let opened = Source {
            path: beside.join(&source.path),
            ..source.clone()
        }
        .open(true)?;
        backing = Some(BackingName {
            name: source.path.display().to_string(),
            format: Some(match opened.format {
                ImageFormat::Raw => BackingFormat::Raw,
                ImageFormat::Qcow2 => BackingFormat::Qcow2,
            }),
        });
        parent = Some(Arc::new(opened.chain()?));
    }
    let parent_bytes = parent.as_ref().map(|chain| chain.virtual_size_bytes());
    let virtual_size_bytes = image.size_bytes.or(parent_bytes).ok_or_else(|| {
        Error::invalid("size is required without a backing image", at(&image.path))
    })?;
    let options = CreateOptions {
        cluster_size_bytes: image.cluster_size_bytes,
        backing,
        version: image.version,
        refcount_bits: image.refcount_bits,
        compression: image.compression,
        ..CreateOptions::new(virtual_size_bytes)
    };
    Image::create(Arc::new(FileStorage::new(file)), &options, parent)
        .map_err(|error| image_error("failed to create image", at(&image.path), error))
}

/// The chain of an image, tip first.
///
/// # Errors
///
/// `NotFound` without the file, `Corrupt` or `Unsupported` for what cannot be read.
pub async fn info(image: impl Into<Source>) -> Result<Vec<ImageFacts>, Error> {
    let source = image.into();
    blocking(move || chain_facts(&source.open(true)?)).await
}

/// Checks one file as a qcow2, unless it is said to be raw; no backing file is looked at.
///
/// # Errors
///
/// As [`info`], and `Invalid` for a raw file.
pub async fn check(image: impl Into<Source>) -> Result<CheckReport, Error> {
    let mut source = image.into();
    source.format = source.format.or(Some(ImageFormat::Qcow2));
    blocking(move || {
        let opened = source.open(true)?;
        if opened.format == ImageFormat::Raw {
            return Err(Error::invalid(
                "raw images cannot be checked",
                at(&source.path),
            ));
        }
        qcow2::check(&FileStorage::new(opened.file))
            .map_err(|error| image_error("failed to check image", at(&source.path), error))
    })
    .await
}

/// Repairs refcounts of one file, unless it is said to be raw; guest data and tables stay as they are. Nobody else may
/// be writing the file.
///
/// # Errors
///
/// As [`check`], and `Conflict` for a sealed image, which is never changed, or one that another of our servers writes.
pub async fn repair(image: impl Into<Source>, repair: Repair) -> Result<RepairReport, Error> {
    let mut source = image.into();
    source.format = source.format.or(Some(ImageFormat::Qcow2));
    blocking(move || {
        let opened = source.open(false)?;
        if opened.format == ImageFormat::Raw {
            return Err(Error::invalid(
                "raw images cannot be repaired",
                at(&source.path),
            ));
        }
        lock(&opened.file, &source.path)?;
        qcow2::repair(&FileStorage::new(opened.file), repair).map_err(|error| {
            if error.kind() == qcow2::ErrorKind::Refused {
                return Error::conflict("image is sealed", error.to_string());
            }
            image_error("failed to repair image", at(&source.path), error)
        })
    })
    .await
}

/// Where the data of an image lies, through its whole chain.
///
/// # Errors
///
/// As [`info`].
pub async fn map(image: impl Into<Source>) -> Result<Vec<MapExtent>, Error> {
    let source = image.into();
    blocking(move || {
        let opened = source.open(true)?;
        match opened.format {
            ImageFormat::Raw => raw_map(&RawFile::open(&opened.path, true)?),
            ImageFormat::Qcow2 => chain_map(&opened.chain()?, &source.path),
        }
    })
    .await
}

/// Compares what two images read as. Where one is longer, its tail must be zero.
///
/// # Errors
///
/// As [`info`].
pub async fn compare(
    left: impl Into<Source>,
    right: impl Into<Source>,
) -> Result<Comparison, Error> {
    let (left, right) = (left.into(), right.into());
    blocking(move || {
        let (left_opened, right_opened) = (left.open(true)?, right.open(true)?);
        if (left_opened.format, right_opened.format) == (ImageFormat::Qcow2, ImageFormat::Qcow2) {
            return compare_chains(&left_opened.chain()?, &right_opened.chain()?, &left.path);
        }
        let (left, right) = (device(&left_opened)?, device(&right_opened)?);
        compare_devices(
            (left.as_ref(), left.size_bytes()),
            (right.as_ref(), right.size_bytes()),
        )
    })
    .await
}

/// Reads only what lies above the layers that both have.
fn compare_chains(left: &Chain, right: &Chain, path: &Path) -> Result<Comparison, Error> {
    let (left_bytes, right_bytes) = (left.virtual_size_bytes(), right.virtual_size_bytes());
    let failed = |error| image_error("failed to map image", at(path), error);
    let changes = match left.changes_since(right) {
        Err(error) if error.kind() == qcow2::ErrorKind::Invalid => {
            return compare_devices((left, left_bytes), (right, right_bytes));
        }
        changes => changes.map_err(failed)?,
    };
    let ranges = changes.map(|range| range.map_err(failed));
    compare_ranges((left, left_bytes), (right, right_bytes), ranges)
}

/// What may have changed between two points of one chain, or of two branches of it, from the maps alone: a range that is
/// not told reads the same in both. Ranges lie inside the newer disk; what it has grown by is told, too.
///
/// # Errors
///
/// As [`info`]; `Invalid` for points that have no layer in common.
pub async fn changes(
    newer: impl Into<Source>,
    older: impl Into<Source>,
) -> Result<Vec<Range<u64>>, Error> {
    let (newer, older) = (newer.into(), older.into());
    blocking(move || {
        let (newer_chain, older_chain) = (newer.open(true)?.chain()?, older.open(true)?.chain()?);
        let failed = |error| image_error("failed to tell changes", at(&newer.path), error);
        let changes = newer_chain.changes_since(&older_chain).map_err(failed)?;
        let mut ranges = Vec::new();
        for range in changes {
            if ranges.len() >= MAP_EXTENTS_MAX {
                return Err(too_many_extents());
            }
            ranges.push(range.map_err(failed)?);
        }
        Ok(ranges)
    })
    .await
}

/// Writes the guest's view of an image, its whole chain, to a new thin raw file or flat qcow2; refuses to overwrite.
///
/// # Errors
///
/// `Conflict` if the target exists, `Invalid` for a compressed raw file, and as [`info`].
pub async fn convert(request: ConvertImage) -> Result<Converted, Error> {
    blocking(move || {
        if request.compression.is_some() && request.format == ImageFormat::Raw {
            return Err(Error::invalid(
                "raw images cannot be compressed",
                at(&request.target),
            ));
        }
        let source = open_device(&request.source)?;
        let virtual_size_bytes = source.size_bytes();
        let new = NewFile::create(&request.target)?;
        let written_bytes = match request.format {
            ImageFormat::Raw => {
                let target = RawFile::of(new.file()?, virtual_size_bytes)?;
                let written = copy_data(source.as_ref(), &target, virtual_size_bytes)?;
                finish(&target).map(|()| written)?
            }
            ImageFormat::Qcow2 => {
                let target =
                    format_image(new.file()?, &target_image(&request, virtual_size_bytes))?;
                let written = match request.compression {
                    None => copy_data(source.as_ref(), &target, virtual_size_bytes)?,
                    Some(_) => copy_compressed(
                        source.as_ref(),
                        &target,
                        virtual_size_bytes,
                        u64::from(request.cluster_size_bytes),
                    )?,
                };
                finish(&target).map(|()| written)?
            }
        };
        new.finish()?;
        Ok(Converted {
            virtual_size_bytes,
            written_bytes,
        })
    })
    .await
}

/// The image that a conversion makes.
fn target_image(request: &ConvertImage, virtual_size_bytes: u64) -> CreateImage {
    let size_bytes = virtual_size_bytes.next_multiple_of(SECTOR_BYTES);
    CreateImage {
        cluster_size_bytes: request.cluster_size_bytes,
        compression: request.compression.unwrap_or_default(),
        ..CreateImage::new(&request.target, Some(size_bytes))
    }
}

fn finish(target: &dyn Device) -> Result<(), Error> {
    target
        .flush()
        .map_err(|error| Error::internal("failed to flush image", error.to_string()))
}

/// qcow2 sizes are multiples of this.
const SECTOR_BYTES: u64 = 512;

/// An image for reading.
pub(crate) fn open_device(source: &Source) -> Result<Arc<dyn Device>, Error> {
    device(&source.open(true)?)
}

fn device(opened: &OpenedSource) -> Result<Arc<dyn Device>, Error> {
    Ok(match opened.format {
        ImageFormat::Raw => Arc::new(RawFile::open(&opened.path, true)?),
        ImageFormat::Qcow2 => Arc::new(opened.chain()?),
    })
}

fn chain_facts(opened: &OpenedSource) -> Result<Vec<ImageFacts>, Error> {
    if opened.format == ImageFormat::Raw {
        let size_bytes = RawFile::open(&opened.path, true)?.len_bytes();
        return Ok(vec![raw_facts(&opened.path, size_bytes)?]);
    }
    let mut facts: Vec<ImageFacts> = Vec::new();
    for (identity, info) in opened.chain()?.layers() {
        let path = PathBuf::from(identity);
        // What a layer is, the one above it has told, or the version that only qcow2 files have.
        if info.version == 0 {
            facts.push(raw_facts(&path, info.virtual_size_bytes)?);
            continue;
        }
        let (allocated_bytes, file_size_bytes) = sizes(&path)?;
        let seal = info.seal.unwrap_or_default();
        facts.push(ImageFacts {
            path,
            format: ImageFormat::Qcow2,
            virtual_size_bytes: info.virtual_size_bytes,
            file_size_bytes,
            allocated_bytes,
            cluster_size_bytes: Some(info.cluster_size_bytes),
            version: Some(info.version),
            refcount_bits: Some(info.refcount_bits),
            compression: info.compression,
            backing_format: info
                .backing
                .as_ref()
                .and_then(|backing| backing.format)
                .map(|format| match format {
                    BackingFormat::Raw => ImageFormat::Raw,
                    BackingFormat::Qcow2 => ImageFormat::Qcow2,
                }),
            backing_name: info.backing.map(|backing| backing.name),
            point_id: Some(seal.point_id).filter(|id| !id.is_empty()),
            parent_id: seal.parent_id,
            change_id: seal.change_id,
        });
    }
    Ok(facts)
}

fn raw_facts(path: &Path, virtual_size_bytes: u64) -> Result<ImageFacts, Error> {
    let (allocated_bytes, file_size_bytes) = sizes(path)?;
    Ok(ImageFacts {
        path: path.to_owned(),
        format: ImageFormat::Raw,
        virtual_size_bytes,
        file_size_bytes,
        allocated_bytes,
        cluster_size_bytes: None,
        version: None,
        refcount_bits: None,
        compression: None,
        backing_name: None,
        backing_format: None,
        point_id: None,
        parent_id: None,
        change_id: None,
    })
}

fn sizes(path: &Path) -> Result<(u64, u64), Error> {
    open_image_file(path, true)
        .and_then(|file| file_sizes(&file))
        .map_err(|error| file_error("failed to look at image", at(path), error))
}

fn raw_map(raw: &RawFile) -> Result<Vec<MapExtent>, Error> {
    let mut runs = Vec::new();
    let mut offset = 0;
    while offset < raw.len_bytes() {
        let extents = raw
            .extents(offset, raw.len_bytes() - offset)
            .map_err(|error| Error::internal("failed to map image", error.to_string()))?;
        for extent in extents {
            let run = MapExtent {
                offset,
                len_bytes: extent.len_bytes,
                depth: 0,
                present: !extent.hole,
                zero: extent.reads_zero,
                compressed: false,
                host_offset: (!extent.hole).then_some(offset),
            };
            offset += extent.len_bytes;
            push(&mut runs, run)?;
        }
    }
    Ok(runs)
}

fn chain_map(chain: &Chain, path: &Path) -> Result<Vec<MapExtent>, Error> {
    let size_bytes = chain.virtual_size_bytes();
    let mut runs = Vec::new();
    let mut offset = 0;
    while offset < size_bytes {
        let len_bytes = (size_bytes - offset).min(EXTENT_QUERY_BYTES_MAX);
        let extents = chain
            .extents(offset, len_bytes)
            .map_err(|error| image_error("failed to map image", at(path), error))?;
        for extent in extents {
            let nobody = [ExtentKind::Unallocated, ExtentKind::Beyond];
            let present = !nobody.contains(&extent.kind);
            let is_data = extent.kind == ExtentKind::Data;
            push(
                &mut runs,
                MapExtent {
                    offset: extent.offset,
                    len_bytes: extent.len_bytes,
                    depth: if present { extent.depth } else { 0 },
                    present,
                    zero: !is_data,
                    compressed: is_data && extent.host_offset.is_none(),
                    host_offset: extent.host_offset.filter(|_| is_data),
                },
            )?;
        }
        offset += len_bytes;
    }
    Ok(runs)
}

/// Adds a run, or lengthens the last one if it goes on.
fn push(runs: &mut Vec<MapExtent>, run: MapExtent) -> Result<(), Error> {
    if let Some(last) = runs.last_mut() {
        let follows = match (last.host_offset, run.host_offset) {
            (Some(last_host), Some(host)) => last_host + last.len_bytes == host,
            (None, None) => true,
            _ => false,
        };
        let state = |run: &MapExtent| (run.depth, run.present, run.zero, run.compressed);
        if follows && state(last) == state(&run) {
            last.len_bytes += run.len_bytes;
            return Ok(());
        }
    }
    if runs.len() >= MAP_EXTENTS_MAX {
        return Err(too_many_extents());
    }
    runs.push(run);
    Ok(())
}

fn too_many_extents() -> Error {
    Error::invalid(
        "image has too many extents to list",
        format!("limit={MAP_EXTENTS_MAX}"),
    )
}

fn at(path: &Path) -> String {
    format!("path={}", path.display())
}
