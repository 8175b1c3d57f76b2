//! Sizes and positions: all shifts of the format live here, and every position has its own type.

use crate::error::{Error, invalid};
use crate::format::limits::{
    MAX_CLUSTER_BITS, MAX_L1_BYTES, MAX_REFCOUNT_ORDER, MIN_CLUSTER_BITS,
    MIN_EXTENDED_CLUSTER_BITS, SUBCLUSTERS,
};

// Tables and buffers are indexed by `usize`; offsets are 64 bits.
const _: () = assert!(
    usize::BITS == 64,
    "images are larger than a 32-bit address space"
);

/// A byte position on the virtual disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestOffset(pub u64);

/// A byte position in the image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HostOffset(pub u64);

/// The index of a cluster of the virtual disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestCluster(pub u64);

/// The index of a cluster of the image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HostCluster(pub u64);

/// A 64-bit count as an index into memory.
pub fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("usize has 64 bits, asserted at compile time")
}

/// A length in memory as a 64-bit count.
pub fn to_u64(value: usize) -> u64 {
    u64::try_from(value).expect("usize has 64 bits, asserted at compile time")
}

/// The sizes that follow from an image's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    cluster_bits: u32,
    refcount_order: u32,
    virtual_size: u64,
    subclusters: bool,
}

impl Geometry {
    /// Sizes of an image.
    ///
    /// # Errors
    /// `Invalid` for a cluster size outside 512 bytes to 2 MiB, a refcount wider than 64 bits,
    /// or a disk whose L1 table would exceed its limit.
    pub fn new(cluster_bits: u32, refcount_order: u32, virtual_size: u64) -> Result<Self, Error> {
        if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
            return Err(invalid(format!(
                "cluster size is not 512 bytes to 2 MiB: cluster_bits={cluster_bits}"
            )));
        }
        if refcount_order > MAX_REFCOUNT_ORDER {
            return Err(invalid(format!(
                "refcounts are wider than 64 bits: refcount_order={refcount_order}"
            )));
        }
        let geometry = Self {
            cluster_bits,
            refcount_order,
            virtual_size,
            subclusters: false,
        };
        geometry.check_l1()?;
        Ok(geometry)
    }

    /// The same sizes with extended L2 entries (qcow2 spec, "Extended L2 Entries"): each describes 32 subclusters.
    ///
    /// # Errors
    /// `Invalid` for clusters below 16 KiB, or a disk whose L1 table would exceed its limit.
    pub fn with_subclusters(self) -> Result<Self, Error> {
        if self.cluster_bits < MIN_EXTENDED_CLUSTER_BITS {
            return Err(invalid(format!(
                "extended L2 entries need clusters of at least 16 KiB: cluster_bits={}",
                self.cluster_bits
            )));
        }
        let geometry = Self {
            subclusters: true,
            ..self
        };
        geometry.check_l1()?;
        Ok(geometry)
    }

    fn check_l1(&self) -> Result<(), Error> {
        if self.l1_entries() > MAX_L1_BYTES / 8 {
            return Err(invalid(format!(
                "disk needs an L1 table above its limit: virtual_size={} \
                 cluster_size={} limit={MAX_L1_BYTES}",
                self.virtual_size,
                self.cluster_size()
            )));
        }
        Ok(())
    }

    /// The cluster size as its exponent.
    pub fn cluster_bits(&self) -> u32 {
        self.cluster_bits
    }

    /// Bytes in a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The refcount width as its exponent.
    pub fn refcount_order(&self) -> u32 {
        self.refcount_order
    }

    /// Bytes of the virtual disk.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Clusters of the virtual disk; the last may be partial.
    pub fn guest_clusters(&self) -> u64 {
        self.virtual_size.div_ceil(self.cluster_size())
    }

    /// 64-bit words of an L2 entry: 1, or 2 with subclusters.
    pub fn l2_entry_words(&self) -> usize {
        if self.subclusters { 2 } else { 1 }
    }

    /// Bytes of a subcluster: a cluster where there are none.
    pub fn subcluster_size(&self) -> u64 {
        let count = if self.subclusters { SUBCLUSTERS } else { 1 };
        self.cluster_size() / count
    }

    /// Entries of an L2 table as its exponent.
    fn l2_bits(&self) -> u32 {
        self.cluster_bits - if self.subclusters { 4 } else { 3 }
    }

    /// Entries of an L2 table.
    pub fn l2_entries(&self) -> u64 {
        1 << self.l2_bits()
    }

    /// Bytes of the disk that one L2 table describes.
    pub fn l2_span(&self) -> u64 {
        1 << (self.cluster_bits + self.l2_bits())
    }

    /// L1 entries that the virtual disk needs.
    pub fn l1_entries(&self) -> u64 {
        self.virtual_size.div_ceil(self.l2_span())
    }

    /// Refcounts in one refcount block.
    pub fn block_entries(&self) -> u64 {
        1 << (self.cluster_bits + 3 - self.refcount_order)
    }

    /// The cluster that holds a guest offset.
    pub fn guest_cluster(&self, offset: GuestOffset) -> GuestCluster {
        GuestCluster(offset.0 >> self.cluster_bits)
    }

    /// Where a guest cluster begins.
    pub fn guest_start(&self, cluster: GuestCluster) -> GuestOffset {
        GuestOffset(cluster.0 << self.cluster_bits)
    }

    /// Bytes of a guest cluster that belong to the disk: less than a cluster only for the last one.
    pub fn guest_len(&self, cluster: GuestCluster) -> u64 {
        let start = self.guest_start(cluster).0;
        self.virtual_size
            .saturating_sub(start)
            .min(self.cluster_size())
    }

    /// The L1 entry that describes a guest cluster.
    pub fn l1_index(&self, cluster: GuestCluster) -> usize {
        to_usize(cluster.0 >> self.l2_bits())
    }

    /// The entry of its L2 table that describes a guest cluster.
    pub fn l2_index(&self, cluster: GuestCluster) -> usize {
        to_usize(cluster.0 & (self.l2_entries() - 1))
    }

    /// The host cluster that holds a host offset.
    pub fn host_cluster(&self, offset: HostOffset) -> HostCluster {
        HostCluster(offset.0 >> self.cluster_bits)
    }

    /// Where a host cluster begins.
    pub fn host_start(&self, cluster: HostCluster) -> HostOffset {
        HostOffset(cluster.0 << self.cluster_bits)
    }

    /// Position inside a cluster.
    pub fn in_cluster(&self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    /// Whether a host offset is a cluster's start.
    pub fn is_aligned(&self, offset: HostOffset) -> bool {
        self.in_cluster(offset.0) == 0
    }

    /// Clusters that hold `len_bytes`.
    pub fn clusters_for(&self, len_bytes: u64) -> u64 {
        len_bytes.div_ceil(self.cluster_size())
    }

    /// The refcount table entry that describes a host cluster.
    pub fn block_index(&self, cluster: HostCluster) -> u64 {
        cluster.0 / self.block_entries()
    }

    /// The refcount of its block that describes a host cluster.
    pub fn block_slot(&self, cluster: HostCluster) -> usize {
        to_usize(cluster.0 % self.block_entries())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_sizes_match_the_spec() {
        let geometry = Geometry::new(16, 4, (1 << 40) + 512).unwrap();
        assert_eq!(geometry.l2_entries(), 8192);
        assert_eq!(geometry.l2_span(), 512 << 20);
        assert_eq!(geometry.l1_entries(), 2049);
        assert_eq!(geometry.block_entries(), 32_768);
        assert_eq!(geometry.guest_len(GuestCluster(1 << 24)), 512);
        assert_eq!(geometry.l1_index(GuestCluster(8192)), 1);
        assert_eq!(geometry.l2_index(GuestCluster(8193)), 1);
    }

    #[test]
    fn subclusters_halve_what_a_table_describes() {
        let geometry = Geometry::new(16, 4, (1 << 40) + 1).unwrap();
        let geometry = geometry.with_subclusters().unwrap();
        assert_eq!(geometry.l2_entries(), 4096);
        assert_eq!(geometry.l2_span(), 256 << 20);
        assert_eq!(geometry.l1_entries(), 4097);
        assert_eq!(geometry.l1_index(GuestCluster(4096)), 1);
        assert_eq!(geometry.l2_index(GuestCluster(4097)), 1);
        assert_eq!(geometry.subcluster_size(), 2048);
        let small = Geometry::new(13, 4, 0).unwrap();
        assert!(small.with_subclusters().is_err());
        let largest = Geometry::new(14, 4, 1 << 47).unwrap();
        assert!(largest.with_subclusters().is_err());
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        assert!(Geometry::new(8, 4, 0).is_err());
        assert!(Geometry::new(22, 4, 0).is_err());
        assert!(Geometry::new(16, 7, 0).is_err());
        assert!(Geometry::new(9, 4, u64::MAX).is_err());
        assert!(Geometry::new(9, 6, 128 << 30).is_ok());
    }
}
