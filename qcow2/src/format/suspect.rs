//! Table entries as `check` reads them: what they refer to, however wrong they are. Readers that must not guess parse
//! strictly ([`L2Entry`](crate::format::l2::L2Entry) and its like); a check has to tell every fault, and what would be
//! freed by mistake behind it.

use crate::format::geometry::{Geometry, HostOffset};

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const L1_RESERVED: u64 = !(OFFSET_MASK | COPIED);
const L2_RESERVED: u64 = !(OFFSET_MASK | COPIED | COMPRESSED | ZERO);
const TABLE_RESERVED: u64 = 0x1ff;
const ZERO: u64 = 1;
/// The other half says which of them are zero.
const ALLOCATED_SUBCLUSTERS: u64 = 0xffff_ffff;
const COMPRESSED: u64 = 1 << 62;
const COPIED: u64 = 1 << 63;

/// A reference to a table, taken from an L1 entry or a refcount table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRef {
    /// Where the table would begin; not always a cluster's start.
    pub at: HostOffset,
    /// Bits are set that mean nothing.
    pub reserved: bool,
    /// The entry says that nobody else refers to the table; always false in the refcount table.
    pub copied: bool,
}

impl TableRef {
    /// Reads an L1 entry.
    pub fn from_l1(raw: u64) -> Self {
        Self {
            at: HostOffset(raw & OFFSET_MASK),
            reserved: raw & L1_RESERVED != 0,
            copied: raw & COPIED != 0,
        }
    }

    /// Reads a refcount table entry.
    pub fn from_refcount_table(raw: u64) -> Self {
        Self {
            at: HostOffset(raw & !TABLE_RESERVED),
            reserved: raw & TABLE_RESERVED != 0,
            copied: false,
        }
    }
}

/// What an L2 entry refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Nothing in this file.
    Nothing,
    /// A cluster, which holds data or is kept for later.
    Cluster(HostOffset),
    /// Compressed data.
    Compressed {
        /// First byte, not aligned.
        at: HostOffset,
        /// Bytes to the end of the last 512-byte sector in use.
        len_bytes: u64,
    },
}

/// An L2 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L2Ref {
    /// What it refers to.
    pub target: Target,
    /// Bits are set that mean nothing in this version.
    pub reserved: bool,
    /// Subclusters are in a state that cannot be: data without a cluster, data and zero at once, or any in a compressed
    /// cluster (qcow2 spec, "Extended L2 Entries").
    pub torn: bool,
    /// The entry says that nobody else refers to the cluster.
    pub copied: bool,
}

impl L2Ref {
    /// Reads an entry of an image of `version`, and what it says of subclusters where it is extended.
    pub fn parse(raw: u64, subclusters: Option<u64>, version: u32, geometry: &Geometry) -> Self {
        let copied = raw & COPIED != 0;
        let states = subclusters.unwrap_or(0);
        if raw & COMPRESSED != 0 {
            // The split between offset and length moves with the cluster size (qcow2 spec, "Compressed Clusters
            // Descriptor").
            let offset_bits = 62 - (geometry.cluster_bits() - 8);
            let descriptor = raw & (COMPRESSED - 1);
            let offset = descriptor & ((1 << offset_bits) - 1);
            let len_bytes = ((descriptor >> offset_bits) + 1) * 512 - (offset & 511);
            return Self {
                target: Target::Compressed {
                    at: HostOffset(offset),
                    len_bytes,
                },
                reserved: false,
                torn: states != 0,
                copied,
            };
        }
        // Neither version 2 nor extended entries have this bit.
        let zero = raw & ZERO != 0 && (version < 3 || subclusters.is_some());
        let allocated = states & ALLOCATED_SUBCLUSTERS;
        let target = match raw & OFFSET_MASK {
            0 => Target::Nothing,
            offset => Target::Cluster(HostOffset(offset)),
        };
        Self {
            target,
            reserved: raw & L2_RESERVED != 0 || zero,
            torn: match target {
                Target::Nothing => allocated != 0,
                _ => allocated & (states >> 32) != 0,
            },
            copied,
        }
    }
}

/// An L1 or L2 entry with its "nobody else refers to it" bit set or cleared, and nothing else changed.
pub fn with_copied(raw: u64, copied: bool) -> u64 {
    if copied { raw | COPIED } else { raw & !COPIED }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_and_do_not_hide_the_reference() {
        let geometry = Geometry::new(16, 4, 1 << 30).unwrap();
        let parse = |raw, version| L2Ref::parse(raw, None, version, &geometry);
        let plain = parse(COPIED | 5 << 16, 3);
        assert_eq!(plain.target, Target::Cluster(HostOffset(5 << 16)));
        assert!(plain.copied && !plain.reserved);
        let odd = parse(1 << 57 | 5 << 16 | 512, 3);
        assert_eq!(odd.target, Target::Cluster(HostOffset(5 << 16 | 512)));
        assert!(odd.reserved && !odd.copied);
        assert_eq!((parse(1, 3).reserved, parse(1, 2).reserved), (false, true));
        let extended = |raw, states| {
            let entry = L2Ref::parse(raw, Some(states), 3, &geometry);
            (entry.reserved, entry.torn)
        };
        assert_eq!(extended(5 << 16, 1 | 1 << 33), (false, false));
        assert_eq!(extended(5 << 16, 2 | 1 << 33), (false, true));
        assert_eq!(extended(0, 1 << 63), (false, false));
        assert_eq!(extended(1, 1), (true, true));
        assert_eq!(extended(COMPRESSED, 0), (false, false));
        assert_eq!(extended(COMPRESSED, 1 << 32), (false, true));
        let compressed = parse(COPIED | COMPRESSED | (3 << 54) | 0x12_3456, 3);
        let expected = Target::Compressed {
            at: HostOffset(0x12_3456),
            len_bytes: 4 * 512 - (0x12_3456 & 511),
        };
        assert_eq!(compressed.target, expected);
        assert!(compressed.copied);
        let table = TableRef::from_l1(COPIED | 1 << 56 | 1 << 16);
        assert_eq!(table.at, HostOffset(1 << 16));
        assert!(table.reserved && table.copied);
        assert!(TableRef::from_refcount_table(1 << 16 | 1).reserved);
        assert_eq!(with_copied(with_copied(7 << 16, true), false), 7 << 16);
    }
}
