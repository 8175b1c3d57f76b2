//! Every reference that an image makes to its own clusters, in no particular order.

use crate::check::read_table;
use crate::error::Error;
use crate::format::extension::BITMAPS;
use crate::format::feature::AUTOCLEAR_BITMAPS;
use crate::format::geometry::{Geometry, HostOffset, to_u64, to_usize};
use crate::format::header::Header;
use crate::format::l1::L1Entry;
use crate::format::l2::{HostCell, L2Entry};
use crate::format::limits::{
    MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAP_TABLE_ENTRIES, MAX_BITMAPS, MAX_L1_BYTES,
    MAX_SNAPSHOT_TABLE_BYTES,
};
use crate::format::{refcount, wire};
use crate::image::Opened;
use crate::storage::{self, Storage};

/// Bytes of tables read at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// Hears of every reference.
pub(super) trait Visitor {
    /// A range of the file is used once more.
    fn refer(&mut self, at: HostOffset, len_bytes: u64);
    /// An entry says that it is the only one that uses a cluster.
    fn claim(&mut self, at: HostOffset);
    /// A cluster of the disk has one of the file.
    fn guest_cluster(&mut self);
    /// Something cannot be.
    fn corrupt(&mut self, text: String);
}

/// Walks the tables of one file.
pub(super) struct Walker<'a> {
    storage: &'a dyn Storage,
    header: &'a Header,
    geometry: Geometry,
    file_len: u64,
    refcount_table: Vec<u64>,
    bitmaps: Option<Vec<u8>>,
}

impl<'a> Walker<'a> {
    pub(super) fn new(storage: &'a dyn Storage, opened: &'a Opened) -> Result<Self, Error> {
        let header = &opened.header;
        let geometry = header.geometry;
        let file_len = opened.info.file_size_bytes;
        let len_bytes = u64::from(header.refcount_table_clusters) * geometry.cluster_size();
        let table = read_table(storage, header.refcount_table_offset, len_bytes, file_len)?;
        let refcount_table = table.map(|bytes| wire::table(&bytes)).unwrap_or_default();
        let mut cluster = vec![0; to_usize(geometry.cluster_size())];
        storage::read_padded(storage, HostOffset(0), &mut cluster)?;
        let (extensions, _) = header.parse_cluster(&cluster)?;
        // Without their bit the bitmaps are garbage that nobody reads.
        let valid = header.autoclear & AUTOCLEAR_BITMAPS != 0;
        let bitmaps = extensions
            .find(BITMAPS)
            .filter(|_| valid)
            .map(<[u8]>::to_vec);
        Ok(Self {
            storage,
            header,
            geometry,
            file_len,
            refcount_table,
            bitmaps,
        })
    }

    /// Clusters to compare: those of the file, and those counted behind its end.
    pub(super) fn clusters(&self) -> u64 {
        let last = self.refcount_table.iter().rposition(|entry| *entry != 0);
        let counted = last.map_or(0, |index| {
            (to_u64(index) + 1) * self.geometry.block_entries()
        });
        let in_file = self.geometry.clusters_for(self.file_len);
        // Counts far behind the end of a small file are not worth gigabytes of window.
        in_file.max(counted.min(in_file + self.geometry.block_entries()))
    }

    /// The refcount block with an index; `None` where it does not exist or cannot be.
    pub(super) fn block(&self, index: u64) -> Result<Option<Vec<u8>>, Error> {
        let raw = self
            .refcount_table
            .get(to_usize(index))
            .copied()
            .unwrap_or(0);
        match refcount::parse_table_entry(raw, &self.geometry) {
            Ok(Some(at)) if at.0 < self.file_len => {
                let mut bytes = vec![0; to_usize(self.geometry.cluster_size())];
                storage::read_padded(self.storage, at, &mut bytes)?;
                Ok(Some(bytes))
            }
            _ => Ok(None),
        }
    }

    /// Tells `visitor` of everything.
    pub(super) fn walk(&self, visitor: &mut impl Visitor) -> Result<(), Error> {
        visitor.refer(HostOffset(0), self.geometry.cluster_size());
        self.walk_refcounts(visitor);
        let header = self.header;
        self.walk_l1(
            header.l1_offset,
            u64::from(header.l1_entries),
            true,
            visitor,
        )?;
        self.walk_snapshots(visitor)?;
        self.walk_bitmaps(visitor)
    }

    fn walk_refcounts(&self, visitor: &mut impl Visitor) {
        let cluster_size = self.geometry.cluster_size();
        let clusters = u64::from(self.header.refcount_table_clusters);
        visitor.refer(self.header.refcount_table_offset, clusters * cluster_size);
        if self.refcount_table.is_empty() {
            visitor.corrupt("refcount table ends beyond the file".into());
        }
        for raw in &self.refcount_table {
            match refcount::parse_table_entry(*raw, &self.geometry) {
                Ok(None) => {}
                Ok(Some(at)) => self.refer_inside("refcount block", at, cluster_size, visitor),
                Err(error) => visitor.corrupt(error.to_string()),
            }
        }
    }

    /// Refers to a range that must begin inside the file.
    fn refer_inside(&self, what: &str, at: HostOffset, len: u64, visitor: &mut impl Visitor) {
        if at.0 >= self.file_len {
            visitor.corrupt(format!(
                "{what} lies beyond the file: offset={:#x} file_size={}",
                at.0, self.file_len
            ));
        } else {
            visitor.refer(at, len);
        }
    }

    fn walk_l1(
        &self,
        at: HostOffset,
        entries: u64,
        active: bool,
        visitor: &mut impl Visitor,
    ) -> Result<(), Error> {
        let Some(bytes) = read_table(self.storage, at, entries * 8, self.file_len)? else {
            visitor.corrupt(format!("L1 table ends beyond the file: offset={:#x}", at.0));
            return Ok(());
        };
        // An empty table takes its cluster all the same where the header names one.
        let len_bytes = if at.0 == 0 { 0 } else { (entries * 8).max(1) };
        visitor.refer(at, len_bytes);
        for raw in wire::table(&bytes) {
            match L1Entry::parse(raw, &self.geometry) {
                Ok(None) => {}
                Ok(Some(entry)) => self.walk_l2(&entry, active, visitor)?,
                Err(error) => visitor.corrupt(error.to_string()),
            }
        }
        Ok(())
    }

    fn walk_l2(&self, l1: &L1Entry, active: bool, visitor: &mut impl Visitor) -> Result<(), Error> {
        let cluster_size = self.geometry.cluster_size();
        self.refer_inside("L2 table", l1.table, cluster_size, visitor);
        if l1.table.0 >= self.file_len {
            return Ok(());
        }
        if active && l1.copied {
            visitor.claim(l1.table);
        }
        let mut bytes = vec![0; to_usize(cluster_size)];
        storage::read_padded(self.storage, l1.table, &mut bytes)?;
        for raw in wire::table(&bytes) {
            match L2Entry::parse(raw, self.header.version, &self.geometry) {
                Ok(L2Entry::Unallocated | L2Entry::Zero { kept: None }) => {}
                Ok(L2Entry::Data(cell) | L2Entry::Zero { kept: Some(cell) }) => {
                    self.walk_data(cell, active, visitor);
                }
                Ok(L2Entry::Compressed(cell)) => {
                    let len = u64::from(cell.len_bytes);
                    self.refer_inside("compressed cluster", cell.offset, len, visitor);
                    if active {
                        visitor.guest_cluster();
                    }
                }
                Err(error) => visitor.corrupt(error.to_string()),
            }
        }
        Ok(())
    }

    fn walk_data(&self, cell: HostCell, active: bool, visitor: &mut impl Visitor) {
        self.refer_inside(
            "data cluster",
            cell.offset,
            self.geometry.cluster_size(),
            visitor,
        );
        if active {
            visitor.guest_cluster();
            if cell.copied {
                visitor.claim(cell.offset);
            }
        }
    }

    /// Internal snapshots (qcow2 spec, "Snapshots"): entries of varying length, each with an L1 table.
    fn walk_snapshots(&self, visitor: &mut impl Visitor) -> Result<(), Error> {
        let start = self.header.snapshots_offset.0;
        let mut at = start;
        for _ in 0..self.header.snapshot_count {
            let Some(fixed) = read_table(self.storage, HostOffset(at), 40, self.file_len)? else {
                visitor.corrupt(format!(
                    "snapshot table ends beyond the file: offset={at:#x}"
                ));
                return Ok(());
            };
            let l1_at = HostOffset(wire::u64_at(&fixed, 0));
            let l1_entries = u64::from(wire::u32_at(&fixed, 8));
            let id_len = u64::from(wire::u16_at(&fixed, 12));
            let name_len = u64::from(wire::u16_at(&fixed, 14));
            let extra_len = u64::from(wire::u32_at(&fixed, 36));
            let len_bytes = 40 + extra_len + id_len + name_len;
            if at - start + len_bytes > MAX_SNAPSHOT_TABLE_BYTES || l1_entries * 8 > MAX_L1_BYTES {
                visitor.corrupt(format!("snapshot is out of bounds: offset={at:#x}"));
                return Ok(());
            }
            self.walk_l1(l1_at, l1_entries, false, visitor)?;
            at = (at + len_bytes).next_multiple_of(8);
        }
        visitor.refer(self.header.snapshots_offset, at - start);
        Ok(())
    }

    /// Persistent bitmaps (qcow2 spec, "Bitmaps"): a directory, a table for each, clusters of bits.
    fn walk_bitmaps(&self, visitor: &mut impl Visitor) -> Result<(), Error> {
        let Some(extension) = &self.bitmaps else {
            return Ok(());
        };
        if extension.len() < 24 {
            visitor.corrupt(format!(
                "bitmaps extension is too short: len={}",
                extension.len()
            ));
            return Ok(());
        }
        let count = wire::u32_at(extension, 0);
        let len_bytes = wire::u64_at(extension, 8);
        let directory_at = HostOffset(wire::u64_at(extension, 16));
        if count > MAX_BITMAPS || len_bytes > MAX_BITMAP_DIRECTORY_BYTES {
            visitor.corrupt(format!(
                "bitmap directory is out of bounds: len={len_bytes}"
            ));
            return Ok(());
        }
        let directory = read_table(self.storage, directory_at, len_bytes, self.file_len)?;
        let Some(directory) = directory else {
            visitor.corrupt(format!(
                "bitmap directory ends beyond the file: len={len_bytes}"
            ));
            return Ok(());
        };
        visitor.refer(directory_at, len_bytes);
        let mut rest = &directory[..];
        for _ in 0..count {
            if rest.len() < 24 {
                visitor.corrupt("bitmap directory ends within an entry".into());
                return Ok(());
            }
            let name_len = usize::from(wire::u16_at(rest, 18));
            let extra_len = to_usize(u64::from(wire::u32_at(rest, 20)));
            self.walk_bitmap(wire::u64_at(rest, 0), wire::u32_at(rest, 8), visitor)?;
            let len = (24 + extra_len + name_len).next_multiple_of(8);
            rest = rest.get(len..).unwrap_or_default();
        }
        Ok(())
    }

    fn walk_bitmap(&self, at: u64, entries: u32, visitor: &mut impl Visitor) -> Result<(), Error> {
        let end = u64::from(entries) * 8 + at;
        if at == 0 || entries > MAX_BITMAP_TABLE_ENTRIES || end > self.file_len {
            visitor.corrupt(format!("bitmap table is out of bounds: offset={at:#x}"));
            return Ok(());
        }
        visitor.refer(HostOffset(at), u64::from(entries) * 8);
        let mut at = at;
        while at < end {
            let len = CHUNK_BYTES.min(end - at);
            let mut bytes = vec![0; to_usize(len)];
            storage::read(self.storage, HostOffset(at), &mut bytes)?;
            for raw in wire::table(&bytes) {
                // The lowest bit says all zeroes or all ones where there is no cluster.
                if raw & !1 != 0 {
                    let size = self.geometry.cluster_size();
                    self.refer_inside("bitmap data", HostOffset(raw & !0x1ff), size, visitor);
                }
            }
            at += len;
        }
        Ok(())
    }
}
