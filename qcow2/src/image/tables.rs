//! L1 and L2 tables in memory, between the requests and the commits.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, damage};
use crate::format::extension::Extensions;
use crate::format::geometry::{Geometry, GuestCluster, HostCluster, HostOffset, to_u64, to_usize};
use crate::format::header::Header;
use crate::format::l1::L1Entry;
use crate::format::l2::L2Entry;
use crate::format::limits::CACHE_ENTRY_BYTES;
use crate::format::wire;
use crate::image::allocator::{Allocator, AllocatorCommit};
use crate::image::l1::{self, L1};
use crate::image::metadata::Layout;
use crate::plan::order::{Changes, Payload, Write, whole_sectors};
use crate::storage::{self, Storage};

#[derive(Debug)]
struct Table {
    entries: Arc<Vec<u64>>,
    at: HostOffset,
    /// The L1 table on disk refers to it.
    linked: bool,
    /// It was found to be nobody else's.
    owned: bool,
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
    layout: Layout,
    /// As on disk: a table that is not linked yet is found in `l2` only.
    l1: L1,
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
        layout: Layout,
        l1: L1,
    ) -> Self {
        Self {
            geometry,
            version,
            allocator,
            layout,
            l1,
            l2: HashMap::new(),
            dirty_tables: 0,
            clock: 0,
            let_go: Vec::new(),
        }
    }

    /// Loads the tables of an existing file, whose structures must not overlap.
    pub(crate) fn open(
        header: &Header,
        extensions: &Extensions,
        file_len: u64,
        storage: &dyn Storage,
    ) -> Result<Self, Error> {
        let geometry = header.geometry;
        let mut layout = Layout::read(header, extensions, file_len, storage)?;
        let allocator = Allocator::open(header, &mut layout, file_len, storage)?;
        let entries = u64::from(header.l1_entries);
        let l1 = L1::new(geometry, header.l1_offset, to_usize(entries));
        Ok(Self::new(geometry, header.version, allocator, layout, l1))
    }

    /// Whether so much has changed that it should be committed before more does.
    pub(crate) fn wants_commit(&self) -> bool {
        self.dirty_tables * (self.geometry.cluster_size() + CACHE_ENTRY_BYTES)
            > self.allocator.limits.dirty_l2_bytes
            || self.let_go.len() > self.allocator.limits.pending_frees
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

    /// Checks that the clusters which an entry names can be its own: inside the file, no metadata, and counted.
    ///
    /// # Errors
    /// `Corrupt`, as damage: what the entry's cluster is instead.
    pub(crate) fn check_entry(
        &mut self,
        storage: &dyn Storage,
        entry: &L2Entry,
    ) -> Result<(), Error> {
        match *entry {
            L2Entry::Unallocated | L2Entry::Zero { kept: None } => Ok(()),
            L2Entry::Data(cell) | L2Entry::Zero { kept: Some(cell) } => {
                let cluster = self.geometry.host_cluster(cell.offset);
                let count = self.check_data(storage, cluster)?;
                if cell.copied && count != 1 {
                    return Err(damage(format!(
                        "data cluster claims one reference and has another count: offset={:#x} \
                         refcount={count}",
                        cell.offset.0
                    )));
                }
                Ok(())
            }
            L2Entry::Compressed(cell) => cell
                .host_clusters(&self.geometry)
                .try_for_each(|cluster| self.check_data(storage, cluster).map(drop)),
        }
    }

    /// Checks that a cluster can hold data, and returns its refcount.
    fn check_data(&mut self, storage: &dyn Storage, cluster: HostCluster) -> Result<u64, Error> {
        let offset = self.geometry.host_start(cluster).0;
        if cluster >= self.allocator.end() {
            return Err(damage(format!(
                "data cluster lies beyond the file: offset={offset:#x}"
            )));
        }
        if self.allocator.may_be_metadata(cluster)
            && let Some(what) = self.structure_at(storage, cluster)?
        {
            return Err(damage(format!(
                "data cluster overlaps {what}: offset={offset:#x}"
            )));
        }
        let count = self.allocator.get(storage, cluster)?;
        if count == 0 {
            return Err(damage(format!(
                "data cluster is counted as free: offset={offset:#x} refcount=0"
            )));
        }
        Ok(count)
    }

    /// What structure of the image a cluster belongs to.
    fn structure_at(
        &self,
        storage: &dyn Storage,
        cluster: HostCluster,
    ) -> Result<Option<&'static str>, Error> {
        let fixed = self
            .layout
            .fixed
            .iter()
            .find(|structure| structure.holds(cluster));
        if let Some(fixed) = fixed {
            return Ok(Some(fixed.what));
        }
        if let Some(what) = self.allocator.structure_at(cluster) {
            return Ok(Some(what));
        }
        let at = self.geometry.host_start(cluster);
        let mut found = self.l2.values().any(|table| table.at == at);
        for (l1_at, entries) in &self.layout.l1_tables {
            if found {
                break;
            }
            l1::walk(&self.geometry, storage, *l1_at, *entries, |entry| {
                found |= entry.table == at;
                Ok(())
            })?;
        }
        Ok(found.then_some("L2 table"))
    }

    /// Checks that an L2 table may be changed where it is: its refcount must say what the L1 entry says.
    fn check_table(&mut self, storage: &dyn Storage, at: HostOffset) -> Result<(), Error> {
        let count = self
            .allocator
            .get(storage, self.geometry.host_cluster(at))?;
        if count != 1 {
            return Err(damage(format!(
                "L2 table claims one reference and has another count: offset={:#x} refcount={count}",
                at.0
            )));
        }
        Ok(())
    }

    /// Lowers the refcount of a cluster that no entry refers to any more.
    fn release(&mut self, storage: &dyn Storage, cluster: HostCluster) -> Result<(), Error> {
        // The last reference: the cluster would be handed out again.
        if self.allocator.may_be_metadata(cluster)
            && self.allocator.get(storage, cluster)? == 1
            && let Some(what) = self.structure_at(storage, cluster)?
        {
            return Err(damage(format!(
                "cluster to be freed is part of {what}: offset={:#x}",
                self.geometry.host_start(cluster).0
            )));
        }
        self.allocator.release(storage, cluster)
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
        let raw = entry.raw(&self.geometry);
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
            Some(table) if table.owned => return Ok(()),
            Some(table) => {
                let at = table.at;
                match self.l1.entry(storage, l1_index)? {
                    Some(entry) if entry.copied => {
                        self.check_table(storage, at)?;
                        if let Some(table) = self.l2.get_mut(&l1_index) {
                            table.owned = true;
                        }
                        return Ok(());
                    }
                    _ => self.l2.remove(&l1_index),
                }
            }
            None => None,
        };
        let place = self.allocator.allocate(storage, 1)?[0];
        self.allocator.add_metadata(place);
        let len = to_usize(self.geometry.l2_entries());
        self.clock += 1;
        let table = Table {
            entries: copied
                .as_ref()
                .map_or_else(|| Arc::new(vec![0; len]), |old| old.entries.clone()),
            at: self.geometry.host_start(place),
            linked: false,
            owned: true,
            replaces: copied.map(|old| old.at),
            dirty: Some(0..len),
            in_commit: false,
            used: self.clock,
        };
        self.evict();
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
            let Some(entry) = self.l1.entry(storage, l1_index)? else {
                return Ok(None);
            };
            self.evict();
            let mut bytes = vec![0; to_usize(self.geometry.cluster_size())];
            storage::read_padded(storage, entry.table, &mut bytes)?;
            let table = Table {
                entries: Arc::new(wire::table(&bytes)),
                at: entry.table,
                linked: true,
                owned: false,
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
        let each = self.geometry.cluster_size() + CACHE_ENTRY_BYTES;
        if to_u64(self.l2.len() + 1) * each <= self.allocator.limits.cached_l2_bytes {
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
            let at = self.l1.entry_at(*l1_index);
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

    /// The commit is durable: new tables are linked, and clusters that were let go may be used again. Returns whether
    /// some of them must wait for the next commit, because their refcounts would fill the memory.
    pub(crate) fn end_commit(
        &mut self,
        storage: &dyn Storage,
        commit: Commit,
    ) -> Result<bool, Error> {
        for (l1_index, _, was_linked) in commit.tables {
            let Some(table) = self.l2.get_mut(&l1_index) else {
                continue;
            };
            table.in_commit = false;
            if !was_linked {
                table.linked = true;
                let entry = L1Entry {
                    table: table.at,
                    copied: true,
                };
                self.l1.set(l1_index, &entry);
                if let Some(old) = table.replaces.take() {
                    self.release(storage, self.geometry.host_cluster(old))?;
                }
            }
        }
        let mut let_go = commit.let_go.into_iter();
        while !self.allocator.wants_commit()
            && let Some(cluster) = let_go.next()
        {
            self.release(storage, cluster)?;
        }
        let waits = let_go.len() > 0;
        self.let_go.extend(let_go);
        self.allocator.end_commit(storage, &commit.allocator)?;
        Ok(waits)
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
