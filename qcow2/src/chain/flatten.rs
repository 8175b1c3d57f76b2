//! All layers under a range as one list: what an upper layer leaves open is asked of the next.

use std::ops::Range;

use crate::chain::layer::{Layer, Slice};
use crate::error::Error;
use crate::format::geometry::HostOffset;
use crate::format::l2::CompressedCell;
use crate::plan::read::Source;

/// Where the bytes of a piece come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceSource {
    /// The layer's file.
    Host(HostOffset),
    /// The layer says zero; its file may keep space for later writes.
    Zero { kept: Option<HostOffset> },
    /// No layer has it.
    Nothing,
    /// The layer ends before: zeroes, whatever lies below.
    Beyond,
    /// A part of a compressed cluster of the layer.
    Compressed(CompressedCell),
}

/// A range of the disk with one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) len_bytes: u64,
    pub(super) layer: u16,
    pub(super) source: PieceSource,
}

/// Flattens `range`, which lies inside the tip's disk.
pub(super) fn flatten(layers: &[Layer], range: Range<u64>) -> Result<Vec<Piece>, Error> {
    let until = range.end;
    let mut open = vec![range];
    let mut found = Vec::new();
    for (depth, layer) in layers.iter().enumerate() {
        let is_last = depth + 1 == layers.len();
        let depth = u16::try_from(depth).expect("the depth of a chain is bounded");
        let size = layer.info.virtual_size_bytes;
        let mut slice = Slice::default();
        let mut below: Vec<Range<u64>> = Vec::new();
        for range in open {
            let end = range.end.min(size).max(range.start);
            // Beyond the end of a layer nothing shines through from below.
            if end < range.end {
                found.push(piece(end..range.end, depth, PieceSource::Beyond));
            }
            for run in layer.runs(range.start..end, until.min(size), &mut slice)? {
                let covered = run.start.0..run.start.0 + run.len_bytes;
                let source = match run.source {
                    Source::Host(at) => PieceSource::Host(at),
                    Source::Zero { kept } => PieceSource::Zero { kept },
                    Source::Compressed(cell) => PieceSource::Compressed(cell),
                    Source::Below if is_last => PieceSource::Nothing,
                    Source::Below => {
                        match below.last_mut() {
                            Some(last) if last.end == covered.start => last.end = covered.end,
                            _ => below.push(covered),
                        }
                        continue;
                    }
                };
                found.push(piece(covered, depth, source));
            }
        }
        open = below;
        if open.is_empty() {
            break;
        }
    }
    Ok(join(found))
}

fn piece(range: Range<u64>, layer: u16, source: PieceSource) -> Piece {
    Piece {
        start: range.start,
        len_bytes: range.end - range.start,
        layer,
        source,
    }
}

/// Sorts the pieces and joins neighbours.
fn join(mut pieces: Vec<Piece>) -> Vec<Piece> {
    pieces.retain(|piece| piece.len_bytes > 0);
    pieces.sort_unstable_by_key(|piece| piece.start);
    let mut joined: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        if let Some(last) = joined.last_mut()
            && last.layer == piece.layer
            && continues(last, &piece)
        {
            last.len_bytes += piece.len_bytes;
            continue;
        }
        joined.push(piece);
    }
    // It is kept by its length.
    joined.shrink_to_fit();
    joined
}

fn continues(last: &Piece, next: &Piece) -> bool {
    match (last.source, next.source) {
        (PieceSource::Host(mine), PieceSource::Host(theirs))
        | (PieceSource::Zero { kept: Some(mine) }, PieceSource::Zero { kept: Some(theirs) }) => {
            mine.0 + last.len_bytes == theirs.0
        }
        // What is read as one piece is one cluster.
        (PieceSource::Compressed(_), _) => false,
        (mine, theirs) => mine == theirs,
    }
}
