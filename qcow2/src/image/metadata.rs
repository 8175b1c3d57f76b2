//! What an image's own structures occupy: nothing else may ever be written there.
//!
//! At open all structures are compared with each other; from then on a filter says which clusters may be metadata, and
//! only a hit is looked up in the tables (`Tables::structure_at`).

use crate::error::{Error, corrupt};
use crate::format::extension::{BITMAPS, Extensions};
use crate::format::feature::AUTOCLEAR_BITMAPS;
use crate::format::geometry::{Geometry, HostCluster, HostOffset, to_u64, to_usize};
use crate::format::header::Header;
use crate::format::limits::{
    MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAP_TABLE_ENTRIES, MAX_BITMAPS, MAX_INDEXED_L1_ENTRIES,
    MAX_SNAPSHOT_TABLE_BYTES, METADATA_FILTER_BITS,
};
use crate::format::snapshot::{FIXED_BYTES, SnapshotEntry};
use crate::format::wire;
use crate::image::l1::{self, check_inside};
use crate::plan::allocate::ClusterRun;
use crate::storage::{self, Storage};

const REFCOUNT_TABLE: &str = "refcount table";
/// Bytes of an entry of the bitmap directory that have a fixed place.
const BITMAP_FIXED_BYTES: usize = 24;

/// One bit for each cluster, by its number modulo the size: where there is none, there is no metadata.
pub(crate) struct Filter(Vec<u64>);

impl std::fmt::Debug for Filter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Filter")
    }
}

impl Filter {
    pub(crate) fn new() -> Self {
        Self(vec![0; to_usize(METADATA_FILTER_BITS / 64)])
    }

    pub(crate) fn add(&mut self, cluster: HostCluster) {
        let bit = cluster.0 % METADATA_FILTER_BITS;
        self.0[to_usize(bit / 64)] |= 1 << (bit % 64);
    }

    pub(crate) fn may_hold(&self, cluster: HostCluster) -> bool {
        let bit = cluster.0 % METADATA_FILTER_BITS;
        self.0[to_usize(bit / 64)] >> (bit % 64) & 1 == 1
    }
}

/// A structure that stays where it is while the image is open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Structure {
    pub(crate) what: &'static str,
    pub(crate) run: ClusterRun,
}

impl Structure {
    pub(crate) fn holds(&self, cluster: HostCluster) -> bool {
        self.run.start <= cluster && cluster.0 - self.run.start.0 < self.run.count
    }
}

/// An L1 table: where it begins, and how many entries it has.
pub(crate) type L1Place = (HostOffset, u64);

/// Structures that stay where they are, and the L1 tables whose L2 tables are metadata, the active one first.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    pub(crate) fixed: Vec<Structure>,
    pub(crate) l1_tables: Vec<L1Place>,
    file_len: u64,
}

impl Layout {
    /// Reads where everything is that the header names, except refcounts.
    pub(crate) fn read(
        header: &Header,
        extensions: &Extensions,
        file_len: u64,
        storage: &dyn Storage,
    ) -> Result<Self, Error> {
        let active = (header.l1_offset, u64::from(header.l1_entries));
        let mut reader = Reader {
            geometry: header.geometry,
            file_len,
            storage,
            layout: Self {
                fixed: Vec::new(),
                l1_tables: vec![active],
                file_len,
            },
        };
        reader.take("header", HostOffset(0), 1)?;
        reader.take("L1 table", active.0, active.1 * 8)?;
        reader.take_snapshots(header)?;
        // Without their bit the bitmaps are garbage that nobody reads.
        if header.autoclear & AUTOCLEAR_BITMAPS != 0
            && let Some(extension) = extensions.find(BITMAPS)
        {
            reader.take_bitmaps(extension)?;
        }
        Ok(reader.layout)
    }

    /// Compares all structures with each other, and fills `filter` with them. `blocks` are the entries of the refcount
    /// table.
    ///
    /// # Errors
    /// `Corrupt` for two structures in one cluster, and for L2 tables beyond the file's end.
    pub(crate) fn check(
        &mut self,
        geometry: &Geometry,
        table: ClusterRun,
        blocks: &[u64],
        storage: &dyn Storage,
        filter: &mut Filter,
    ) -> Result<(), Error> {
        self.fixed.push(Structure {
            what: REFCOUNT_TABLE,
            run: table,
        });
        // First: what overlaps an L1 table would be read as its entries.
        check_fixed(geometry, &mut self.fixed)?;
        let entries: u64 = self.l1_tables.iter().map(|(_, entries)| entries).sum();
        // One allocation of what is needed at most, so that nothing is copied while it grows.
        let blocks = blocks.iter().filter(|entry| **entry != 0);
        let mut found = Vec::with_capacity(blocks.clone().count() + to_usize(entries));
        found.extend(
            blocks.map(|entry| Tagged::new(geometry.host_cluster(HostOffset(*entry)), Tag::Block)),
        );
        for (number, (at, entries)) in self.l1_tables.iter().enumerate() {
            l1::walk(geometry, storage, *at, *entries, |entry| {
                if entry.table.0 >= self.file_len {
                    return Err(corrupt(format!(
                        "L2 table lies beyond the file: offset={:#x} file_size={}",
                        entry.table.0, self.file_len
                    )));
                }
                // What a snapshot's table says of its references may be out of date.
                let tag = if number == 0 && entry.copied {
                    Tag::OwnL2
                } else {
                    Tag::SharedL2
                };
                found.push(Tagged::new(geometry.host_cluster(entry.table), tag));
                Ok(())
            })?;
        }
        found.sort_unstable();
        for pair in found.windows(2) {
            check_pair(geometry, pair[0], pair[1])?;
        }
        check_found(geometry, &self.fixed, &found)?;
        fill_filter(filter, &self.fixed);
        // The one structure that may move; whoever moves it knows where it is.
        self.fixed
            .retain(|structure| structure.what != REFCOUNT_TABLE);
        for tagged in &found {
            filter.add(tagged.cluster());
        }
        Ok(())
    }
}

/// What a cluster of the sorted list is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    Block,
    OwnL2,
    SharedL2,
}

/// A cluster and its tag in one word: the list of them is as long as the largest L1 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Tagged(u64);

impl Tagged {
    fn new(cluster: HostCluster, tag: Tag) -> Self {
        Self(cluster.0 << 2 | tag as u64)
    }

    fn cluster(self) -> HostCluster {
        HostCluster(self.0 >> 2)
    }

    fn is_shared(self) -> bool {
        self.0 & 3 == Tag::SharedL2 as u64
    }

    fn what(self) -> &'static str {
        if self.0 & 3 == Tag::Block as u64 {
            "refcount block"
        } else {
            "L2 table"
        }
    }
}

fn check_pair(geometry: &Geometry, one: Tagged, other: Tagged) -> Result<(), Error> {
    // Several L1 entries may name one L2 table as long as none claims it for itself.
    if one.cluster() != other.cluster() || one.is_shared() && other.is_shared() {
        return Ok(());
    }
    Err(overlap(geometry, other.what(), one.what(), other.cluster()))
}

/// Compares the structures of fixed place with each other, and leaves them sorted.
fn check_fixed(geometry: &Geometry, fixed: &mut [Structure]) -> Result<(), Error> {
    fixed.sort_unstable_by_key(|structure| structure.run.start);
    for pair in fixed.windows(2) {
        let (one, other) = (pair[0], pair[1]);
        if one.holds(other.run.start) {
            return Err(overlap(geometry, other.what, one.what, other.run.start));
        }
    }
    Ok(())
}

/// Compares the structures of fixed place with the sorted single clusters.
fn check_found(geometry: &Geometry, fixed: &[Structure], found: &[Tagged]) -> Result<(), Error> {
    for structure in fixed {
        let next = found.partition_point(|tagged| tagged.cluster() < structure.run.start);
        if let Some(tagged) = found.get(next)
            && structure.holds(tagged.cluster())
        {
            let (one, other) = (tagged.what(), structure.what);
            return Err(overlap(geometry, one, other, tagged.cluster()));
        }
    }
    Ok(())
}

fn fill_filter(filter: &mut Filter, fixed: &[Structure]) {
    let total: u64 = fixed.iter().map(|structure| structure.run.count).sum();
    if total >= METADATA_FILTER_BITS {
        // Gigabytes of bitmaps in a file of holes: every cluster is looked up.
        filter.0.fill(u64::MAX);
        return;
    }
    for structure in fixed {
        structure
            .run
            .clusters()
            .for_each(|cluster| filter.add(cluster));
    }
}

fn overlap(geometry: &Geometry, one: &str, other: &str, cluster: HostCluster) -> Error {
    corrupt(format!(
        "{one} overlaps {other}: offset={:#x}",
        geometry.host_start(cluster).0
    ))
}

/// Finds the structures that a header names.
struct Reader<'a> {
    geometry: Geometry,
    file_len: u64,
    storage: &'a dyn Storage,
    layout: Layout,
}

impl Reader<'_> {
    fn take(&mut self, what: &'static str, at: HostOffset, len_bytes: u64) -> Result<(), Error> {
        if len_bytes == 0 {
            return Ok(());
        }
        check_inside(what, at, len_bytes, self.file_len)?;
        if !self.geometry.is_aligned(at) {
            return Err(corrupt(format!(
                "{what} is not at a cluster's start: offset={:#x}",
                at.0
            )));
        }
        let run = ClusterRun {
            start: self.geometry.host_cluster(at),
            count: self.geometry.clusters_for(len_bytes),
        };
        self.layout.fixed.push(Structure { what, run });
        Ok(())
    }

    fn take_snapshots(&mut self, header: &Header) -> Result<(), Error> {
        let start = header.snapshots_offset;
        let mut at = start;
        let mut indexed = u64::from(header.l1_entries);
        let count = to_usize(u64::from(header.snapshot_count));
        self.layout.fixed.reserve_exact(count + 2);
        self.layout.l1_tables.reserve_exact(count);
        for _ in 0..header.snapshot_count {
            let mut fixed = [0; FIXED_BYTES];
            check_inside("snapshot table", at, FIXED_BYTES as u64, self.file_len)?;
            storage::read(self.storage, at, &mut fixed)?;
            let entry = SnapshotEntry::parse(&fixed, at)?;
            self.take("snapshot's L1 table", entry.l1_offset, entry.l1_entries * 8)?;
            indexed += entry.l1_entries;
            if indexed <= MAX_INDEXED_L1_ENTRIES {
                let place = (entry.l1_offset, entry.l1_entries);
                self.layout.l1_tables.push(place);
            }
            at.0 += entry.len_bytes;
            if at.0 - start.0 > MAX_SNAPSHOT_TABLE_BYTES {
                return Err(corrupt(format!(
                    "snapshot table is above its limit: offset={:#x} limit={MAX_SNAPSHOT_TABLE_BYTES}",
                    start.0
                )));
            }
        }
        // The padding of the last entry may be missing.
        let len_bytes = (at.0 - start.0).min(self.file_len.saturating_sub(start.0));
        self.take("snapshot table", start, len_bytes)
    }

    /// Persistent bitmaps (qcow2 spec, "Bitmaps"): a directory, and a table for each.
    fn take_bitmaps(&mut self, extension: &[u8]) -> Result<(), Error> {
        if extension.len() < BITMAP_FIXED_BYTES {
            return Err(corrupt(format!(
                "bitmaps extension is too short: len={}",
                extension.len()
            )));
        }
        let count = wire::u32_at(extension, 0);
        let len_bytes = wire::u64_at(extension, 8);
        let start = HostOffset(wire::u64_at(extension, 16));
        if count > MAX_BITMAPS || len_bytes > MAX_BITMAP_DIRECTORY_BYTES {
            return Err(corrupt(format!(
                "bitmap directory is out of bounds: offset={:#x} len={len_bytes} bitmaps={count}",
                start.0
            )));
        }
        self.take("bitmap directory", start, len_bytes)?;
        let end = start.0 + len_bytes;
        let mut at = start;
        let room = to_usize(u64::from(count));
        self.layout.fixed.reserve_exact(room + 1);
        for _ in 0..count {
            if at.0 + to_u64(BITMAP_FIXED_BYTES) > end {
                return Err(corrupt(format!(
                    "bitmap directory ends within an entry: offset={:#x} end={end:#x}",
                    at.0
                )));
            }
            let mut fixed = [0; BITMAP_FIXED_BYTES];
            storage::read(self.storage, at, &mut fixed)?;
            let table = HostOffset(wire::u64_at(&fixed, 0));
            let entries = wire::u32_at(&fixed, 8);
            if entries > MAX_BITMAP_TABLE_ENTRIES {
                return Err(corrupt(format!(
                    "bitmap table is above its limit: offset={:#x} entries={entries}",
                    table.0
                )));
            }
            self.take("bitmap table", table, u64::from(entries) * 8)?;
            let name_len = u64::from(wire::u16_at(&fixed, 18));
            let extra_len = u64::from(wire::u32_at(&fixed, 20));
            let len = to_u64(BITMAP_FIXED_BYTES) + extra_len + name_len;
            at.0 += len.next_multiple_of(8);
        }
        Ok(())
    }
}
