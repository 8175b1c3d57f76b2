//! The order in which changes become durable. The order is code: a stage is written only after the sync of
//! the one before has returned, and [`Changes::stages`] decides what belongs to which.
//!
//! ```text
//!   1  refcount blocks · new L2 tables (nobody refers to them yet) · guest data written before
//!   2  refcount table entries, or the new table        only when a block was added
//!   3  header: place of the refcount table             only when the table moved
//!   4  L2 entries in place · L1 entries
//!   –  in memory: the clusters that were let go may be reused; their refcounts fall with the next commit
//! ```
//! After any cut the tables refer only to what an earlier stage made durable; what may be left over are leaks.

use std::ops::Range;
use std::sync::Arc;

use crate::format::geometry::HostOffset;
use crate::format::wire;

/// Bytes of a sector: the unit in which a disk writes.
const SECTOR_BYTES: usize = 512;

/// Where the bytes of a write come from; tables are shared, not copied.
#[derive(Debug, Clone)]
pub enum Payload {
    /// As they are.
    Bytes(Arc<Vec<u8>>),
    /// Entries of a table.
    Entries(Arc<Vec<u64>>, Range<usize>),
}

impl Payload {
    /// The bytes to write.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.as_ref().clone(),
            Self::Entries(entries, range) => wire::table_bytes(&entries[range.clone()]),
        }
    }
}

/// One write of a stage.
#[derive(Debug, Clone)]
pub struct Write {
    /// Where.
    pub at: HostOffset,
    /// What.
    pub payload: Payload,
}

/// Everything that changed since the last commit, sorted by what it is.
#[derive(Debug, Default)]
pub struct Changes {
    /// Refcount blocks, old and new.
    pub refcount_blocks: Vec<Write>,
    /// L2 tables that no L1 entry on disk refers to.
    pub new_tables: Vec<Write>,
    /// Entries of the refcount table, or all of it at its new place.
    pub refcount_table: Vec<Write>,
    /// The header fields that name the refcount table.
    pub header: Vec<Write>,
    /// Entries of L2 tables that are in use.
    pub entries: Vec<Write>,
    /// L1 entries that link the new tables.
    pub links: Vec<Write>,
}

impl Changes {
    /// The stages in order. Each is followed by a sync; the first exists always, because guest data belongs to it.
    pub fn stages(self) -> Vec<Vec<Write>> {
        let mut first = self.refcount_blocks;
        first.extend(self.new_tables);
        let mut last = self.entries;
        last.extend(self.links);
        let mut stages = vec![first];
        stages.extend(
            [self.refcount_table, self.header, last]
                .into_iter()
                .filter(|stage| !stage.is_empty()),
        );
        // In the order of the file: a disk likes it, and a run from a seed can be repeated to the byte.
        for stage in &mut stages {
            stage.sort_unstable_by_key(|write| write.at);
        }
        stages
    }
}

/// Widens a range of table entries to whole sectors, so that a write never splits one.
pub fn whole_sectors(range: Range<usize>, table_len: usize) -> Range<usize> {
    let per_sector = SECTOR_BYTES / 8;
    let start = range.start / per_sector * per_sector;
    start..range.end.next_multiple_of(per_sector).min(table_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(at: u64) -> Vec<Write> {
        vec![Write {
            at: HostOffset(at),
            payload: Payload::Bytes(Arc::new(vec![])),
        }]
    }

    #[test]
    fn nothing_is_linked_before_it_is_durable() {
        let changes = Changes {
            refcount_blocks: write(1),
            new_tables: write(2),
            refcount_table: write(3),
            header: write(4),
            entries: write(5),
            links: write(6),
        };
        let places: Vec<Vec<u64>> = changes
            .stages()
            .iter()
            .map(|stage| stage.iter().map(|write| write.at.0).collect())
            .collect();
        assert_eq!(places, [vec![1, 2], vec![3], vec![4], vec![5, 6]]);
    }

    #[test]
    fn a_stage_is_written_in_the_order_of_the_file() {
        let [mut blocks, second] = [write(7), write(3)];
        blocks.extend(second);
        let changes = Changes {
            refcount_blocks: blocks,
            new_tables: write(5),
            ..Changes::default()
        };
        let stages = changes.stages();
        let places: Vec<u64> = stages[0].iter().map(|write| write.at.0).collect();
        assert_eq!(places, [3, 5, 7]);
    }

    #[test]
    fn data_alone_is_one_sync() {
        assert_eq!(Changes::default().stages().len(), 1);
    }

    #[test]
    fn sectors_are_not_split() {
        assert_eq!(whole_sectors(65..66, 8192), 64..128);
        assert_eq!(whole_sectors(0..64, 64), 0..64);
        assert_eq!(whole_sectors(3..5, 10), 0..10);
    }
}
