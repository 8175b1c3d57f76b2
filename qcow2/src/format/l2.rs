//! L2 entries: where the data of a guest cluster is (qcow2 spec, "Cluster mapping").

use crate::error::{Error, corrupt};
use crate::format::geometry::{Geometry, HostOffset};

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
    Compressed {
        /// First byte, not aligned.
        offset: HostOffset,
        /// Bytes from `offset` to the end of the last 512-byte sector in use.
        len_bytes: u64,
    },
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
            return Self::parse_compressed(raw, geometry);
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

    fn parse_compressed(raw: u64, geometry: &Geometry) -> Result<Self, Error> {
        // The split between offset and length moves with the cluster size (qcow2 spec,
        // "Compressed Clusters Descriptor"): the length needs cluster_bits - 8 bits.
        let offset_bits = 62 - (geometry.cluster_bits() - 8);
        let descriptor = raw & (COMPRESSED - 1);
        if raw & COPIED != 0 {
            return Err(corrupt(format!(
                "compressed cluster claims to be copied: entry={raw:#x}"
            )));
        }
        let offset = descriptor & ((1 << offset_bits) - 1);
        let more_sectors = descriptor >> offset_bits;
        let len_bytes = (more_sectors + 1) * 512 - (offset & 511);
        Ok(Self::Compressed {
            offset: HostOffset(offset),
            len_bytes,
        })
    }

    /// The entry as it is stored; compressed entries are never written.
    pub fn raw(&self) -> Option<u64> {
        match *self {
            Self::Unallocated => Some(0),
            Self::Zero { kept } => Some(ZERO | kept.map_or(0, HostCell::raw)),
            Self::Data(cell) => Some(cell.raw()),
            Self::Compressed { .. } => None,
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
        ] {
            let raw = entry.raw().unwrap();
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
        let L2Entry::Compressed { offset, len_bytes } = L2Entry::parse(raw, 3, &geometry).unwrap()
        else {
            panic!("not compressed");
        };
        assert_eq!(offset, HostOffset(0x12_3456));
        assert_eq!(len_bytes, 4 * 512 - (0x12_3456 & 511));
    }
}
