//! Elision: what the parent has already is not stored again.

use crate::chain::Chain;
use crate::format::geometry::{to_u64, to_usize};
use crate::format::l2::L2Entry;
use crate::format::limits::MAX_COMPARE_BYTES;
use crate::image::Image;
use crate::image::write::{Piece, part};
use crate::plan::write::{Action, Content};

/// How an image finds out that its parent has the bytes of a write already. The parent must never change again:
/// what was not stored is read from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Elision {
    /// Not at all: every write of data is stored.
    #[default]
    Off,
    /// It reads the parent and compares the bytes.
    Read,
}

impl Image {
    /// Leaves out whole clusters that the image does not have and the parent has with the same bytes.
    #[must_use]
    pub fn with_elision(mut self, elision: Elision) -> Self {
        self.elision = elision;
        self
    }

    /// Turns into [`Action::Nothing`] what need not be stored. `data` begins at `start`; the caller holds the range,
    /// so that no other request comes between the comparison and what follows from it.
    pub(super) fn elide(&self, start: u64, pieces: &mut [Piece], data: &[u8]) {
        let (Elision::Read, Some(parent)) = (self.elision, &self.parent) else {
            return;
        };
        let at_once = MAX_COMPARE_BYTES.div_ceil(self.geometry.cluster_size());
        let mut buffer = Vec::new();
        let runs = pieces.chunk_by_mut(|one, next| self.is_open(one) == self.is_open(next));
        for run in runs.filter(|run| self.is_open(&run[0])) {
            for pieces in run.chunks_mut(to_usize(at_once)) {
                elide_equal(parent, start, pieces, data, &mut buffer);
            }
        }
    }

    /// Whether a piece brings data for the whole of a cluster that this image does not have.
    fn is_open(&self, piece: &Piece) -> bool {
        piece.entry == L2Entry::Unallocated
            && piece.content == Content::Data
            && piece.range.end - piece.range.start == self.geometry.guest_len(piece.cluster)
    }
}

/// Compares neighbouring pieces with the parent, by one read of it.
fn elide_equal(
    parent: &Chain,
    start: u64,
    pieces: &mut [Piece],
    data: &[u8],
    buffer: &mut Vec<u8>,
) {
    let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
        return;
    };
    let from = first.range.start;
    let len = last.range.end - from;
    // The pieces are not zero, so that they differ from what reads as zero. What cannot be read is not known to be
    // equal: it is stored, and whoever reads the parent's own content meets the error.
    if !parent.may_have_data(from, len).unwrap_or(false) {
        return;
    }
    if to_u64(buffer.len()) < len {
        buffer.resize(to_usize(len), 0);
    }
    let below = &mut buffer[..to_usize(len)];
    if parent.read_padded(from, below).is_err() {
        return;
    }
    for piece in pieces {
        if part(data, start, &piece.range) == part(below, from, &piece.range) {
            piece.action = Action::Nothing;
        }
    }
}
