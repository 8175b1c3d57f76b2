//! Writing data and zeroes: decide, leave out, allocate, write, then change the tables.

use std::borrow::Cow;
use std::ops::Range;

use crate::error::Error;
use crate::format::digest::Digest;
use crate::format::geometry::{GuestCluster, HostOffset, to_u64, to_usize};
use crate::format::l2::{CompressedCell, HostCell, L2Entry};
use crate::format::limits::{MAX_PART_CLUSTERS, MIN_WRITEBACK_BYTES};
use crate::image::tables::Tables;
use crate::image::{Image, WriteCounters};
use crate::plan::write::{Action, Content, Keep, Question, Rest, decide, released};
use crate::plan::zero::is_zero;
use crate::storage;
use crate::sync::{AtomicU64, Ordering};

/// [`WriteCounters`] while they are counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    zero_bytes: AtomicU64,
    equal_bytes: AtomicU64,
    stored_bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self) -> WriteCounters {
        let zero_bytes = self.zero_bytes.load(Ordering::Relaxed);
        let equal_bytes = self.equal_bytes.load(Ordering::Relaxed);
        let stored_bytes = self.stored_bytes.load(Ordering::Relaxed);
        let received_bytes = zero_bytes + equal_bytes + stored_bytes;
        WriteCounters {
            received_bytes,
            zero_bytes,
            equal_bytes,
            stored_bytes,
        }
    }
}

/// What a request brings.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request<'a> {
    Data {
        data: &'a [u8],
        /// Store it compressed where that is smaller; the request is one whole cluster then.
        compressed: bool,
    },
    Zero {
        keep_allocation: bool,
    },
}

/// One cluster of a request.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) cluster: GuestCluster,
    /// Bytes of the disk.
    pub(super) range: Range<u64>,
    pub(super) content: Content,
    pub(super) entry: L2Entry,
    pub(super) action: Action,
    /// The hash of what it brings, where that is known and the whole cluster.
    pub(super) digest: Option<Digest>,
    /// Whether only the bytes tell that the parent has the same.
    pub(super) compare: bool,
    /// What it brings, compressed, where it is stored so.
    pub(super) stream: Option<Vec<u8>>,
    /// The new cluster or the place of the stream, where the action needs one.
    place: Option<HostOffset>,
}

impl Piece {
    fn needs_cluster(&self) -> bool {
        matches!(self.action, Action::Allocate(_) | Action::Zero(Keep::New))
    }

    /// Bytes of the stream; 0 without one.
    fn stream_len(&self) -> u32 {
        let len = self.stream.as_ref().map_or(0, Vec::len);
        u32::try_from(len).expect("a stream is smaller than a cluster")
    }

    /// The entry after the action; `None` where it stays.
    fn new_entry(&self) -> Option<L2Entry> {
        let place = || {
            self.place
                .expect("a place was allocated for every piece that needs one")
        };
        Some(match self.action {
            Action::Nothing | Action::InPlace(_) => return None,
            Action::Fill(at) => L2Entry::Data(HostCell::own(at)),
            Action::Allocate(_) => L2Entry::Data(HostCell::own(place())),
            Action::Compress => L2Entry::Compressed(CompressedCell {
                offset: place(),
                len_bytes: self.stream_len(),
            }),
            Action::Zero(Keep::Nothing) => L2Entry::Zero { kept: None },
            Action::Zero(Keep::Own(at)) => L2Entry::Zero {
                kept: Some(HostCell::own(at)),
            },
            Action::Zero(Keep::New) => L2Entry::Zero {
                kept: Some(HostCell::own(place())),
            },
            Action::Drop => L2Entry::Unallocated,
        })
    }
}

/// Bytes on their way into the file.
#[derive(Debug)]
enum Bytes<'a> {
    /// A part of the request.
    Request(Range<usize>),
    Other(Cow<'a, [u8]>),
}

impl Image {
    /// Writes `data` at `offset`, of any alignment. Zeroes in it become facts instead of data.
    ///
    /// # Errors
    /// `OutOfRange`, `ReadOnly` after `seal`, `Corrupt` once the image was found damaged and for a part of a damaged
    /// compressed cluster, `NoSpace`, `Io`.
    /// After an error each cluster of the range holds the old or the new bytes, or a part of each.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let compressed = false;
        self.request(
            offset,
            to_u64(data.len()),
            Request::Data { data, compressed },
        )
    }

    /// Makes a range read as zero, masking the parent; `keep_allocation` leaves the clusters allocated (NBD `NO_HOLE`).
    ///
    /// # Errors
    /// As [`Image::write`].
    pub fn write_zeroes(
        &self,
        offset: u64,
        len_bytes: u64,
        keep_allocation: bool,
    ) -> Result<(), Error> {
        self.request(offset, len_bytes, Request::Zero { keep_allocation })
    }

    pub(super) fn request(
        &self,
        offset: u64,
        len_bytes: u64,
        request: Request<'_>,
    ) -> Result<(), Error> {
        self.check_range(offset, len_bytes)?;
        let _range = self.locks.exclusive(self.clusters(offset, len_bytes));
        self.check_writable()?;
        let end = offset + len_bytes;
        let span = self.geometry.l2_span();
        let cluster_size = self.geometry.cluster_size();
        let mut at = offset;
        while at < end {
            let at_once = (at / cluster_size + MAX_PART_CLUSTERS).saturating_mul(cluster_size);
            let table_end = (at / span + 1).saturating_mul(span);
            let next = table_end.min(at_once).min(end);
            let part = match request {
                Request::Data { data, compressed } => Request::Data {
                    data: &data[to_usize(at - offset)..to_usize(next - offset)],
                    compressed,
                },
                zero @ Request::Zero { .. } => zero,
            };
            let written = self.write_part(at..next, part);
            self.fence(written)?;
            at = next;
        }
        Ok(())
    }

    /// Writes a range that one L2 table describes; the caller holds it.
    fn write_part(&self, range: Range<u64>, request: Request<'_>) -> Result<(), Error> {
        if self.tables.lock().wants_commit() {
            self.relieve()?;
        }
        let mut pieces = self.decide(range.clone(), request)?;
        if let Request::Data { data, compressed } = request {
            self.hash_pieces(range.start, &mut pieces, data);
            self.elide(range.start, &mut pieces, data);
            if compressed {
                self.compress_pieces(range.start, &mut pieces, data);
            }
        }
        self.allocate(&mut pieces)?;
        let written = self
            .write_data(range.start, &pieces, request)
            .and_then(|()| self.change_tables(&pieces));
        self.record_hashes(&pieces, written.is_ok());
        if written.is_err() {
            self.give_back(&pieces);
        } else {
            self.count(&pieces);
        }
        written
    }

    fn decide(&self, range: Range<u64>, request: Request<'_>) -> Result<Vec<Piece>, Error> {
        let clusters = self.clusters(range.start, range.end - range.start);
        let (entries, version) = {
            let mut tables = self.tables.lock();
            (
                tables.entries(&*self.storage, clusters.clone())?,
                tables.version,
            )
        };
        if let (
            None,
            Request::Zero {
                keep_allocation: false,
            },
        ) = (&entries, request)
            && !self.data_below(range.start, range.end - range.start)?
        {
            self.counters
                .zero_bytes
                .fetch_add(range.end - range.start, Ordering::Relaxed);
            return Ok(vec![]);
        }
        let mut pieces = Vec::with_capacity(to_usize(clusters.end - clusters.start));
        for (index, cluster) in clusters.map(GuestCluster).enumerate() {
            let raw = entries.as_ref().map_or(0, |entries| entries[index]);
            let entry = L2Entry::parse(raw, version, &self.geometry)?;
            pieces.push(self.decide_piece(&range, request, cluster, entry, version)?);
        }
        Ok(pieces)
    }

    fn decide_piece(
        &self,
        range: &Range<u64>,
        request: Request<'_>,
        cluster: GuestCluster,
        entry: L2Entry,
        version: u32,
    ) -> Result<Piece, Error> {
        if entry != L2Entry::Unallocated {
            self.tables.lock().check_entry(&*self.storage, &entry)?;
        }
        let start = self.geometry.guest_start(cluster).0;
        let len = self.geometry.guest_len(cluster);
        let piece = range.start.max(start)..range.end.min(start + len);
        let whole = piece == (start..start + len);
        let content = match request {
            Request::Zero { keep_allocation } => Content::Zero { keep_allocation },
            Request::Data { data, .. } if is_zero(part(data, range.start, &piece)) => {
                Content::Zero {
                    keep_allocation: false,
                }
            }
            Request::Data { .. } => Content::Data,
        };
        let asks_below = match content {
            Content::Data => entry == L2Entry::Unallocated && !whole,
            Content::Zero { .. } => entry == L2Entry::Unallocated || whole,
        };
        let data_below = asks_below && self.data_below(start, len)?;
        let has_zero_flag = version >= 3;
        let action = decide(&Question {
            entry,
            whole,
            content,
            data_below,
            has_zero_flag,
        });
        Ok(Piece {
            cluster,
            range: piece,
            content,
            entry,
            action,
            digest: None,
            compare: false,
            stream: None,
            place: None,
        })
    }

    fn data_below(&self, offset: u64, len_bytes: u64) -> Result<bool, Error> {
        match &self.parent {
            None => Ok(false),
            Some(parent) => parent.may_have_data(offset, len_bytes),
        }
    }

    /// Makes room in the tables and takes host clusters, neighbouring ones for neighbouring pieces.
    fn allocate(&self, pieces: &mut [Piece]) -> Result<(), Error> {
        let changes = |piece: &Piece| !matches!(piece.action, Action::Nothing | Action::InPlace(_));
        let Some(first) = pieces.iter().find(|piece| changes(piece)) else {
            return Ok(());
        };
        let l1_index = self.geometry.l1_index(first.cluster);
        let mut tables = self.tables.lock();
        tables.own_table(&*self.storage, l1_index)?;
        self.place_streams(&mut tables, pieces)?;
        let count = pieces.iter().filter(|piece| piece.needs_cluster()).count();
        let places = tables.allocator.allocate(&*self.storage, to_u64(count))?;
        let waiting = pieces.iter_mut().filter(|piece| piece.needs_cluster());
        for (piece, place) in waiting.zip(places) {
            piece.place = Some(self.geometry.host_start(place));
        }
        Ok(())
    }

    /// Takes places for the streams; what no compressed entry could refer to is stored as it is.
    fn place_streams(&self, tables: &mut Tables, pieces: &mut [Piece]) -> Result<(), Error> {
        let streams = |piece: &&mut Piece| piece.action == Action::Compress;
        for piece in pieces.iter_mut().filter(streams) {
            let len = piece.stream_len();
            piece.place = tables.allocator.allocate_stream(&*self.storage, len)?;
            if piece.place.is_none() {
                piece.action = Action::Allocate(Rest::Zero);
            }
        }
        Ok(())
    }

    fn write_data(&self, start: u64, pieces: &[Piece], request: Request<'_>) -> Result<(), Error> {
        let data = match request {
            Request::Data { data, .. } => data,
            Request::Zero { .. } => &[],
        };
        let mut pending: Option<(HostOffset, Bytes<'_>)> = None;
        for piece in pieces {
            let Some((at, bytes)) = self.bytes_of(start, piece, data)? else {
                continue;
            };
            if let Some((pending_at, Bytes::Request(before))) = &mut pending
                && let Bytes::Request(range) = &bytes
                && before.end == range.start
                && pending_at.0 + to_u64(before.len()) == at.0
            {
                before.end = range.end;
                continue;
            }
            self.write_bytes(pending.replace((at, bytes)), data)?;
        }
        self.write_bytes(pending, data)
    }

    fn write_bytes(
        &self,
        write: Option<(HostOffset, Bytes<'_>)>,
        data: &[u8],
    ) -> Result<(), Error> {
        let Some((at, bytes)) = write else {
            return Ok(());
        };
        let bytes = match &bytes {
            Bytes::Request(range) => &data[range.clone()],
            Bytes::Other(bytes) => bytes,
        };
        storage::write(&*self.storage, at, bytes)?;
        let len = to_u64(bytes.len());
        if len >= MIN_WRITEBACK_BYTES {
            self.storage.start_writeback(at.0, len);
        }
        Ok(())
    }

    /// What a piece writes into the file, and where.
    fn bytes_of<'a>(
        &self,
        start: u64,
        piece: &'a Piece,
        data: &[u8],
    ) -> Result<Option<(HostOffset, Bytes<'a>)>, Error> {
        let len = to_usize(piece.range.end - piece.range.start);
        let from = to_usize(piece.range.start - start);
        let brought = || match piece.content {
            Content::Data => Bytes::Request(from..from + len),
            Content::Zero { .. } => Bytes::Other(vec![0; len].into()),
        };
        let into = self.geometry.in_cluster(piece.range.start);
        let (at, rest) = match piece.action {
            Action::InPlace(at) => return Ok(Some((HostOffset(at.0 + into), brought()))),
            Action::Fill(at) => (at, Rest::Zero),
            Action::Allocate(rest) => (piece.place.expect("allocated before"), rest),
            Action::Compress => {
                let at = piece.place.expect("allocated before");
                let stream = piece.stream.as_deref().unwrap_or_default();
                return Ok(Some((at, Bytes::Other(stream.into()))));
            }
            // Real zeroes: the caller asked for space that is there.
            Action::Zero(Keep::New) => (piece.place.expect("allocated before"), Rest::Zero),
            Action::Nothing | Action::Drop | Action::Zero(_) => return Ok(None),
        };
        if to_u64(len) == self.geometry.cluster_size() {
            return Ok(Some((at, brought())));
        }
        let mut whole = self.read_rest(piece.cluster, rest)?;
        let target = &mut whole[to_usize(into)..to_usize(into) + len];
        match brought() {
            Bytes::Request(range) => target.copy_from_slice(&data[range]),
            Bytes::Other(zeroes) => target.copy_from_slice(&zeroes),
        }
        Ok(Some((at, Bytes::Other(whole.into()))))
    }

    /// A whole cluster as it reads now; zeroes beyond the end of the disk.
    fn read_rest(&self, cluster: GuestCluster, rest: Rest) -> Result<Vec<u8>, Error> {
        let mut whole = vec![0; to_usize(self.geometry.cluster_size())];
        let len = to_usize(self.geometry.guest_len(cluster));
        match rest {
            Rest::Zero => {}
            Rest::Below => {
                self.read_below(self.geometry.guest_start(cluster), &mut whole[..len])?;
            }
            Rest::Host(at) => storage::read_padded(&*self.storage, at, &mut whole[..len])?,
            Rest::Compressed(cell) => {
                let start = self.geometry.guest_start(cluster);
                self.read_compressed(start, cell, &mut whole[..len])?;
            }
        }
        Ok(whole)
    }

    fn change_tables(&self, pieces: &[Piece]) -> Result<(), Error> {
        let mut tables = self.tables.lock();
        for piece in pieces {
            let Some(entry) = piece.new_entry() else {
                continue;
            };
            tables.set_entry(&*self.storage, piece.cluster, &entry)?;
            if let Some(cell) = released(&piece.entry, &piece.action) {
                tables.let_go(self.geometry.host_cluster(cell.offset));
            }
            if let L2Entry::Compressed(cell) = piece.entry {
                self.inflated.forget(cell);
                for cluster in cell.host_clusters(&self.geometry) {
                    tables.let_go(cluster);
                }
            }
        }
        Ok(())
    }

    /// After a failed write: the clusters it took, if no entry got to refer to them.
    fn give_back(&self, pieces: &[Piece]) {
        let mut tables = self.tables.lock();
        for piece in pieces {
            let Some(place) = piece.place else { continue };
            let range = piece.cluster.0..piece.cluster.0 + 1;
            let entry = tables.entries(&*self.storage, range).ok().flatten();
            let Some(expected) = piece.new_entry() else {
                continue;
            };
            // Where the tables cannot be read the cluster stays taken: a leak is better than a cluster used twice.
            if entry.is_some_and(|entries| entries[0] != expected.raw(&self.geometry)) {
                let clusters: Vec<_> = match expected {
                    L2Entry::Compressed(cell) => cell.host_clusters(&self.geometry).collect(),
                    _ => vec![self.geometry.host_cluster(place)],
                };
                for cluster in clusters {
                    let _ = tables.allocator.release(&*self.storage, cluster);
                }
            }
        }
    }

    fn count(&self, pieces: &[Piece]) {
        for piece in pieces {
            let counter = match (piece.content, piece.action) {
                // Data needs something done unless the parent has it.
                (Content::Data, Action::Nothing) => &self.counters.equal_bytes,
                (Content::Data, _) => &self.counters.stored_bytes,
                (Content::Zero { .. }, _) => &self.counters.zero_bytes,
            };
            counter.fetch_add(piece.range.end - piece.range.start, Ordering::Relaxed);
        }
    }
}

/// The bytes of a request that begins at `start` which belong to a range of the disk.
pub(super) fn part<'a>(data: &'a [u8], start: u64, range: &Range<u64>) -> &'a [u8] {
    &data[to_usize(range.start - start)..to_usize(range.end - start)]
}
