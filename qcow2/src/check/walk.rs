//! Every reference that an image makes to its own clusters. Refcount blocks come last: whatever was seen before them
//! and lies where they lie is in their way.

use std::collections::BTreeSet;

use crate::check::Facts;
use crate::error::Error;
use crate::format::extension::BITMAPS;
use crate::format::feature::AUTOCLEAR_BITMAPS;
use crate::format::geometry::{Geometry, HostCluster, HostOffset, to_u64, to_usize};
use crate::format::header::Header;
use crate::format::limits::{
    MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAP_TABLE_ENTRIES, MAX_BITMAPS, MAX_CHECKED_CLUSTERS,
    MAX_HOST_OFFSET, MAX_L1_BYTES, MAX_SNAPSHOT_TABLE_BYTES,
};
use crate::format::suspect::{L2Ref, TableRef, Target};
use crate::format::wire;
use crate::image::Opened;
use crate::storage::{self, Storage};

/// Bytes of tables read at a time.
const CHUNK_BYTES: u64 = 1 << 20;
/// Bytes of a snapshot's entry at a fixed place, of which the spec asks in version 3 for 16 more.
const SNAPSHOT_BYTES: usize = 40;
const SNAPSHOT_EXTRA_BYTES: u64 = 16;
/// Bytes of a bitmap's entry at a fixed place.
const BITMAP_BYTES: usize = 24;
/// Bits of a bitmap table entry that are an offset, and those that must be zero.
const BITMAP_OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const BITMAP_RESERVED: u64 = 0xff00_0000_0000_01fe;

/// What a cluster is used for. Only clusters of one kind, and only these two kinds, are ever shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Guest data, plain or compressed: snapshots and compressed neighbours share them.
    Data,
    /// L2 tables: snapshots share them.
    L2,
    /// All that exists once: the header, other tables, bitmaps.
    Single,
    /// A part of the refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
}

/// Hears of everything.
pub(super) trait Visitor {
    /// The clusters from `first` to `last` are used once more.
    fn refer(&mut self, kind: Kind, first: HostCluster, last: HostCluster);
    /// A cluster of the disk has one of the file: not the next one after that of its neighbour; compressed.
    fn guest_cluster(&mut self, fragmented: bool, compressed: bool);
    /// Something cannot be.
    fn corrupt(&mut self, text: String);
    /// What a repair has to know of it.
    fn facts(&mut self) -> &mut Facts;
}

/// Walks the tables of one file.
#[derive(Debug)]
pub(super) struct Walker<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) header: &'a Header,
    pub(super) geometry: Geometry,
    pub(super) file_len: u64,
    refcount_table: Vec<u64>,
    bitmaps: Option<Vec<u8>>,
}

impl<'a> Walker<'a> {
    pub(super) fn new(storage: &'a dyn Storage, opened: &'a Opened) -> Result<Self, Error> {
        let header = &opened.header;
        let geometry = header.geometry;
        let file_len = opened.info.file_size_bytes;
        let mut cluster = vec![0; to_usize(geometry.cluster_size())];
        storage::read_padded(storage, HostOffset(0), &mut cluster)?;
        let (extensions, _) = header.parse_cluster(&cluster)?;
        // Without their bit the bitmaps are garbage that nobody reads.
        let valid = header.autoclear & AUTOCLEAR_BITMAPS != 0;
        let bitmaps = extensions
            .find(BITMAPS)
            .filter(|_| valid)
            .map(<[u8]>::to_vec);
        let mut walker = Self {
            storage,
            header,
            geometry,
            file_len,
            refcount_table: Vec::new(),
            bitmaps,
        };
        if walker.clusters() > MAX_CHECKED_CLUSTERS {
            return Err(crate::error::unsupported(format!(
                "file has more clusters than can be checked: file_size={file_len} clusters={} \
                 limit={MAX_CHECKED_CLUSTERS}",
                walker.clusters()
            )));
        }
        let mut bytes = vec![0; to_usize(walker.refcount_table_bytes())];
        walker.read(header.refcount_table_offset, &mut bytes)?;
        walker.refcount_table = wire::table(&bytes);
        Ok(walker)
    }

    /// Clusters of the file, the last one perhaps in part. What is counted behind them wastes nothing, unless something
    /// reaches into the next one.
    pub(super) fn clusters(&self) -> u64 {
        self.geometry.clusters_for(self.file_len)
    }

    fn refcount_table_bytes(&self) -> u64 {
        u64::from(self.header.refcount_table_clusters) * self.geometry.cluster_size()
    }

    /// Where the refcount block with an index is; `None` where there is none or it cannot be.
    pub(super) fn block_at(&self, index: u64) -> Option<HostOffset> {
        let raw = *self.refcount_table.get(to_usize(index))?;
        let block = TableRef::from_refcount_table(raw).at;
        let inside = block.0 != 0 && block.0 < self.file_len;
        (inside && self.geometry.is_aligned(block)).then_some(block)
    }

    /// The refcounts of a block, as they are stored. Where there is none they are all 0.
    pub(super) fn block(&self, index: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(at) = self.block_at(index) else {
            return Ok(None);
        };
        let mut bytes = vec![0; to_usize(self.geometry.cluster_size())];
        self.read(at, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Reads, and takes what lies beyond the file as zeroes.
    pub(super) fn read(&self, at: HostOffset, into: &mut [u8]) -> Result<(), Error> {
        if at.0 >= self.file_len {
            into.fill(0);
            return Ok(());
        }
        storage::read_padded(self.storage, at, into)
    }

    /// Tells `visitor` of everything.
    pub(super) fn walk(&self, visitor: &mut impl Visitor) -> Result<(), Error> {
        let header = self.header;
        if header.autoclear & !AUTOCLEAR_BITMAPS != 0 {
            // Whatever these features keep in the file, nobody here knows of it.
            visitor.facts().incomplete = true;
        }
        let cluster_size = self.geometry.cluster_size();
        self.refer(Kind::Single, "header", HostOffset(0), cluster_size, visitor);
        let entries = u64::from(header.l1_entries);
        self.walk_l1(header.l1_offset, entries, true, visitor)?;
        self.walk_snapshots(visitor)?;
        let (at, len) = (header.refcount_table_offset, self.refcount_table_bytes());
        if !self.refer(Kind::RefcountTable, "refcount table", at, len, visitor) {
            visitor.facts().unsound = true;
        }
        self.walk_bitmaps(visitor)?;
        self.walk_blocks(visitor);
        Ok(())
    }

    /// Refers to a range, unless it ends beyond the file by a cluster or more; the last cluster may be cut short.
    fn refer(
        &self,
        kind: Kind,
        what: &str,
        at: HostOffset,
        len_bytes: u64,
        visitor: &mut impl Visitor,
    ) -> bool {
        if len_bytes == 0 {
            return true;
        }
        let end = at.0.saturating_add(len_bytes);
        if end - self.file_len.min(end) >= self.geometry.cluster_size() {
            let beyond = &mut visitor.facts().first_beyond;
            *beyond = Some(beyond.map_or(at.0, |first| first.min(at.0)));
            visitor.corrupt(format!(
                "{what} lies beyond the file: offset={:#x} len={len_bytes} file_size={}",
                at.0, self.file_len
            ));
            return false;
        }
        let last = self.geometry.host_cluster(HostOffset(end - 1));
        visitor.facts().spills |= last.0 >= self.clusters();
        visitor.refer(kind, self.geometry.host_cluster(at), last);
        true
    }

    fn walk_blocks(&self, visitor: &mut impl Visitor) {
        let size = self.geometry.cluster_size();
        for (index, raw) in self.refcount_table.iter().enumerate() {
            let block = TableRef::from_refcount_table(*raw);
            if block.reserved || !self.geometry.is_aligned(block.at) {
                visitor.facts().unsound = true;
                visitor.corrupt(format!(
                    "refcount table entry is damaged: index={index} entry={raw:#x}"
                ));
            } else if block.at.0 != 0 {
                let inside = self.refer(
                    Kind::RefcountBlock,
                    "refcount block",
                    block.at,
                    size,
                    visitor,
                );
                visitor.facts().unsound |= !inside;
            }
        }
    }

    /// Calls `each` with the index of every entry of an L1 table and the entry.
    pub(super) fn each_l1(
        &self,
        at: HostOffset,
        entries: u64,
        mut each: impl FnMut(u64, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut first = 0;
        while first < entries {
            let count = (CHUNK_BYTES / 8).min(entries - first);
            let mut bytes = vec![0; to_usize(count * 8)];
            self.read(HostOffset(at.0 + first * 8), &mut bytes)?;
            for (index, raw) in (first..).zip(wire::table(&bytes)) {
                each(index, raw)?;
            }
            first += count;
        }
        Ok(())
    }

    fn walk_l1(
        &self,
        at: HostOffset,
        entries: u64,
        active: bool,
        visitor: &mut impl Visitor,
    ) -> Result<(), Error> {
        if !self.refer(Kind::Single, "L1 table", at, entries * 8, visitor) {
            visitor.facts().incomplete = true;
        }
        if at.0 >= self.file_len {
            return Ok(());
        }
        let mut walked = 0;
        self.each_l1(at, entries, |index, raw| {
            if raw == 0 {
                return Ok(());
            }
            // Some of so many are the same one: a small file must not be able to ask for endless work.
            if walked == self.clusters() {
                return Ok(());
            }
            walked += 1;
            if walked == self.clusters() {
                visitor.facts().incomplete = true;
                visitor.corrupt(format!(
                    "L1 table names as many L2 tables as the file has clusters: offset={:#x} \
                     l1_size={entries} clusters={walked}",
                    at.0
                ));
                return Ok(());
            }
            let table = TableRef::from_l1(raw);
            if table.reserved {
                visitor.corrupt(format!(
                    "L1 entry has reserved bits set: index={index} entry={raw:#x}"
                ));
            }
            let inside = self.refer(
                Kind::L2,
                "L2 table",
                table.at,
                self.geometry.cluster_size(),
                visitor,
            );
            let aligned = self.geometry.is_aligned(table.at);
            if !aligned {
                visitor.corrupt(format!(
                    "L2 table is not at a cluster's start: index={index} entry={raw:#x}"
                ));
            }
            // A reserved bit may be a bit of the offset that has flipped.
            visitor.facts().incomplete |= !inside || !aligned || table.reserved;
            self.walk_l2(table.at, active, visitor)
        })
    }

    fn walk_l2(
        &self,
        at: HostOffset,
        active: bool,
        visitor: &mut impl Visitor,
    ) -> Result<(), Error> {
        let cluster_size = self.geometry.cluster_size();
        let mut bytes = vec![0; to_usize(cluster_size)];
        self.read(at, &mut bytes)?;
        let mut next = None;
        let table = wire::table(&bytes);
        for (index, words) in table
            .chunks_exact(self.geometry.l2_entry_words())
            .enumerate()
        {
            let (raw, subclusters) = (words[0], words.get(1).copied());
            let entry = L2Ref::parse(raw, subclusters, self.header.version, &self.geometry);
            let told =
                |what: &str| format!("{what}: table={:#x} index={index} entry={raw:#x}", at.0);
            if entry.reserved {
                visitor.facts().incomplete = true;
                visitor.corrupt(told("L2 entry has reserved bits set"));
            }
            if entry.torn {
                visitor.facts().incomplete = true;
                visitor.corrupt(format!(
                    "{}: subclusters={:#x}",
                    told("extended L2 entry has subclusters that cannot be"),
                    subclusters.unwrap_or(0)
                ));
            }
            match entry.target {
                Target::Nothing => {}
                Target::Cluster(offset) => {
                    if !self.geometry.is_aligned(offset) {
                        visitor.facts().incomplete = true;
                        visitor.corrupt(told("data is not at a cluster's start"));
                    }
                    if active {
                        visitor.guest_cluster(next.is_some_and(|next| next != offset.0), false);
                        next = Some(offset.0 + cluster_size);
                    }
                    self.refer(Kind::Data, "data cluster", offset, cluster_size, visitor);
                }
                Target::Compressed { at, len_bytes } => {
                    if entry.copied {
                        visitor.corrupt(told("compressed cluster claims to be the only one"));
                    }
                    if entry.torn {
                        // It has no subclusters: whatever this is, its place may mean something else.
                        continue;
                    }
                    self.refer(Kind::Data, "compressed cluster", at, len_bytes, visitor);
                    if active {
                        // They have no place that would continue another one.
                        visitor.guest_cluster(true, true);
                    }
                }
            }
        }
        Ok(())
    }

    /// Internal snapshots (qcow2 spec, "Snapshots"): entries of varying length, each with an L1 table.
    fn walk_snapshots(&self, visitor: &mut impl Visitor) -> Result<(), Error> {
        let start = self.header.snapshots_offset.0;
        let mut at = start;
        let mut walked = BTreeSet::new();
        for index in 0..self.header.snapshot_count {
            let mut fixed = [0; SNAPSHOT_BYTES];
            self.read(HostOffset(at), &mut fixed)?;
            let l1_at = HostOffset(wire::u64_at(&fixed, 0));
            let l1_entries = u64::from(wire::u32_at(&fixed, 8));
            let id_len = u64::from(wire::u16_at(&fixed, 12));
            let name_len = u64::from(wire::u16_at(&fixed, 14));
            let extra_len = u64::from(wire::u32_at(&fixed, 36));
            let end = at + to_u64(SNAPSHOT_BYTES) + extra_len + id_len + name_len;
            if end > self.file_len || end - start > MAX_SNAPSHOT_TABLE_BYTES {
                visitor.facts().incomplete = true;
                visitor.corrupt(format!(
                    "snapshot table ends out of bounds: index={index} offset={at:#x} end={end}"
                ));
                return Ok(());
            }
            if self.header.version >= 3 && extra_len < SNAPSHOT_EXTRA_BYTES {
                visitor.corrupt(format!(
                    "snapshot is described in part: index={index} offset={at:#x} \
                     extra_data_size={extra_len}"
                ));
            }
            if !self.geometry.is_aligned(l1_at)
                || l1_at.0 > MAX_HOST_OFFSET
                || l1_entries * 8 > MAX_L1_BYTES
            {
                visitor.facts().incomplete = true;
                visitor.corrupt(format!(
                    "L1 table of a snapshot is out of bounds: index={index} offset={:#x} \
                     l1_size={l1_entries}",
                    l1_at.0
                ));
            } else if l1_entries > 0 && !walked.insert(l1_at) {
                // Walking it again for each of them would never end.
                visitor.facts().incomplete = true;
                visitor.corrupt(format!(
                    "two snapshots have one L1 table: index={index} offset={:#x}",
                    l1_at.0
                ));
            } else {
                self.walk_l1(l1_at, l1_entries, false, visitor)?;
            }
            at = end.next_multiple_of(8);
        }
        let (at, len) = (self.header.snapshots_offset, at - start);
        self.refer(Kind::Single, "snapshot table", at, len, visitor);
        Ok(())
    }

    /// Persistent bitmaps (qcow2 spec, "Bitmaps"): a directory, a table for each, clusters of bits.
    fn walk_bitmaps(&self, visitor: &mut impl Visitor) -> Result<(), Error> {
        let Some(extension) = &self.bitmaps else {
            return Ok(());
        };
        if extension.len() != BITMAP_BYTES {
            let text = format!(
                "bitmaps extension has another length: len={}",
                extension.len()
            );
            lost(visitor, text);
            return Ok(());
        }
        let count = wire::u32_at(extension, 0);
        let len_bytes = wire::u64_at(extension, 8);
        let start = wire::u64_at(extension, 16);
        let end = start.saturating_add(len_bytes);
        if count == 0
            || count > MAX_BITMAPS
            || wire::u32_at(extension, 4) != 0
            || len_bytes > MAX_BITMAP_DIRECTORY_BYTES
            || !self.geometry.is_aligned(HostOffset(start))
            || end > self.file_len
        {
            let text = format!(
                "bitmap directory is out of bounds: offset={start:#x} len={len_bytes} count={count}"
            );
            lost(visitor, text);
            return Ok(());
        }
        self.refer(
            Kind::Single,
            "bitmap directory",
            HostOffset(start),
            len_bytes,
            visitor,
        );
        let mut at = start;
        for index in 0..count {
            let mut fixed = [0; BITMAP_BYTES];
            self.read(HostOffset(at), &mut fixed)?;
            let name_len = u64::from(wire::u16_at(&fixed, 18));
            let extra_len = u64::from(wire::u32_at(&fixed, 20));
            let next = (at + to_u64(BITMAP_BYTES) + extra_len + name_len).next_multiple_of(8);
            if next > end {
                let text = format!("bitmap directory ends within an entry: index={index}");
                lost(visitor, text);
                return Ok(());
            }
            let table = HostOffset(wire::u64_at(&fixed, 0));
            self.walk_bitmap(index, table, wire::u32_at(&fixed, 8), visitor)?;
            at = next;
        }
        Ok(())
    }

    fn walk_bitmap(
        &self,
        bitmap: u32,
        at: HostOffset,
        entries: u32,
        visitor: &mut impl Visitor,
    ) -> Result<(), Error> {
        let len = u64::from(entries) * 8;
        let out = at.0 == 0
            || entries == 0
            || entries > MAX_BITMAP_TABLE_ENTRIES
            || !self.geometry.is_aligned(at)
            || at.0.saturating_add(len) > self.file_len;
        if out {
            let text = format!(
                "bitmap table is out of bounds: index={bitmap} offset={:#x} entries={entries}",
                at.0
            );
            lost(visitor, text);
            return Ok(());
        }
        self.refer(Kind::Single, "bitmap table", at, len, visitor);
        self.each_l1(at, u64::from(entries), |index, raw| {
            let offset = HostOffset(raw & BITMAP_OFFSET_MASK);
            // The lowest bit says all zeroes or all ones where there is no cluster.
            let flagged = offset.0 != 0 && raw & 1 != 0;
            if raw & BITMAP_RESERVED != 0 || flagged || !self.geometry.is_aligned(offset) {
                let text = format!(
                    "bitmap table entry is damaged: bitmap={bitmap} index={index} entry={raw:#x}"
                );
                lost(visitor, text);
            } else if offset.0 != 0 {
                let size = self.geometry.cluster_size();
                self.refer(Kind::Single, "bitmap data", offset, size, visitor);
            }
            Ok(())
        })
    }
}

/// Something cannot be read, and with it references that it may hold.
fn lost(visitor: &mut impl Visitor, text: String) {
    visitor.facts().incomplete = true;
    visitor.corrupt(text);
}
