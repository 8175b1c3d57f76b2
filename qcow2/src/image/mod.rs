//! One image, open for writing, on top of its parents.

mod allocator;
mod commit;
mod compress;
mod create;
mod elide;
mod extents;
mod hashing;
mod l1;
mod locks;
mod metadata;
mod open;
mod read;
mod seal;
mod tables;
mod types;
mod write;

use std::sync::{Arc, OnceLock};

use crate::chain::Chain;
use crate::codec::Inflated;
use crate::error::{Error, ErrorKind};
use crate::format::compression::CompressionType;
use crate::format::geometry::Geometry;
use crate::hashes::HashRecorder;
use crate::image::commit::CommitState;
use crate::image::locks::RangeLocks;
use crate::image::tables::Tables;
use crate::image::write::Counters;
use crate::storage::Storage;
use crate::sync::{AtomicBool, Mutex, Ordering};

pub use elide::Elision;
pub(crate) use extents::push as push_extent;
pub(crate) use open::{Opened, open_file};
pub use types::{
    BackingFormat, BackingName, CreateOptions, Extent, ExtentKind, ImageInfo, MemoryLimits,
    WriteCounters,
};

/// One image, open for writing, on top of its parents. All methods take `&self`; share it by `Arc` among threads.
///
/// Requests on different clusters run in parallel; requests on one cluster are atomic against each other.
/// Lock order: a range, then the commit, then the tables; the tables are never held over guest data IO.
#[derive(Debug)]
pub struct Image {
    storage: Arc<dyn Storage>,
    parent: Option<Arc<Chain>>,
    geometry: Geometry,
    compression: CompressionType,
    inflated: Inflated,
    info: Mutex<ImageInfo>,
    locks: RangeLocks,
    commit: Mutex<CommitState>,
    tables: Mutex<Tables>,
    counters: Counters,
    elision: Elision,
    hashes: Option<HashRecorder>,
    sealed: AtomicBool,
    /// What is wrong with an image that was found corrupt while it was open.
    damage: OnceLock<String>,
}

impl Image {
    /// Facts of the image as of now.
    pub fn info(&self) -> ImageInfo {
        let mut info = self.info.lock().clone();
        // The length is for display; a storage that cannot tell it will fail where it matters.
        if let Ok(len) = self.storage.len_bytes() {
            info.file_size_bytes = len;
        }
        info
    }

    /// Bytes of the virtual disk.
    pub fn virtual_size_bytes(&self) -> u64 {
        self.geometry.virtual_size()
    }

    /// What was received so far, and what became of it.
    pub fn counters(&self) -> WriteCounters {
        self.counters.read()
    }

    /// Bounds what is kept in memory otherwise than by default.
    #[must_use]
    pub fn with_memory_limits(self, limits: MemoryLimits) -> Self {
        self.tables.lock().allocator.limits = limits;
        self
    }

    fn check_range(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        let size = self.geometry.virtual_size();
        if offset.checked_add(len_bytes).is_none_or(|end| end > size) {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "range is not inside the disk: offset={offset} len={len_bytes} \
                     virtual_size={size}"
                ),
            ));
        }
        Ok(())
    }

    fn check_writable(&self) -> Result<(), Error> {
        if self.sealed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::ReadOnly, "image is sealed"));
        }
        self.check_intact()
    }

    /// The clusters that a range touches.
    fn clusters(&self, offset: u64, len_bytes: u64) -> std::ops::Range<u64> {
        let bits = self.geometry.cluster_bits();
        offset >> bits..(offset + len_bytes).div_ceil(self.geometry.cluster_size())
    }
}
