//! Recording hashes while an image is written, and making a sidecar of them when it is sealed.

use std::sync::Arc;

use crate::error::Error;
use crate::format::digest::Digest;
use crate::format::geometry::{to_u64, to_usize};
use crate::format::limits::HASH_DIRECTORY_PIECE_BYTES;
use crate::hashes::layout::{Header, Layout, NOTHING};
use crate::hashes::{digest, digests, read_sidecar, shorten, sidecar_len, write_sidecar};
use crate::storage::Storage;
use crate::sync::{AtomicBool, Ordering};

/// The hashes of an image that is being written, at their final places in the sidecar. Nothing of it is kept in memory:
/// the entries of neighbouring clusters lie side by side, and the system's page cache makes few writes of many. Until
/// it is sealed the file has no header, and an entry of zero means that the hash is not known.
///
/// Calls for one cluster are made by whoever holds its range.
#[derive(Debug)]
pub(crate) struct HashRecorder {
    storage: Arc<dyn Storage>,
    layout: Layout,
    /// Pages that have entries in the file; of the others nothing is known and nothing need be forgotten.
    touched: Vec<AtomicBool>,
    /// The storage failed: an entry may be older than its cluster, so that none is believed any more.
    lost: AtomicBool,
}

impl HashRecorder {
    /// A recorder that knows nothing yet. What the file holds is dropped: nobody vouches for hashes of an image that
    /// was open before.
    pub(crate) fn new(storage: Arc<dyn Storage>, layout: Layout) -> Result<Self, Error> {
        storage
            .set_len(0)
            .map_err(|error| Error::io("hash sidecar cannot be emptied", error))?;
        let touched = (0..layout.pages())
            .map(|_| AtomicBool::new(false))
            .collect();
        Ok(Self {
            storage,
            layout,
            touched,
            lost: AtomicBool::new(false),
        })
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// Takes the hashes of neighbouring clusters from `first` on; [`NOTHING`] where it is not known any more.
    pub(crate) fn record(&self, first: u64, hashes: &[Digest]) {
        let Some(last) = to_u64(hashes.len()).checked_sub(1) else {
            return;
        };
        let pages = Layout::page_of(first)..=Layout::page_of(first + last);
        let touched = &self.touched[to_usize(*pages.start())..=to_usize(*pages.end())];
        let forgets_only = hashes.iter().all(|hash| *hash == NOTHING);
        if forgets_only && !touched.iter().any(|page| page.load(Ordering::Relaxed)) {
            return;
        }
        for page in touched {
            page.store(true, Ordering::Relaxed);
        }
        let at = self.layout.entry_at(first);
        if write_sidecar(&*self.storage, at, &bytes(hashes)).is_err() {
            self.lost.store(true, Ordering::Relaxed);
        }
    }

    /// What is known about the clusters of a page.
    pub(crate) fn known(&self, page: u64) -> Result<Vec<Digest>, Error> {
        let clusters = self.layout.page_clusters(page);
        let mut bytes = vec![0; to_usize(clusters.end - clusters.start) * Digest::BYTES];
        let is_touched = self.touched[to_usize(page)].load(Ordering::Relaxed);
        if is_touched && !self.lost.load(Ordering::Relaxed) {
            // The file ends with the last entry that was written.
            let at = self.layout.entry_at(clusters.start);
            let present = sidecar_len(&*self.storage)?.saturating_sub(at);
            let present = to_usize(present).min(bytes.len());
            read_sidecar(&*self.storage, at, &mut bytes[..present])?;
        }
        Ok(digests(&bytes))
    }

    /// Writes the sidecar, durably: `page` tells the entries of each page, in order. Returns the root.
    pub(crate) fn seal(
        &self,
        identity: &str,
        mut page: impl FnMut(u64) -> Result<Vec<Digest>, Error>,
    ) -> Result<Digest, Error> {
        let header = Header {
            layout: self.layout,
            identity: identity.to_owned(),
        }
        .encode()?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header);
        let mut directory = Vec::new();
        let mut at = Layout::digest_at(0);
        for index in 0..self.layout.pages() {
            directory.extend_from_slice(&self.write_page(index, &page(index)?)?.0);
            if directory.len() >= HASH_DIRECTORY_PIECE_BYTES {
                self.write_directory(&mut at, &mut directory, &mut hasher)?;
            }
        }
        directory.resize(to_usize(self.layout.entry_at(0) - at), 0);
        self.write_directory(&mut at, &mut directory, &mut hasher)?;
        let root = shorten(&hasher.finalize());
        write_sidecar(&*self.storage, 0, &[&header[..], &root.0].concat())?;
        self.storage
            .set_len(self.layout.file_len())
            .map_err(|error| Error::io("hash sidecar cannot get its length", error))?;
        self.storage
            .sync()
            .map_err(|error| Error::io("hash sidecar cannot be made durable", error))?;
        Ok(root)
    }

    /// Writes a part of the directory at `at` and moves on.
    fn write_directory(
        &self,
        at: &mut u64,
        part: &mut Vec<u8>,
        hasher: &mut blake3::Hasher,
    ) -> Result<(), Error> {
        write_sidecar(&*self.storage, *at, part)?;
        hasher.update(part);
        *at += to_u64(part.len());
        part.clear();
        Ok(())
    }

    /// Writes a page where it has anything, or had. Returns its digest.
    fn write_page(&self, page: u64, entries: &[Digest]) -> Result<Digest, Error> {
        let is_empty = entries.iter().all(|entry| *entry == NOTHING);
        let touched = &self.touched[to_usize(page)];
        if is_empty && !touched.load(Ordering::Relaxed) {
            return Ok(NOTHING);
        }
        touched.store(true, Ordering::Relaxed);
        let bytes = bytes(entries);
        let at = self.layout.entry_at(self.layout.page_clusters(page).start);
        write_sidecar(&*self.storage, at, &bytes)?;
        Ok(if is_empty { NOTHING } else { digest(&bytes) })
    }
}

fn bytes(hashes: &[Digest]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}
