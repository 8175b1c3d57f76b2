//! Formatting an empty storage.
//!
//! ```text
//!   cluster 0   header · extensions (names of features where there is room) · room for the seal ……… backing name (at the end, so that the seal fits in front)
//!   then        refcount table, large enough for the whole disk · L1 table · first refcount blocks
//! ```

use std::sync::Arc;

use crate::chain::Chain;
use crate::error::{Error, invalid};
use crate::format::compression::CompressionType;
use crate::format::extension::{self, BACKING_FORMAT, FEATURE_NAMES};
use crate::format::feature::{self, INCOMPATIBLE_COMPRESSION_TYPE};
use crate::format::geometry::{Geometry, HostOffset, to_u64, to_usize};
use crate::format::header::{Header, backing_name_place};
use crate::format::limits::{
    DEFAULT_REFCOUNT_ORDER, HEADER_READ_BYTES, MAX_BACKING_NAME_BYTES, MAX_REFCOUNT_ORDER,
    MAX_REFCOUNT_TABLE_BYTES, MAX_SEAL_BYTES,
};
use crate::image::allocator::Allocator;
use crate::image::l1::L1;
use crate::image::metadata::Layout;
use crate::image::tables::Tables;
use crate::image::{BackingName, CreateOptions, Image};
use crate::storage::{self, Storage};

impl Image {
    /// Formats an empty storage. `parent` supplies what the image does not have yet (copy-on-write, zeroes as facts).
    ///
    /// # Errors
    /// `Invalid` for sizes, a version or a refcount width out of bounds, a name that does not fit, a storage that is not empty, or a backing name
    /// without parent or the other way round; `NoSpace` and `Io` from the storage.
    pub fn create(
        storage: Arc<dyn Storage>,
        options: &CreateOptions,
        parent: Option<Arc<Chain>>,
    ) -> Result<Self, Error> {
        if storage::len(&*storage)? != 0 {
            return Err(invalid("a new image needs an empty storage"));
        }
        if options.backing.is_some() != parent.is_some() {
            return Err(invalid("a backing name and a parent go together"));
        }
        let geometry = geometry(options)?;
        write_empty(&*storage, geometry, options)?;
        Self::open(storage, parent)
    }
}

fn geometry(options: &CreateOptions) -> Result<Geometry, Error> {
    let size = options.cluster_size_bytes;
    if !size.is_power_of_two() {
        return Err(invalid(format!(
            "cluster size is not a power of two: cluster_size={size}"
        )));
    }
    // QEMU counts a disk in sectors and would not see the rest.
    if !options.virtual_size_bytes.is_multiple_of(512) {
        return Err(invalid(format!(
            "disk size is not a multiple of 512: virtual_size={}",
            options.virtual_size_bytes
        )));
    }
    Geometry::new(
        size.trailing_zeros(),
        refcount_order(options)?,
        options.virtual_size_bytes,
    )
}

fn refcount_order(options: &CreateOptions) -> Result<u32, Error> {
    let (version, bits) = (options.version, options.refcount_bits);
    if !(2..=3).contains(&version) {
        return Err(invalid(format!("version is not 2 or 3: version={version}")));
    }
    let possible = bits.is_power_of_two() && bits <= 1 << MAX_REFCOUNT_ORDER;
    if !possible || version == 2 && bits != 1 << DEFAULT_REFCOUNT_ORDER {
        return Err(invalid(format!(
            "refcounts are a power of two of at most 64 bits, and 16 bits in version 2: \
             refcount_bits={bits} version={version}"
        )));
    }
    Ok(bits.trailing_zeros())
}

/// Features without which the image cannot be read.
fn incompatible(options: &CreateOptions) -> Result<u64, Error> {
    match (options.compression, options.version) {
        (CompressionType::Zlib, _) => Ok(0),
        (CompressionType::Zstd, 3) => Ok(INCOMPATIBLE_COMPRESSION_TYPE),
        (compression, version) => Err(invalid(format!(
            "version has zlib only: compression={} version={version}",
            compression.as_str()
        ))),
    }
}

fn write_empty(
    storage: &dyn Storage,
    geometry: Geometry,
    options: &CreateOptions,
) -> Result<(), Error> {
    let version = options.version;
    let table_clusters = table_clusters(&geometry);
    let mut allocator = Allocator::format(geometry, table_clusters, storage)?;
    let l1_bytes = geometry.l1_entries() * 8;
    // An empty disk has an L1 table, too: other readers expect a place for it.
    let l1 = allocator.allocate_run(storage, geometry.clusters_for(l1_bytes).max(1))?;
    let l1_at = geometry.host_start(l1.start);
    let mut header = Header {
        version,
        geometry,
        backing_name: None,
        l1_entries: u32::try_from(geometry.l1_entries()).expect("at most 32 MiB of L1 entries"),
        l1_offset: l1_at,
        refcount_table_offset: geometry.host_start(allocator.table_at().start),
        refcount_table_clusters: u32::try_from(table_clusters).expect("at most 8 MiB of table"),
        snapshot_count: 0,
        snapshots_offset: HostOffset(0),
        incompatible: incompatible(options)?,
        compatible: 0,
        autoclear: 0,
        header_len: Header::new_len(version),
        compression: options.compression,
    };
    let cluster = header_cluster(&mut header, options.backing.as_ref())?;

    let zeroes = vec![0; to_usize(geometry.cluster_size())];
    for cluster in l1.clusters() {
        storage::write(storage, geometry.host_start(cluster), &zeroes)?;
    }
    let mut tables = Tables::new(
        geometry,
        version,
        allocator,
        Layout::default(),
        L1::new(geometry, l1_at, 0),
    );
    let (changes, _) = tables.begin_commit();
    for write in changes.stages().into_iter().flatten() {
        storage::write(storage, write.at, &write.payload.to_bytes())?;
    }
    storage::write(storage, HostOffset(0), &cluster)?;
    storage::sync(storage)
}

fn header_cluster(header: &mut Header, backing: Option<&BackingName>) -> Result<Vec<u8>, Error> {
    let cluster_size = to_usize(header.geometry.cluster_size());
    let mut extensions = Vec::new();
    let mut name_at = cluster_size;
    if let Some(backing) = backing {
        let name = backing.name.as_bytes();
        if name.is_empty() || to_u64(name.len()) > u64::from(MAX_BACKING_NAME_BYTES) {
            return Err(invalid(format!(
                "backing name is out of bounds: len={}",
                name.len()
            )));
        }
        if let Some(format) = backing.format {
            extensions = extension::encode(BACKING_FORMAT, format.as_str().as_bytes());
        }
        name_at = backing_name_place(&header.geometry, name.len());
        header.backing_name = Some((name_at, name.len()));
    }
    let fixed = header.encode();
    let names = extension::encode(FEATURE_NAMES, &feature::name_table());
    // Where the first cluster is small, seals and names have the first claim to it.
    let room = fixed.len() + extensions.len() + names.len() + MAX_SEAL_BYTES + 24;
    if header.version >= 3 && room <= name_at.min(to_usize(HEADER_READ_BYTES)) {
        extensions.extend(names);
    }
    let end = fixed.len() + extensions.len() + 8;
    if end > name_at {
        return Err(invalid(format!(
            "backing name does not fit into the first cluster: cluster_size={cluster_size}"
        )));
    }
    let mut cluster = vec![0; cluster_size];
    cluster[..fixed.len()].copy_from_slice(&fixed);
    cluster[fixed.len()..end - 8].copy_from_slice(&extensions);
    if let Some(backing) = backing {
        cluster[name_at..name_at + backing.name.len()].copy_from_slice(backing.name.as_bytes());
    }
    Ok(cluster)
}

/// Clusters of refcount table for a disk written in full, twice over: nothing moves while a backup is taken.
fn table_clusters(geometry: &Geometry) -> u64 {
    let l1_clusters = geometry.clusters_for(geometry.l1_entries() * 8);
    let data = geometry.guest_clusters() + geometry.l1_entries() + l1_clusters;
    let blocks = (2 * data).div_ceil(geometry.block_entries()) + 2;
    let limit = MAX_REFCOUNT_TABLE_BYTES / geometry.cluster_size();
    geometry.clusters_for(blocks * 8).clamp(1, limit)
}
