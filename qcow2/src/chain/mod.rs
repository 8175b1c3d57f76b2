//! base..tip, read-only, flattened into one extent map: read cost does not grow with depth.

mod changes;
mod flatten;
mod hashes;
mod layer;

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use crate::chain::flatten::{Piece, PieceSource};
use crate::chain::hashes::ChainHashes;
use crate::chain::layer::{Layer, Slice};
use crate::codec::Inflated;
use crate::error::{Error, ErrorKind};
use crate::format::geometry::{GuestOffset, HostOffset, to_u64, to_usize};
use crate::format::limits::{
    DEFAULT_CLUSTER_BITS, MAX_CACHED_EXTENTS, MAX_CHAIN_DEPTH, SPAN_CLUSTERS,
};
use crate::image::{BackingFormat, BackingName, Extent, ExtentKind, ImageInfo, push_extent};
use crate::plan::read::Run;
use crate::storage::{self, Storage};
use crate::sync::Mutex;

pub use changes::Changes;

/// Decides which backing files may be opened, and opens them.
pub trait Opener {
    /// Opens `name`, which the image known as `of` records as its backing file. A name without format is the
    /// opener's to decide: the content is never guessed at.
    ///
    /// # Errors
    /// `NotFound`, `Refused`, `Io`: whatever the opener finds; [`Error::new`] makes them.
    fn open_backing(&self, name: &BackingName, of: &str) -> Result<OpenedBacking, Error>;

    /// Opens the hash sidecar of the image known as `of`, the tip or one that `open_backing` opened, if there is one and
    /// somebody will ask for hashes. Only images whose seal names a sidecar are asked for, and only the one that the
    /// seal names is believed.
    fn open_hashes(&self, of: &str) -> Option<Arc<dyn Storage>> {
        let _ = of;
        None
    }
}

/// A backing file, opened.
#[derive(Debug)]
pub struct OpenedBacking {
    /// Its bytes.
    pub storage: Arc<dyn Storage>,
    /// A name that identifies the file, whatever way led to it; loops are found by it.
    pub identity: String,
    /// How to read it.
    pub format: BackingFormat,
}

/// base..tip, read-only, flattened into one extent map: read cost does not grow with depth.
#[derive(Debug)]
pub struct Chain {
    /// Tip first.
    layers: Vec<Layer>,
    span_bytes: u64,
    spans: Mutex<Spans>,
    hashes: ChainHashes,
    inflated: Inflated,
}

/// Flattened spans that are remembered.
#[derive(Debug, Default)]
struct Spans {
    /// The pieces of a span, and when it was last asked for.
    known: HashMap<u64, (Arc<[Piece]>, u64)>,
    /// Their weight together.
    extents: usize,
    clock: u64,
}

impl Chain {
    /// Opens a chain from its tip down.
    ///
    /// # Errors
    /// `Refused` for a loop, a chain deeper than its limit, or a format other than the recorded one; `NotFound` and
    /// others from the opener; `Unsupported` and `Corrupt` for what a header says.
    pub fn open(
        tip: Arc<dyn Storage>,
        identity: &str,
        format: BackingFormat,
        opener: &dyn Opener,
    ) -> Result<Self, Error> {
        let mut seen = BTreeSet::new();
        let mut layers: Vec<Layer> = Vec::new();
        let mut hashes = ChainHashes::default();
        let identity = identity.to_owned();
        let mut next = Some(OpenedBacking {
            storage: tip,
            identity,
            format,
        });
        while let Some(opened) = next {
            if !seen.insert(opened.identity.clone()) {
                return Err(refused(format!(
                    "chain is a loop: image={}",
                    opened.identity
                )));
            }
            if layers.len() == MAX_CHAIN_DEPTH {
                return Err(refused(format!(
                    "chain is too deep: limit={MAX_CHAIN_DEPTH}"
                )));
            }
            let layer = Layer::open(opened)?;
            next = match &layer.info.backing {
                None => None,
                Some(name) => Some(open_backing(opener, name, &layer.identity)?),
            };
            hashes.push(&layer, opener);
            layers.push(layer);
        }
        let finest = layers.iter().filter_map(Layer::cluster_size).min();
        let span_bytes = finest.unwrap_or(1 << DEFAULT_CLUSTER_BITS) * SPAN_CLUSTERS;
        Ok(Self {
            layers,
            span_bytes,
            spans: Mutex::default(),
            hashes,
            inflated: Inflated::default(),
        })
    }

    /// One image, without what lies below it.
    pub(crate) fn alone(image: Arc<dyn Storage>) -> Result<Self, Error> {
        let mut layer = Layer::open(OpenedBacking {
            storage: image,
            identity: String::new(),
            format: BackingFormat::Qcow2,
        })?;
        layer.info.backing = None;
        let span_bytes = u64::from(layer.info.cluster_size_bytes) * SPAN_CLUSTERS;
        Ok(Self {
            layers: vec![layer],
            span_bytes,
            spans: Mutex::default(),
            hashes: ChainHashes::default(),
            inflated: Inflated::default(),
        })
    }

    /// The runs of the tip's own tables under a range inside its disk; nothing of it is remembered.
    pub(crate) fn own_runs(&self, range: Range<u64>) -> Result<Vec<Run>, Error> {
        let until = range.end;
        self.layers[0].runs(range, until, &mut Slice::default())
    }

    /// Bytes of the virtual disk, as the tip has it.
    pub fn virtual_size_bytes(&self) -> u64 {
        self.layers[0].info.virtual_size_bytes
    }

    /// Tip first: identity and facts of each layer.
    pub fn layers(&self) -> Vec<(String, ImageInfo)> {
        self.layers
            .iter()
            .map(|layer| (layer.identity.clone(), layer.info.clone()))
            .collect()
    }

    /// Fills `into` from `offset`.
    ///
    /// # Errors
    /// `OutOfRange`; `Corrupt` for entries that cannot be and damaged compressed clusters; `Io`.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.check_range(offset, to_u64(into.len()))?;
        let end = offset + to_u64(into.len());
        self.visit(offset, end, |piece| {
            let from = to_usize(piece.start - offset);
            let part = &mut into[from..from + to_usize(piece.len_bytes)];
            match piece.source {
                PieceSource::Host(at) => {
                    let layer = &self.layers[usize::from(piece.layer)];
                    storage::read_padded(&*layer.storage, at, part)
                }
                PieceSource::Zero { .. } | PieceSource::Nothing | PieceSource::Beyond => {
                    part.fill(0);
                    Ok(())
                }
                PieceSource::Compressed(cell) => {
                    let layer = &self.layers[usize::from(piece.layer)];
                    let start = GuestOffset(piece.start);
                    layer.read_compressed(&self.inflated, piece.layer, start, cell, part)
                }
            }
        })
    }

    /// Extents of a range, in order, without gaps.
    ///
    /// # Errors
    /// `OutOfRange`; `Corrupt` for entries that cannot be; `Io`.
    pub fn extents(&self, offset: u64, len_bytes: u64) -> Result<Vec<Extent>, Error> {
        self.check_range(offset, len_bytes)?;
        let mut extents = Vec::new();
        self.visit(offset, offset + len_bytes, |piece| {
            let (kind, host_offset) = match piece.source {
                PieceSource::Host(at) => (ExtentKind::Data, Some(at.0)),
                PieceSource::Compressed(_) => (ExtentKind::Data, None),
                PieceSource::Zero { kept } => (ExtentKind::Zero, kept.map(|at| at.0)),
                PieceSource::Nothing => (ExtentKind::Unallocated, None),
                PieceSource::Beyond => (ExtentKind::Beyond, None),
            };
            let Piece {
                start,
                len_bytes,
                layer,
                ..
            } = piece;
            let depth = u32::from(layer);
            push_extent(
                &mut extents,
                Extent {
                    offset: start,
                    len_bytes,
                    kind,
                    depth,
                    host_offset,
                },
            );
            Ok(())
        })?;
        Ok(extents)
    }

    /// As `read`, with zeroes beyond the end: what a larger image on top sees.
    pub(crate) fn read_padded(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        let present = self.present(offset, to_u64(into.len()));
        let (inside, beyond) = into.split_at_mut(to_usize(present));
        beyond.fill(0);
        if inside.is_empty() {
            Ok(())
        } else {
            self.read(offset, inside)
        }
    }

    /// As `extents`, also beyond the end: what a larger image on top sees.
    pub(crate) fn extents_padded(&self, offset: u64, len_bytes: u64) -> Result<Vec<Extent>, Error> {
        let present = self.present(offset, len_bytes);
        let mut extents = if present == 0 {
            Vec::new()
        } else {
            self.extents(offset, present)?
        };
        let beyond = Extent {
            offset: offset + present,
            len_bytes: len_bytes - present,
            kind: ExtentKind::Beyond,
            depth: 0,
            host_offset: None,
        };
        push_extent(&mut extents, beyond);
        Ok(extents)
    }

    /// Whether anything else than zeroes may lie under a range, which may end beyond the disk.
    pub(crate) fn may_have_data(&self, offset: u64, len_bytes: u64) -> Result<bool, Error> {
        let mut found = false;
        let present = self.present(offset, len_bytes);
        self.visit(offset, offset + present, |piece| {
            found |= matches!(
                piece.source,
                PieceSource::Host(_) | PieceSource::Compressed(_)
            );
            Ok(())
        })?;
        Ok(found)
    }

    fn present(&self, offset: u64, len_bytes: u64) -> u64 {
        self.virtual_size_bytes()
            .saturating_sub(offset)
            .min(len_bytes)
    }

    fn check_range(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        let size = self.virtual_size_bytes();
        if offset.checked_add(len_bytes).is_none_or(|end| end > size) {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "range is not inside the disk: offset={offset} len={len_bytes} \
                     virtual_size={size}"
                ),
            ));
        }
        Ok(())
    }

    /// Calls `with` for each piece of `offset..end`, cut to the range.
    fn visit(
        &self,
        offset: u64,
        end: u64,
        mut with: impl FnMut(Piece) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut at = offset;
        while at < end {
            let pieces = self.span(at / self.span_bytes)?;
            let first = pieces.partition_point(|piece| piece.start + piece.len_bytes <= at);
            for piece in &pieces[first..] {
                if piece.start >= end {
                    break;
                }
                let cut = piece.cut(at.max(piece.start), end);
                at = cut.start + cut.len_bytes;
                with(cut)?;
            }
        }
        Ok(())
    }

    fn span(&self, index: u64) -> Result<Arc<[Piece]>, Error> {
        if let Some(known) = self.spans.lock().get(index) {
            return Ok(known);
        }
        // Without the lock: two readers may flatten the same span once, nobody waits for another's IO.
        let start = index * self.span_bytes;
        let end = (start + self.span_bytes).min(self.virtual_size_bytes());
        let pieces: Arc<[Piece]> = flatten::flatten(&self.layers, start..end)?.into();
        self.spans.lock().insert(index, pieces.clone());
        Ok(pieces)
    }
}

impl Spans {
    fn get(&mut self, index: u64) -> Option<Arc<[Piece]>> {
        self.clock += 1;
        let (pieces, used) = self.known.get_mut(&index)?;
        *used = self.clock;
        Some(pieces.clone())
    }

    fn insert(&mut self, index: u64, pieces: Arc<[Piece]>) {
        self.clock += 1;
        self.extents += weight(&pieces);
        if let Some((before, _)) = self.known.insert(index, (pieces, self.clock)) {
            self.extents -= weight(&before);
        }
        if self.extents > MAX_CACHED_EXTENTS {
            self.evict();
        }
    }

    /// Drops the spans that were used the longest time ago until half of the bound is free: a search through all of
    /// them for each new one would cost more.
    fn evict(&mut self) {
        let known = self.known.iter();
        let mut oldest: Vec<(u64, u64)> = known.map(|(index, (_, used))| (*used, *index)).collect();
        oldest.sort_unstable();
        // The newest one stays, whatever its size: it was asked for.
        oldest.pop();
        for (_, index) in oldest {
            if self.extents <= MAX_CACHED_EXTENTS / 2 {
                break;
            }
            if let Some((dropped, _)) = self.known.remove(&index) {
                self.extents -= weight(&dropped);
            }
        }
    }
}

/// What a span counts against the bound: its extents, and as much as two more for its place in the map.
fn weight(pieces: &[Piece]) -> usize {
    pieces.len() + 2
}

fn open_backing(opener: &dyn Opener, name: &BackingName, of: &str) -> Result<OpenedBacking, Error> {
    let opened = opener.open_backing(name, of)?;
    if name.format.is_some_and(|format| format != opened.format) {
        return Err(refused(format!(
            "backing file was opened as another format than recorded: name={} recorded={} opened={}",
            name.name,
            name.format.map_or("", BackingFormat::as_str),
            opened.format.as_str()
        )));
    }
    Ok(opened)
}

fn refused(message: String) -> Error {
    Error::new(ErrorKind::Refused, message)
}

impl Piece {
    /// The part of this piece between two positions, which it reaches.
    fn cut(&self, start: u64, end: u64) -> Self {
        let skipped = start - self.start;
        let source = match self.source {
            PieceSource::Host(at) => PieceSource::Host(HostOffset(at.0 + skipped)),
            PieceSource::Zero { kept } => PieceSource::Zero {
                kept: kept.map(|at| HostOffset(at.0 + skipped)),
            },
            other => other,
        };
        let len_bytes = (self.start + self.len_bytes).min(end) - start;
        Self {
            start,
            len_bytes,
            layer: self.layer,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(count: u64) -> Arc<[Piece]> {
        let piece = |start| Piece {
            start,
            len_bytes: 1,
            layer: 0,
            source: PieceSource::Zero { kept: None },
        };
        (0..count).map(piece).collect()
    }

    fn held(spans: &Spans) -> usize {
        spans.known.values().map(|(pieces, _)| weight(pieces)).sum()
    }

    /// Whatever the layers look like, a chain remembers a bounded number of extents, and those asked for last.
    #[test]
    fn remembered_extents_are_bounded() {
        for count in [1, SPAN_CLUSTERS] {
            let mut spans = Spans::default();
            let rounds = 2 * to_u64(MAX_CACHED_EXTENTS) / (count + 2);
            for index in 0..rounds {
                assert!(spans.get(0).is_some() || index == 0, "span 0 is in use");
                spans.insert(index, pieces(count));
                assert!(spans.extents <= MAX_CACHED_EXTENTS);
                assert!(spans.known.contains_key(&index), "the newest one stays");
            }
            assert_eq!(spans.extents, held(&spans));
            assert!(spans.extents > MAX_CACHED_EXTENTS / 4);
            assert!(spans.get(1).is_none());
        }
    }

    #[test]
    fn a_span_beyond_the_bound_is_alone() {
        let mut spans = Spans::default();
        for index in 0..3 {
            spans.insert(index, pieces(to_u64(MAX_CACHED_EXTENTS)));
            assert_eq!(spans.known.len(), 1);
            assert_eq!(spans.extents, held(&spans));
        }
    }
}
