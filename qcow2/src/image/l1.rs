//! L1 tables: read in pages as it is needed, so that the largest one does not fill the memory.

use std::collections::HashMap;

use crate::error::{Error, corrupt};
use crate::format::geometry::{Geometry, HostOffset, to_u64, to_usize};
use crate::format::l1::L1Entry;
use crate::format::limits::MAX_CACHED_L1_BYTES;
use crate::format::wire;
use crate::storage::{self, Storage};

/// Entries of a page: 64 KiB.
const PAGE_ENTRIES: usize = 8192;

/// The active L1 table as it is on the storage: a commit writes an entry first and tells with [`L1::set`].
#[derive(Debug)]
pub(crate) struct L1 {
    geometry: Geometry,
    at: HostOffset,
    len: usize,
    pages: HashMap<usize, Vec<u64>>,
}

impl L1 {
    /// A table of `len` entries, which lies inside the file.
    pub(crate) fn new(geometry: Geometry, at: HostOffset, len: usize) -> Self {
        Self {
            geometry,
            at,
            len,
            pages: HashMap::new(),
        }
    }

    /// Where an entry is stored.
    pub(crate) fn entry_at(&self, index: usize) -> HostOffset {
        HostOffset(self.at.0 + to_u64(index) * 8)
    }

    /// An entry as it is on disk.
    pub(crate) fn entry(
        &mut self,
        storage: &dyn Storage,
        index: usize,
    ) -> Result<Option<L1Entry>, Error> {
        let page = self.page(storage, index / PAGE_ENTRIES)?;
        let raw = page.get(index % PAGE_ENTRIES).copied().unwrap_or(0);
        parse(&self.geometry, raw, self.entry_at(index))
    }

    /// The file has a new entry.
    pub(crate) fn set(&mut self, index: usize, entry: &L1Entry) {
        if let Some(page) = self.pages.get_mut(&(index / PAGE_ENTRIES)) {
            page[index % PAGE_ENTRIES] = entry.raw();
        }
    }

    fn page(&mut self, storage: &dyn Storage, number: usize) -> Result<&mut Vec<u64>, Error> {
        if !self.pages.contains_key(&number) {
            // Only tables of petabytes have more pages: they begin again rather than choose.
            if to_u64(self.pages.len() * PAGE_ENTRIES) * 8 >= MAX_CACHED_L1_BYTES {
                self.pages.clear();
            }
            let first = number * PAGE_ENTRIES;
            let mut bytes = vec![0; (self.len - first).min(PAGE_ENTRIES) * 8];
            storage::read(storage, self.entry_at(first), &mut bytes)?;
            self.pages.insert(number, wire::table(&bytes));
        }
        Ok(self
            .pages
            .get_mut(&number)
            .expect("present or just inserted"))
    }
}

/// Checks that a table lies inside the file.
pub(crate) fn check_inside(
    what: &str,
    at: HostOffset,
    len_bytes: u64,
    file_len: u64,
) -> Result<(), Error> {
    if at.0.checked_add(len_bytes).is_none_or(|end| end > file_len) {
        return Err(corrupt(format!(
            "{what} ends beyond the file: offset={:#x} len={len_bytes} file_size={file_len}",
            at.0
        )));
    }
    Ok(())
}

/// Shows every entry of any L1 table that names an L2 table, one page in memory at a time.
pub(crate) fn walk(
    geometry: &Geometry,
    storage: &dyn Storage,
    at: HostOffset,
    entries: u64,
    mut with: impl FnMut(L1Entry) -> Result<(), Error>,
) -> Result<(), Error> {
    let page_bytes = to_u64(PAGE_ENTRIES) * 8;
    let mut bytes = vec![0; to_usize(page_bytes.min(entries * 8))];
    let mut place = at;
    let end = at.0 + entries * 8;
    while place.0 < end {
        let part = &mut bytes[..to_usize(page_bytes.min(end - place.0))];
        storage::read(storage, place, part)?;
        for raw in part.chunks_exact(8) {
            if let Some(entry) = parse(geometry, wire::u64_at(raw, 0), place)? {
                with(entry)?;
            }
            place.0 += 8;
        }
    }
    Ok(())
}

fn parse(geometry: &Geometry, raw: u64, at: HostOffset) -> Result<Option<L1Entry>, Error> {
    L1Entry::parse(raw, geometry).map_err(|error| corrupt(format!("{error} offset={:#x}", at.0)))
}
