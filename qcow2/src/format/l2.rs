//! L2 entries: where the data of a guest cluster is (qcow2 spec, "Cluster mapping").

use crate::error::{Error, corrupt};
use crate::format::geometry::{Geometry, HostCluster, HostOffset};
use crate::format::limits::MAX_HOST_OFFSET;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const ZERO: u64 = 1;
const COMPRESSED: u64 = 1 << 62;
const COPIED: u64 = 1 << 63;

/// A decoded L2 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L2Entry {
    /// Nothing here: the backing file decides, or zeroes without one.
    Unallocated,
    /// Reads as zero; a cluster may be kept for later writes.
    Zero {
        /// The host cluster that stays allocated.
        kept: Option<HostCell>,
    },
    /// Plain data.
    Data(HostCell),
    /// Compressed data.
    Compressed(CompressedCell),
}

/// Where a compressed cluster is. Other compressed clusters may share its host clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CompressedCell {
    /// First byte, not aligned; below 2^56.
    pub offset: HostOffset,
    /// Bytes from `offset` to the end of the last 512-byte sector in use; at most two clusters.
    pub len_bytes: u32,
}

impl CompressedCell {
    /// The host clusters that hold it.
    pub fn host_clusters(self, geometry: &Geometry) -> impl Iterator<Item = HostCluster> + use<> {
        let last = HostOffset(self.offset.0 + u64::from(self.len_bytes) - 1);
        let first = geometry.host_cluster(self.offset);
        (first.0..=geometry.host_cluster(last).0).map(HostCluster)
    }

    /// Whether an entry has the bits to say where this is: with clusters of 2 MiB the first 512 TiB of a file.
    pub fn fits(self, geometry: &Geometry) -> bool {
        self.offset.0 >> offset_bits(geometry) == 0 && self.offset.0 < MAX_HOST_OFFSET
    }

    fn raw(self, geometry: &Geometry) -> u64 {
        debug_assert!(self.fits(geometry), "a place was looked for that fits");
        let len = self.offset.0 % 512 + u64::from(self.len_bytes);
        COMPRESSED | (len.div_ceil(512) - 1) << offset_bits(geometry) | self.offset.0
    }

    fn parse(raw: u64, geometry: &Geometry) -> Result<Self, Error> {
        if raw & COPIED != 0 {
            return Err(corrupt(format!(
                "compressed cluster claims to be copied: entry={raw:#x}"
            )));
        }
        let offset_bits = offset_bits(geometry);
        let descriptor = raw & (COMPRESSED - 1);
        let offset = descriptor & ((1 << offset_bits) - 1);
        let more_sectors = descriptor >> offset_bits;
        // What small clusters leave to the offset is more than a host offset has.
        if offset >= MAX_HOST_OFFSET {
            return Err(corrupt(format!(
                "compressed cluster has reserved bits set: entry={raw:#x}"
            )));
        }
        let len_bytes = (more_sectors + 1) * 512 - (offset & 511);
        Ok(Self {
            offset: HostOffset(offset),
            len_bytes: u32::try_from(len_bytes).expect("at most 14 bits of sectors"),
        })
    }
}

/// Bits of the offset in a compressed entry. The split between offset and length moves with the cluster size (qcow2
/// spec, "Compressed Clusters Descriptor"): the length needs cluster_bits - 8 bits.
fn offset_bits(geometry: &Geometry) -> u32 {
    62 - (geometry.cluster_bits() - 8)
}

/// A host cluster and whether this entry alone refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCell {
    /// Start of the cluster, never 0.
    pub offset: HostOffset,
    /// The refcount is exactly one: it may be changed in place.
    pub copied: bool,
}

impl HostCell {
    /// A cluster that only this entry refers to.
    pub fn own(offset: HostOffset) -> Self {
        Self {
            offset,
            copied: true,
        }
    }

    fn parse(raw: u64, geometry: &Geometry) -> Result<Option<Self>, Error> {
        let offset = HostOffset(raw & OFFSET_MASK);
        if !geometry.is_aligned(offset) {
            return Err(corrupt(format!(
                "data is not at a cluster's start: entry={raw:#x}"
            )));
        }
        Ok((offset.0 != 0).then_some(Self {
            offset,
            copied: raw & COPIED != 0,
        }))
    }

    fn raw(self) -> u64 {
        self.offset.0 | if self.copied { COPIED } else { 0 }
    }
}

impl L2Entry {
    /// Decodes an entry of an image of `version`.
    ///
    /// # Errors
    /// `Corrupt` for reserved bits or a cluster that is not aligned.
    pub fn parse(raw: u64, version: u32, geometry: &Geometry) -> Result<Self, Error> {
        if raw & COMPRESSED != 0 {
            return Ok(Self::Compressed(CompressedCell::parse(raw, geometry)?));
        }
        let zero = version >= 3 && raw & ZERO != 0;
        let known = OFFSET_MASK | COPIED | if version >= 3 { ZERO } else { 0 };
        if raw & !known != 0 {
            return Err(corrupt(format!(
                "L2 entry has reserved bits set: entry={raw:#x}"
            )));
        }
        let cell = HostCell::parse(raw, geometry)?;
        Ok(match (zero, cell) {
            (true, kept) => Self::Zero { kept },
            (false, Some(cell)) => Self::Data(cell),
            (false, None) => Self::Unallocated,
        })
    }

    /// The entry as it is stored; a compressed cluster lies where [`CompressedCell::fits`] says.
    pub fn raw(&self, geometry: &Geometry) -> u64 {
        match *self {
            Self::Unallocated => 0,
            Self::Zero { kept } => ZERO | kept.map_or(0, HostCell::raw),
            Self::Data(cell) => cell.raw(),
            Self::Compressed(cell) => cell.raw(geometry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_a_round_trip() {
        let geometry = Geometry::new(16, 4, 1 << 30).unwrap();
        let cell = HostCell {
            offset: HostOffset(5 << 16),
            copied: true,
        };
        let shared = HostCell {
            copied: false,
            ..cell
        };
        for entry in [
            L2Entry::Unallocated,
            L2Entry::Zero { kept: None },
            L2Entry::Zero { kept: Some(cell) },
            L2Entry::Data(cell),
            L2Entry::Data(shared),
            L2Entry::Compressed(CompressedCell {
                offset: HostOffset(0x12_3456),
                len_bytes: 3 * 512 - (0x12_3456 & 511),
            }),
        ] {
            let raw = entry.raw(&geometry);
            assert_eq!(L2Entry::parse(raw, 3, &geometry).unwrap(), entry);
        }
    }

    #[test]
    fn version_two_has_no_zero_flag() {
        let geometry = Geometry::new(16, 4, 1 << 30).unwrap();
        assert!(L2Entry::parse(1, 2, &geometry).is_err());
    }

    #[test]
    fn a_compressed_descriptor_is_split_by_cluster_size() {
        let geometry = Geometry::new(16, 4, 1 << 30).unwrap();
        let raw = COMPRESSED | (3 << 54) | 0x12_3456;
        let cell = CompressedCell {
            offset: HostOffset(0x12_3456),
            len_bytes: 4 * 512 - (0x12_3456 & 511),
        };
        let parse = |raw, geometry| L2Entry::parse(raw, 3, &geometry);
        assert_eq!(parse(raw, geometry).unwrap(), L2Entry::Compressed(cell));
        // The length of the smallest clusters leaves more bits than an offset has.
        let small = Geometry::new(9, 4, 1 << 20).unwrap();
        assert!(parse(COMPRESSED | (1 << 55), small).is_ok());
        assert!(parse(COMPRESSED | (1 << 56), small).is_err());
        assert!(parse(COMPRESSED | COPIED | 512, small).is_err());
    }
}
