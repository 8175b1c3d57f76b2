//! Entries of the snapshot table (qcow2 spec, "Snapshots"): of varying length, each with an L1 table of its own.

use crate::error::{Error, corrupt};
use crate::format::geometry::HostOffset;
use crate::format::limits::MAX_L1_BYTES;
use crate::format::wire;

/// Bytes at the beginning of an entry that have a fixed place.
pub const FIXED_BYTES: usize = 40;

/// What the fixed part of an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// Where the snapshot's L1 table begins.
    pub l1_offset: HostOffset,
    /// Entries of that table.
    pub l1_entries: u64,
    /// Bytes of the whole entry, to the beginning of the next.
    pub len_bytes: u64,
}

impl SnapshotEntry {
    /// Reads the fixed part of the entry that lies at `at`.
    ///
    /// # Errors
    /// `Corrupt` for an L1 table above its limit.
    pub fn parse(fixed: &[u8; FIXED_BYTES], at: HostOffset) -> Result<Self, Error> {
        let l1_entries = u64::from(wire::u32_at(fixed, 8));
        if l1_entries * 8 > MAX_L1_BYTES {
            return Err(corrupt(format!(
                "snapshot has an L1 table above its limit: offset={:#x} l1_size={l1_entries}",
                at.0
            )));
        }
        let id_len = u64::from(wire::u16_at(fixed, 12));
        let name_len = u64::from(wire::u16_at(fixed, 14));
        let extra_len = u64::from(wire::u32_at(fixed, 36));
        let len_bytes = FIXED_BYTES as u64 + extra_len + id_len + name_len;
        Ok(Self {
            l1_offset: HostOffset(wire::u64_at(fixed, 0)),
            l1_entries,
            len_bytes: len_bytes.next_multiple_of(8),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_as_long_as_its_parts() {
        let mut fixed = [0; FIXED_BYTES];
        fixed[6] = 2;
        fixed[11] = 3;
        fixed[13] = 1;
        fixed[15] = 5;
        fixed[39] = 24;
        let entry = SnapshotEntry::parse(&fixed, HostOffset(512)).unwrap();
        let expected = SnapshotEntry {
            l1_offset: HostOffset(512),
            l1_entries: 3,
            len_bytes: 72,
        };
        assert_eq!(entry, expected);
        fixed[8] = 1;
        let error = SnapshotEntry::parse(&fixed, HostOffset(512)).unwrap_err();
        assert!(error.to_string().contains("offset=0x200 l1_size=16777219"));
    }
}
