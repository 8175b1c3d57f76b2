//! L1 and L2 tables in memory, between the requests and the commits.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, corrupt};
use crate::format::geometry::{Geometry, GuestCluster, HostCluster, HostOffset, to_u64, to_usize};
use crate::format::header::Header;
use crate::format::l1::L1Entry;
use crate::format::l2::L2Entry;
use crate::format::limits::{MAX_CACHED_L2_BYTES, MAX_DIRTY_L2_BYTES, MAX_PENDING_FREES};
use crate::format::wire;
use crate::image::allocator::{Allocator, AllocatorCommit};
use crate::plan::order::{Changes, Payload, Write, whole_sectors};
use crate::storage::{self, Storage};

#[derive(Debug)]
struct Table {
    entries: Arc<Vec<u64>>,
    at: HostOffset,
    /// The L1 table on disk refers to it.
    linked: bool,
    /// The table it replaces, which others still refer to.
    replaces: Option<HostOffset>,
    /// Entries that differ from the file.
    dirty: Option<Range<usize>>,
    /// Part of a commit under way: the file may not have it yet.
    in_commit: bool,
    used: u64,
}

/// All tables of an image, behind one short lock.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) geometry: Geometry,
    pub(crate) version: u32,
    pub(crate) allocator: Allocator,
    l1_at: HostOffset,
    /// As on disk: a table that is not linked yet is found in `l2` only.
    l1: Vec<u64>,
    l2: HashMap<usize, Table>,
    dirty_tables: u64,
    clock: u64,
    /// Clusters that no entry in memory refers to; the file still may.
    let_go: Vec<HostCluster>,
}

/// What a commit took, to be finished or undone.
#[derive(Debug)]
pub(crate) struct Commit {
    allocator: AllocatorCommit,
    tables: Vec<(usize, Range<usize>, bool)>,
    let_go: Vec<HostCluster>,
    /// A table takes the place of one that others use, too.
    replaced: bool,
}

impl Commit {
    /// Whether finishing it lowers refcounts.
    pub(crate) fn frees(&self) -> bool {
        !self.let_go.is_empty() || self.replaced || self.allocator.frees()
    }
}

impl Tables {
    pub(crate) fn new(
        geometry: Geometry,
        version: u32,
        allocator: Allocator,
        l1_at: HostOffset,
        l1: Vec<u64>,
    ) -> Self {
        Self {
            geometry,
            version,
            allocator,
            l1_at,
            l1,
            l2: HashMap::new(),
            dirty_tables: 0,
            clock: 0,
            let_go: Vec::new(),
        }
    }

    /// Loads the tables of an existing file.
    pub(crate) fn open(
        header: &Header,
        file_len: u64,
        storage: &dyn Storage,
    ) -> Result<Self, Error> {
        let geometry = header.geometry;
        let len_bytes = u64::from(header.l1_entries) * 8;
        if header.l1_offset.0 + len_bytes > file_len {
            return Err(corrupt(format!(
                "L1 table ends beyond the file: offset={:#x} len={len_bytes} file_size={file_len}",
                header.l1_offset.0
            )));
        }
        let mut bytes = vec![0; to_usize(len_bytes)];
        storage::read(storage, header.l1_offset, &mut bytes)?;
        let l1 = wire::table(&bytes);
        for raw in &l1 {
            let entry = L1Entry::parse(*raw, &geometry)?;
            if entry.is_some_and(|entry| entry.table.0 >= file_len) {
                return Err(corrupt(format!(
                    "L2 table lies beyond the file: entry={raw:#x} file_size={file_len}"
                )));
            }
        }
        let allocator = Allocator::open(header, file_len, storage)?;
        Ok(Self::new(
            geometry,
            header.version,
            allocator,
            header.l1_offset,
            l1,
        ))
    }

    /// Whether so much has changed that it should be committed before more does.
    pub(crate) fn wants_commit(&self) -> bool {
        self.dirty_tables * self.geometry.cluster_size() > MAX_DIRTY_L2_BYTES
            || self.let_go.len() > MAX_PENDING_FREES
            || self.allocator.wants_commit()
    }

    /// The entries of `clusters`, which one L2 table describes; `None` where the table does not exist.
    pub(crate) fn entries(
        &mut self,
        storage: &dyn Storage,
        clusters: Range<u64>,
    ) -> Result<Option<Vec<u64>>, Error> {
        let first = GuestCluster(clusters.start);
        let from = self.geometry.l2_index(first);
        let count = to_usize(clusters.end - clusters.start);
        let Some(table) = self.table(storage, self.geometry.l1_index(first))? else {
            return Ok(None);
        };
        Ok(Some(table.entries[from..from + count].to_vec()))
    }

    /// Checks that data at `offset` cannot be what the tables are made of.
    pub(crate) fn check_data(&self, offset: HostOffset) -> Result<(), Error> {
        let cluster = self.geometry.host_cluster(offset);
        let l1_start = self.geometry.host_cluster(self.l1_at).0;
        let l1_end = l1_start + self.geometry.clusters_for(to_u64(self.l1.len()) * 8);
        let table = self.allocator.table_at();
        let metadata = cluster.0 == 0
            || (l1_start..l1_end).contains(&cluster.0)
            || (table.start.0..table.start.0 + table.count).contains(&cluster.0);
        if metadata || cluster >= self.allocator.end() {
            return Err(corrupt(format!(
                "a data cluster lies where it cannot be: offset={:#x}",
                offset.0
            )));
        }
        Ok(())
    }

    /// Changes one entry; the table is made, or copied where others use it.
    pub(crate) fn set_entry(
        &mut self,
        storage: &dyn Storage,
        cluster: GuestCluster,
        entry: &L2Entry,
    ) -> Result<(), Error> {
        let l1_index = self.geometry.l1_index(cluster);
        self.own_table(storage, l1_index)?;
        let index = self.geometry.l2_index(cluster);
        let raw = entry.raw().expect("compressed entries are never written");
        let table = self
            .l2
            .get_mut(&l1_index)
            .expect("the table was just made or loaded");
        Arc::make_mut(&mut table.entries)[index] = raw;
        if table.dirty.is_none() {
            self.dirty_tables += 1;
        }
        let dirty = table.dirty.take().unwrap_or(index..index + 1);
        table.dirty = Some(dirty.start.min(index)..dirty.end.max(index + 1));
        Ok(())
    }

    /// A cluster that an entry in memory no longer refers to.
    pub(crate) fn let_go(&mut self, cluster: HostCluster) {
        self.let_go.push(cluster);
    }

    /// Makes sure that the L2 table exists and may be changed.
    pub(crate) fn own_table(
        &mut self,
        storage: &dyn Storage,
        l1_index: usize,
    ) -> Result<(), Error> {
        let copied = match self.table(storage, l1_index)? {
            Some(table) if !table.linked => return Ok(()),
            Some(_) => match L1Entry::parse(self.l1[l1_index], &self.geometry)? {
                Some(entry) if entry.copied => return Ok(()),
                _ => self.l2.remove(&l1_index),
            },
            None => None,
        };
        let place = self.allocator.allocate(storage, 1)?[0];
        let len = to_usize(self.geometry.l2_entries());
        self.clock += 1;
        let table = Table {
            entries: copied
                .as_ref()
                .map_or_else(|| Arc::new(vec![0; len]), |old| old.entries.clone()),
            at: self.geometry.host_start(place),
            linked: false,
            replaces: copied.map(|old| old.at),
            dirty: Some(0..len),
            in_commit: false,
            used: self.clock,
        };
        self.dirty_tables += 1;
        self.l2.insert(l1_index, table);
        Ok(())
    }

    fn table(
        &mut self,
        storage: &dyn Storage,
        l1_index: usize,
    ) -> Result<Option<&mut Table>, Error> {
        self.clock += 1;
        if !self.l2.contains_key(&l1_index) {
            let Some(entry) = L1Entry::parse(self.l1[l1_index], &self.geometry)? else {
                return Ok(None);
            };
            self.evict();
            let mut bytes = vec![0; to_usize(self.geometry.cluster_size())];
            storage::read_padded(storage, entry.table, &mut bytes)?;
            let table = Table {
                entries: Arc::new(wire::table(&bytes)),
                at: entry.table,
                linked: true,
                replaces: None,
                dirty: None,
                in_commit: false,
                used: 0,
            };
            self.l2.insert(l1_index, table);
        }
        let table = self
            .l2
            .get_mut(&l1_index)
            .expect("present or just inserted");
        table.used = self.clock;
        Ok(Some(table))
    }

    fn evict(&mut self) {
        let limit = to_usize(MAX_CACHED_L2_BYTES / self.geometry.cluster_size());
        if self.l2.len() < limit {
            return;
        }
        // Half of the clean ones at once: a search through all of them for each miss would cost more.
        let mut clean: Vec<(u64, usize)> = self
            .l2
            .iter()
            .filter(|(_, table)| table.dirty.is_none() && table.linked && !table.in_commit)
            .map(|(index, table)| (table.used, *index))
            .collect();
        clean.sort_unstable();
        for (_, index) in clean.iter().take(clean.len().div_ceil(2)) {
            self.l2.remove(index);
        }
    }

    /// Takes everything that changed; what changes from now on belongs to the next commit.
    pub(crate) fn begin_commit(&mut self) -> (Changes, Commit) {
        let mut changes = Changes::default();
        let mut tables = Vec::new();
        let mut replaced = false;
        for (l1_index, table) in &mut self.l2 {
            let Some(dirty) = table.dirty.take() else {
                continue;
            };
            table.in_commit = true;
            replaced |= table.replaces.is_some();
            tables.push((*l1_index, dirty.clone(), table.linked));
            if table.linked {
                let range = whole_sectors(dirty, table.entries.len());
                let at = HostOffset(table.at.0 + to_u64(range.start) * 8);
                let payload = Payload::Entries(table.entries.clone(), range);
                changes.entries.push(Write { at, payload });
                continue;
            }
            let payload = Payload::Entries(table.entries.clone(), 0..table.entries.len());
            changes.new_tables.push(Write {
                at: table.at,
                payload,
            });
            let entry = L1Entry {
                table: table.at,
                copied: true,
            };
            let at = HostOffset(self.l1_at.0 + to_u64(*l1_index) * 8);
            let payload = Payload::Entries(Arc::new(vec![entry.raw()]), 0..1);
            changes.links.push(Write { at, payload });
        }
        self.dirty_tables = 0;
        let allocator = self.allocator.begin_commit(&mut changes);
        let commit = Commit {
            allocator,
            tables,
            let_go: std::mem::take(&mut self.let_go),
            replaced,
        };
        (changes, commit)
    }

    /// The commit is durable: new tables are linked, and clusters that were let go may be used again.
    pub(crate) fn end_commit(
        &mut self,
        storage: &dyn Storage,
        commit: Commit,
    ) -> Result<(), Error> {
        for (l1_index, _, was_linked) in commit.tables {
            let Some(table) = self.l2.get_mut(&l1_index) else {
                continue;
            };
            table.in_commit = false;
            if !was_linked {
                table.linked = true;
                self.l1[l1_index] = L1Entry {
                    table: table.at,
                    copied: true,
                }
                .raw();
                if let Some(old) = table.replaces.take() {
                    self.allocator
                        .release(storage, self.geometry.host_cluster(old))?;
                }
            }
        }
        for cluster in commit.let_go {
            self.allocator.release(storage, cluster)?;
        }
        self.allocator.end_commit(storage, &commit.allocator)
    }

    /// The commit failed before it was durable: everything it took is still to be written.
    pub(crate) fn undo_commit(&mut self, commit: Commit) {
        for (l1_index, range, _) in commit.tables {
            let Some(table) = self.l2.get_mut(&l1_index) else {
                continue;
            };
            table.in_commit = false;
            if table.dirty.is_none() {
                self.dirty_tables += 1;
            }
            let newer = table.dirty.take().unwrap_or(range.clone());
            table.dirty = Some(newer.start.min(range.start)..newer.end.max(range.end));
        }
        self.let_go.extend(commit.let_go);
        self.allocator.undo_commit(commit.allocator);
    }
}
