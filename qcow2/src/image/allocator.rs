//! Refcounts in memory and the clusters they belong to.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, corrupt, damage};
use crate::format::geometry::{Geometry, HostCluster, HostOffset, to_u64, to_usize};
use crate::format::header::{self, Header, REFCOUNT_TABLE_AT};
use crate::format::l2::CompressedCell;
use crate::format::limits::{
    CACHE_ENTRY_BYTES, MAX_HOST_OFFSET, MAX_REFCOUNT_TABLE_BYTES, MAX_TRAILING_BLOCKS,
};
use crate::format::{refcount, wire};
use crate::image::MemoryLimits;
use crate::image::l1::check_inside;
use crate::image::metadata::{Filter, Layout};
use crate::plan::allocate::{ClusterRun, FreeSpace};
use crate::plan::order::{Changes, Payload, Write, whole_sectors};
use crate::storage::{self, Storage};

#[derive(Debug)]
struct Block {
    bytes: Arc<Vec<u8>>,
    dirty: bool,
    /// Part of a commit under way: the file may not have it yet.
    in_commit: bool,
    used: u64,
}

/// The refcounts of an image: blocks as they are needed, the table as a whole.
#[derive(Debug)]
pub(crate) struct Allocator {
    geometry: Geometry,
    pub(crate) limits: MemoryLimits,
    /// Offsets of the blocks, as stored; its length is the capacity of the table's clusters.
    table: Arc<Vec<u64>>,
    table_at: ClusterRun,
    /// Entries that differ from the file.
    changed: BTreeSet<usize>,
    moved: bool,
    /// Former places of the table, free once the header on disk names the new one.
    outgrown: Vec<ClusterRun>,
    blocks: HashMap<u64, Block>,
    space: FreeSpace,
    /// Where the next compressed cluster goes: behind the last one.
    tail: Option<Tail>,
    /// Where metadata may be, this table and its blocks included.
    metadata: Filter,
    clock: u64,
    dirty_blocks: u64,
}

/// A cluster that this process fills with compressed ones. What was handed out of it is never handed out again before
/// the whole cluster is free.
#[derive(Debug, Clone, Copy)]
struct Tail {
    cluster: HostCluster,
    used_bytes: u64,
}

/// What a commit has to repeat if it fails.
#[derive(Debug, Default)]
pub(crate) struct AllocatorCommit {
    blocks: Vec<u64>,
    entries: BTreeSet<usize>,
    moved: bool,
}

impl AllocatorCommit {
    /// The table moves: its old place is free afterwards.
    pub(crate) fn frees(&self) -> bool {
        self.moved
    }
}

impl Allocator {
    /// An allocator for a file that is still empty, with room for `table_clusters` of table behind the header.
    pub(crate) fn format(
        geometry: Geometry,
        table_clusters: u64,
        storage: &dyn Storage,
    ) -> Result<Self, Error> {
        let table_at = ClusterRun {
            start: HostCluster(1),
            count: table_clusters,
        };
        let mut allocator =
            Self::with_table(geometry, vec![], table_at, HostCluster(1 + table_clusters));
        let entries = to_usize(table_clusters * geometry.cluster_size() / 8);
        allocator.table = Arc::new(vec![0; entries]);
        allocator.moved = true;
        for cluster in 0..1 + table_clusters {
            allocator.set(storage, HostCluster(cluster), 1)?;
        }
        Ok(allocator)
    }

    /// Loads the table of an existing file, whose structures must not overlap.
    pub(crate) fn open(
        header: &Header,
        layout: &mut Layout,
        file_len: u64,
        storage: &dyn Storage,
    ) -> Result<Self, Error> {
        let geometry = header.geometry;
        let count = u64::from(header.refcount_table_clusters);
        let at = header.refcount_table_offset;
        let len_bytes = count * geometry.cluster_size();
        check_inside("refcount table", at, len_bytes, file_len)?;
        let table = read_table(&geometry, at, len_bytes, file_len, storage)?;
        let table_at = ClusterRun {
            start: geometry.host_cluster(at),
            count,
        };
        let end = HostCluster(geometry.clusters_for(file_len));
        let mut allocator = Self::with_table(geometry, table, table_at, end);
        let filter = &mut allocator.metadata;
        layout.check(&geometry, table_at, &allocator.table, storage, filter)?;
        let used = allocator.last_in_use(storage)?;
        allocator.space = FreeSpace::new(end.max(used));
        Ok(allocator)
    }

    /// Whether a cluster may be metadata; a hit is to be looked up.
    pub(crate) fn may_be_metadata(&self, cluster: HostCluster) -> bool {
        self.metadata.may_hold(cluster)
    }

    /// A cluster that becomes metadata.
    pub(crate) fn add_metadata(&mut self, cluster: HostCluster) {
        self.metadata.add(cluster);
    }

    /// What of the refcounts a cluster is.
    pub(crate) fn structure_at(&self, cluster: HostCluster) -> Option<&'static str> {
        let holds = |run: &ClusterRun| run.start <= cluster && cluster.0 - run.start.0 < run.count;
        let offset = self.geometry.host_start(cluster).0;
        if holds(&self.table_at) || self.outgrown.iter().any(holds) {
            Some("refcount table")
        } else if self.table.contains(&offset) {
            Some("refcount block")
        } else {
            None
        }
    }

    fn with_table(
        geometry: Geometry,
        table: Vec<u64>,
        table_at: ClusterRun,
        end: HostCluster,
    ) -> Self {
        Self {
            geometry,
            limits: MemoryLimits::default(),
            table: Arc::new(table),
            table_at,
            changed: BTreeSet::new(),
            moved: false,
            outgrown: Vec::new(),
            blocks: HashMap::new(),
            space: FreeSpace::new(end),
            tail: None,
            metadata: Filter::new(),
            clock: 0,
            dirty_blocks: 0,
        }
    }

    /// The cluster after the last one with a refcount: allocated clusters may lie beyond the end of the file.
    fn last_in_use(&mut self, storage: &dyn Storage) -> Result<HostCluster, Error> {
        let entries = self.geometry.block_entries();
        let order = self.geometry.refcount_order();
        let present: Vec<u64> = (0..to_u64(self.table.len()))
            .filter(|index| self.table[to_usize(*index)] != 0)
            .collect();
        for (seen, index) in present.iter().rev().enumerate() {
            if seen == MAX_TRAILING_BLOCKS {
                return Ok(HostCluster((index + 1) * entries));
            }
            let block = self.block(storage, *index)?;
            let last = (0..to_usize(entries))
                .rev()
                .find(|slot| refcount::get(block, order, *slot) != 0);
            if let Some(slot) = last {
                return Ok(HostCluster(index * entries + to_u64(slot) + 1));
            }
        }
        Ok(HostCluster(0))
    }

    /// The first cluster beyond everything that is allocated.
    pub(crate) fn end(&self) -> HostCluster {
        self.space.end()
    }

    /// Where the refcount table is.
    pub(crate) fn table_at(&self) -> ClusterRun {
        self.table_at
    }

    /// Whether so much has changed that it should be committed.
    pub(crate) fn wants_commit(&self) -> bool {
        self.dirty_blocks * (self.geometry.cluster_size() + CACHE_ENTRY_BYTES)
            > self.limits.dirty_refcount_bytes
    }

    /// Allocates `count` clusters in few runs, freed ones first.
    pub(crate) fn allocate(
        &mut self,
        storage: &dyn Storage,
        count: u64,
    ) -> Result<Vec<HostCluster>, Error> {
        self.check_end(count)?;
        let mut clusters = Vec::with_capacity(to_usize(count));
        while to_u64(clusters.len()) < count {
            let left = count - to_u64(clusters.len());
            // Scattered free clusters change a refcount block each, which stays in memory until the next commit.
            let run = if self.wants_commit() {
                self.space.take_run(left)
            } else {
                self.space.take_some(left)
            };
            for cluster in run.clusters() {
                self.take(storage, cluster)?;
                clusters.push(cluster);
            }
        }
        Ok(clusters)
    }

    /// Allocates `count` neighbouring clusters at the end of the file.
    pub(crate) fn allocate_run(
        &mut self,
        storage: &dyn Storage,
        count: u64,
    ) -> Result<ClusterRun, Error> {
        self.check_end(count)?;
        let run = self.space.take_run(count);
        for cluster in run.clusters() {
            self.take(storage, cluster)?;
        }
        Ok(run)
    }

    /// Allocates room for a compressed cluster of `len` bytes, whole sectors and less than a cluster, behind the last
    /// one as long as a refcount can grow. `None` where no entry could refer to it.
    pub(crate) fn allocate_stream(
        &mut self,
        storage: &dyn Storage,
        len_bytes: u32,
    ) -> Result<Option<HostOffset>, Error> {
        self.check_end(1)?;
        // Wherever it goes, it does not lie behind a new cluster at the end.
        let offset = self.geometry.host_start(self.space.end());
        if !(CompressedCell { offset, len_bytes }).fits(&self.geometry) {
            return Ok(None);
        }
        let len = u64::from(len_bytes);
        if let Some(tail) = self.tail
            && let Some(next) = self.behind(storage, tail, len)?
        {
            self.tail = Some(next);
            let start = self.geometry.host_start(tail.cluster);
            return Ok(Some(HostOffset(start.0 + tail.used_bytes)));
        }
        let cluster = self.allocate(storage, 1)?[0];
        self.tail = Some(Tail {
            cluster,
            used_bytes: len,
        });
        Ok(Some(self.geometry.host_start(cluster)))
    }

    /// Counts `len` bytes behind a tail, in its cluster and in the next one where that is free; returns the new tail.
    fn behind(
        &mut self,
        storage: &dyn Storage,
        tail: Tail,
        len: u64,
    ) -> Result<Option<Tail>, Error> {
        let room = self.geometry.cluster_size() - tail.used_bytes;
        let count = self.get(storage, tail.cluster)?;
        let next = HostCluster(tail.cluster.0 + 1);
        if room == 0 || count == refcount::max_refcount(self.geometry.refcount_order()) {
            return Ok(None);
        }
        if len <= room {
            self.set(storage, tail.cluster, count + 1)?;
            let used_bytes = tail.used_bytes + len;
            return Ok(Some(Tail { used_bytes, ..tail }));
        }
        if !self.space.take_exactly(next) {
            return Ok(None);
        }
        self.take(storage, next)?;
        self.set(storage, tail.cluster, count + 1)?;
        Ok(Some(Tail {
            cluster: next,
            used_bytes: len - room,
        }))
    }

    /// Counts the first reference to a free cluster.
    fn take(&mut self, storage: &dyn Storage, cluster: HostCluster) -> Result<(), Error> {
        let count = self.get(storage, cluster)?;
        if count != 0 {
            return Err(damage(format!(
                "free cluster is in use: offset={:#x} refcount={count}",
                self.geometry.host_start(cluster).0
            )));
        }
        self.set(storage, cluster, 1)
    }

    fn check_end(&self, count: u64) -> Result<(), Error> {
        let limit = MAX_HOST_OFFSET >> self.geometry.cluster_bits();
        if self.space.end().0.saturating_add(count) >= limit / 2 {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "image file is at its largest: clusters={}",
                    self.space.end().0
                ),
            ));
        }
        Ok(())
    }

    /// Lowers the refcount of a cluster nothing durable refers to; at 0 the cluster may be handed out again.
    pub(crate) fn release(
        &mut self,
        storage: &dyn Storage,
        cluster: HostCluster,
    ) -> Result<(), Error> {
        let before = self.get(storage, cluster)?;
        if before == 0 {
            return Err(damage(format!(
                "cluster in use has no reference: offset={:#x} refcount=0",
                self.geometry.host_start(cluster).0
            )));
        }
        self.set(storage, cluster, before - 1)?;
        if before == 1 {
            self.tail.take_if(|tail| tail.cluster == cluster);
            self.space.give(cluster);
        }
        Ok(())
    }

    /// The refcount of a cluster.
    pub(crate) fn get(
        &mut self,
        storage: &dyn Storage,
        cluster: HostCluster,
    ) -> Result<u64, Error> {
        let index = self.geometry.block_index(cluster);
        if self
            .table
            .get(to_usize(index))
            .is_none_or(|entry| *entry == 0)
        {
            return Ok(0);
        }
        let slot = self.geometry.block_slot(cluster);
        let order = self.geometry.refcount_order();
        Ok(refcount::get(self.block(storage, index)?, order, slot))
    }

    fn set(
        &mut self,
        storage: &dyn Storage,
        cluster: HostCluster,
        value: u64,
    ) -> Result<(), Error> {
        let index = self.geometry.block_index(cluster);
        self.ensure_block(storage, index)?;
        let slot = self.geometry.block_slot(cluster);
        let order = self.geometry.refcount_order();
        self.block(storage, index)?;
        let block = self
            .blocks
            .get_mut(&index)
            .expect("the block was just loaded");
        let bytes: &mut Vec<u8> = Arc::make_mut(&mut block.bytes);
        refcount::set(bytes, order, slot, value);
        if !block.dirty {
            block.dirty = true;
            self.dirty_blocks += 1;
        }
        Ok(())
    }

    /// Adds a missing block. New blocks come from the end of the file, so that the clusters that describe
    /// themselves always lie ahead and the recursion ends.
    fn ensure_block(&mut self, storage: &dyn Storage, index: u64) -> Result<(), Error> {
        if to_usize(index) >= self.table.len() {
            self.grow_table(storage, index)?;
        }
        if self.table[to_usize(index)] != 0 {
            return Ok(());
        }
        let place = self.space.take_run(1).start;
        let offset = self.geometry.host_start(place).0;
        Arc::make_mut(&mut self.table)[to_usize(index)] = offset;
        self.changed.insert(to_usize(index));
        self.metadata.add(place);
        let bytes = Arc::new(vec![0; to_usize(self.geometry.cluster_size())]);
        self.clock += 1;
        let block = Block {
            bytes,
            dirty: true,
            in_commit: false,
            used: self.clock,
        };
        self.evict();
        self.blocks.insert(index, block);
        self.dirty_blocks += 1;
        self.set(storage, place, 1)
    }

    /// Moves the table to a larger place at the end of the file.
    fn grow_table(&mut self, storage: &dyn Storage, index: u64) -> Result<(), Error> {
        let per_cluster = self.geometry.cluster_size() / 8;
        let limit = MAX_REFCOUNT_TABLE_BYTES / self.geometry.cluster_size();
        // The new table's own clusters must be covered, too: half as much again is far more than they need.
        let needed = (index + 2).div_ceil(per_cluster);
        let count = (needed + needed / 2 + 1).min(limit);
        if count < needed {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("refcount table is at its limit: clusters={count}"),
            ));
        }
        let old = self.table_at;
        let mut table = Vec::with_capacity(to_usize(count * per_cluster));
        table.extend_from_slice(&self.table);
        table.resize(to_usize(count * per_cluster), 0);
        self.table = Arc::new(table);
        self.moved = true;
        self.table_at = self.space.take_run(count);
        for cluster in self.table_at.clusters() {
            self.metadata.add(cluster);
            self.set(storage, cluster, 1)?;
        }
        self.outgrown.push(old);
        Ok(())
    }

    fn block(&mut self, storage: &dyn Storage, index: u64) -> Result<&[u8], Error> {
        self.clock += 1;
        if !self.blocks.contains_key(&index) {
            self.evict();
            let mut bytes = vec![0; to_usize(self.geometry.cluster_size())];
            let at = HostOffset(self.table[to_usize(index)]);
            storage::read_padded(storage, at, &mut bytes)?;
            let bytes = Arc::new(bytes);
            let block = Block {
                bytes,
                dirty: false,
                in_commit: false,
                used: 0,
            };
            self.blocks.insert(index, block);
        }
        let block = self
            .blocks
            .get_mut(&index)
            .expect("present or just inserted");
        block.used = self.clock;
        Ok(&block.bytes)
    }

    fn evict(&mut self) {
        let each = self.geometry.cluster_size() + CACHE_ENTRY_BYTES;
        if to_u64(self.blocks.len() + 1) * each <= self.limits.cached_refcount_bytes {
            return;
        }
        let mut clean: Vec<(u64, u64)> = self
            .blocks
            .iter()
            .filter(|(_, block)| !block.dirty && !block.in_commit)
            .map(|(index, block)| (block.used, *index))
            .collect();
        clean.sort_unstable();
        for (_, index) in clean.iter().take(clean.len().div_ceil(2)) {
            self.blocks.remove(index);
        }
    }

    /// Adds what changed to `changes` and takes it as written.
    pub(crate) fn begin_commit(&mut self, changes: &mut Changes) -> AllocatorCommit {
        let mut commit = AllocatorCommit {
            blocks: Vec::new(),
            entries: std::mem::take(&mut self.changed),
            moved: std::mem::take(&mut self.moved),
        };
        for (index, block) in self.blocks.iter_mut().filter(|(_, block)| block.dirty) {
            block.dirty = false;
            block.in_commit = true;
            commit.blocks.push(*index);
            let at = HostOffset(self.table[to_usize(*index)]);
            let payload = Payload::Bytes(block.bytes.clone());
            changes.refcount_blocks.push(Write { at, payload });
        }
        self.dirty_blocks = 0;
        self.push_table(&commit, changes);
        commit
    }

    fn push_table(&self, commit: &AllocatorCommit, changes: &mut Changes) {
        let at = self.geometry.host_start(self.table_at.start);
        let mut ranges = Vec::new();
        if commit.moved {
            let starts = (0..self.table.len()).step_by(PIECE_ENTRIES);
            ranges.extend(starts.map(|at| at..self.table.len().min(at + PIECE_ENTRIES)));
            let count = u32::try_from(self.table_at.count).expect("a table has at most 8 MiB");
            let payload = Payload::Bytes(Arc::new(header::refcount_table_fields(at, count)));
            changes.header.push(Write {
                at: HostOffset(REFCOUNT_TABLE_AT),
                payload,
            });
        } else {
            for index in &commit.entries {
                let range = whole_sectors(*index..*index + 1, self.table.len());
                if ranges.last() != Some(&range) {
                    ranges.push(range);
                }
            }
        }
        for range in ranges {
            let at = HostOffset(at.0 + to_u64(range.start) * 8);
            changes.refcount_table.push(Write {
                at,
                payload: Payload::Entries(self.table.clone(), range),
            });
        }
    }

    /// The commit is durable: tables that were outgrown may go.
    pub(crate) fn end_commit(
        &mut self,
        storage: &dyn Storage,
        commit: &AllocatorCommit,
    ) -> Result<(), Error> {
        for index in &commit.blocks {
            if let Some(block) = self.blocks.get_mut(index) {
                block.in_commit = false;
            }
        }
        if commit.moved && !self.moved {
            for run in std::mem::take(&mut self.outgrown) {
                for cluster in run.clusters() {
                    self.release(storage, cluster)?;
                }
            }
        }
        Ok(())
    }

    /// The commit failed: everything it took is still to be written.
    pub(crate) fn undo_commit(&mut self, commit: AllocatorCommit) {
        for index in commit.blocks {
            if let Some(block) = self.blocks.get_mut(&index) {
                block.in_commit = false;
                if !block.dirty {
                    block.dirty = true;
                    self.dirty_blocks += 1;
                }
            }
        }
        self.changed.extend(commit.entries);
        self.moved |= commit.moved;
    }
}

/// Entries of the table that are read or written at a time: 64 KiB.
const PIECE_ENTRIES: usize = 8192;

/// Reads the refcount table, which lies inside the file.
fn read_table(
    geometry: &Geometry,
    at: HostOffset,
    len_bytes: u64,
    file_len: u64,
    storage: &dyn Storage,
) -> Result<Vec<u64>, Error> {
    let mut table = Vec::with_capacity(to_usize(len_bytes / 8));
    let piece_bytes = to_u64(PIECE_ENTRIES) * 8;
    let mut bytes = vec![0; to_usize(piece_bytes.min(len_bytes))];
    let end = at.0 + len_bytes;
    let mut place = at;
    while place.0 < end {
        let part = &mut bytes[..to_usize(piece_bytes.min(end - place.0))];
        storage::read(storage, place, part)?;
        for raw in part.chunks_exact(8).map(|entry| wire::u64_at(entry, 0)) {
            let block = refcount::parse_table_entry(raw, geometry)
                .map_err(|error| corrupt(format!("{error} offset={:#x}", place.0)))?;
            if block.is_some_and(|block| block.0 >= file_len) {
                return Err(corrupt(format!(
                    "refcount block lies beyond the file: offset={:#x} entry={raw:#x} \
                     file_size={file_len}",
                    place.0
                )));
            }
            table.push(raw);
            place.0 += 8;
        }
    }
    Ok(table)
}
