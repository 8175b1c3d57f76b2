//! One layer of a chain: a qcow2 image or the bytes of a disk.

use std::ops::Range;
use std::sync::Arc;

use crate::chain::OpenedBacking;
use crate::codec::{Inflated, Reader};
use crate::error::{Error, corrupt};
use crate::format::geometry::{GuestCluster, GuestOffset, HostOffset, to_u64, to_usize};
use crate::format::header::Header;
use crate::format::l1::L1Entry;
use crate::format::l2::CompressedCell;
use crate::format::wire;
use crate::image::{BackingFormat, ImageInfo, Opened, open_file};
use crate::plan::read::{Run, Source, runs};
use crate::storage::{self, Storage};

/// One file of a chain.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) identity: String,
    pub(super) info: ImageInfo,
    /// `None` for a raw file.
    header: Option<Header>,
}

/// Entries of one L2 table, kept from one range to the next.
#[derive(Debug, Default)]
pub(super) struct Slice {
    l1_index: Option<usize>,
    first: u64,
    /// `None` where the table does not exist.
    entries: Option<Vec<u64>>,
}

impl Layer {
    pub(super) fn open(opened: OpenedBacking) -> Result<Self, Error> {
        let OpenedBacking {
            storage,
            identity,
            format,
        } = opened;
        let (header, info) = match format {
            BackingFormat::Raw => (None, raw_info(storage::len(&*storage)?)),
            BackingFormat::Qcow2 => {
                let Opened { header, info, .. } = open_file(&*storage)?;
                let l1_end = header.l1_offset.0 + u64::from(header.l1_entries) * 8;
                if l1_end > info.file_size_bytes {
                    return Err(corrupt(format!(
                        "L1 table ends beyond the file: offset={:#x} end={l1_end:#x} file_size={} \
                         image={identity}",
                        header.l1_offset.0, info.file_size_bytes
                    )));
                }
                (Some(header), info)
            }
        };
        Ok(Self {
            storage,
            identity,
            info,
            header,
        })
    }

    pub(super) fn cluster_size(&self) -> Option<u64> {
        self.header
            .as_ref()
            .map(|header| header.geometry.cluster_size())
    }

    /// Reads a part of one compressed cluster of this layer, the one with the number `depth`.
    pub(super) fn read_compressed(
        &self,
        inflated: &Inflated,
        depth: u16,
        start: GuestOffset,
        cell: CompressedCell,
        into: &mut [u8],
    ) -> Result<(), Error> {
        let Some(header) = &self.header else {
            return Err(corrupt("a raw layer has no compressed clusters"));
        };
        let reader = Reader {
            storage: &*self.storage,
            geometry: &header.geometry,
            compression: header.compression,
            inflated,
            layer: depth,
            image: Some(&self.identity),
        };
        reader.read(start, cell, into)
    }

    /// The runs of `range`, which lies inside this layer's disk; `until` is where the caller will stop asking.
    pub(super) fn runs(
        &self,
        range: Range<u64>,
        until: u64,
        slice: &mut Slice,
    ) -> Result<Vec<Run>, Error> {
        let Some(header) = &self.header else {
            return Ok(vec![Run {
                start: GuestOffset(range.start),
                len_bytes: range.end - range.start,
                source: Source::Host(HostOffset(range.start)),
            }]);
        };
        let geometry = &header.geometry;
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let span = geometry.l2_span();
            let table_end = (at / span + 1).saturating_mul(span);
            let next = table_end.min(range.end);
            let first = geometry.guest_cluster(GuestOffset(at));
            if slice.l1_index != Some(geometry.l1_index(first)) {
                let stop = table_end.min(until).div_ceil(geometry.cluster_size());
                *slice = self.load(header, first, stop)?;
            }
            let (start, stop) = (GuestOffset(at), GuestOffset(next));
            match &slice.entries {
                None => found.push(Run {
                    start,
                    len_bytes: next - at,
                    source: Source::Below,
                }),
                Some(entries) => {
                    let skipped = to_usize(first.0 - slice.first) * geometry.l2_entry_words();
                    let entries = &entries[skipped..];
                    let runs = runs(geometry, header.version, start, stop, entries);
                    found.extend(runs.map_err(|error| self.here(&error.to_string()))?);
                }
            }
            at = next;
        }
        Ok(found)
    }

    /// Something that cannot be, with the file where it stands.
    fn here(&self, what: &str) -> Error {
        corrupt(format!("{what} image={}", self.identity))
    }

    fn load(&self, header: &Header, first: GuestCluster, stop: u64) -> Result<Slice, Error> {
        let geometry = &header.geometry;
        let l1_index = geometry.l1_index(first);
        let mut raw = [0; 8];
        let at = HostOffset(header.l1_offset.0 + to_u64(l1_index) * 8);
        storage::read(&*self.storage, at, &mut raw)?;
        let entry = L1Entry::parse(wire::u64_at(&raw, 0), geometry)
            .map_err(|error| self.here(&format!("{error} offset={:#x}", at.0)))?;
        let entries = match entry {
            None => None,
            Some(entry) => {
                let entry_bytes = to_u64(geometry.l2_entry_words()) * 8;
                let mut bytes = vec![0; to_usize((stop - first.0) * entry_bytes)];
                let from = to_u64(geometry.l2_index(first)) * entry_bytes;
                let at = HostOffset(entry.table.0 + from);
                storage::read_padded(&*self.storage, at, &mut bytes)?;
                Some(wire::table(&bytes))
            }
        };
        Ok(Slice {
            l1_index: Some(l1_index),
            first: first.0,
            entries,
        })
    }
}

fn raw_info(len: u64) -> ImageInfo {
    ImageInfo {
        virtual_size_bytes: len,
        cluster_size_bytes: 0,
        version: 0,
        refcount_bits: 0,
        compression: None,
        backing: None,
        seal: None,
        file_size_bytes: len,
    }
}
