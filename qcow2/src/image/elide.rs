//! Elision: what the parent has already is not stored again.

use crate::chain::Chain;
use crate::format::geometry::{to_u64, to_usize};
use crate::format::l2::L2Entry;
use crate::format::limits::MAX_COMPARE_BYTES;
use crate::hashes::ClusterHash;
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
    /// It compares 128 bits of BLAKE3 with what the sidecars of the parent have, and the bytes where they have nothing:
    /// what was damaged in the parent after its seal is not noticed here.
    Hash,
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
        let Some(parent) = &self.parent else {
            return;
        };
        for piece in &mut *pieces {
            let by_hash = self.is_equal_by_hash(parent, piece);
            if by_hash == Some(true) {
                piece.action = Action::Nothing;
            }
            piece.compare =
                by_hash.is_none() && self.elision != Elision::Off && self.is_open(piece);
        }
        let at_once = MAX_COMPARE_BYTES.div_ceil(self.geometry.cluster_size());
        let mut buffer = Vec::new();
        let runs = pieces.chunk_by_mut(|one, next| one.compare == next.compare);
        for run in runs.filter(|run| run[0].compare) {
            for pieces in run.chunks_mut(to_usize(at_once)) {
                elide_equal(parent, start, pieces, data, &mut buffer);
            }
        }
    }

    /// Whether the hash of a piece must be known to decide if it is stored.
    pub(super) fn elides_by_hash(&self, piece: &Piece) -> bool {
        let parent = self.parent.as_ref();
        self.elision == Elision::Hash
            && parent.is_some_and(|parent| parent.has_hashes())
            && self.is_open(piece)
    }

    /// Whether the parent has what a piece brings; `None` where no hash tells.
    fn is_equal_by_hash(&self, parent: &Chain, piece: &Piece) -> Option<bool> {
        let digest = piece.digest.filter(|_| self.elides_by_hash(piece))?;
        let len = piece.range.end - piece.range.start;
        let below = parent.cluster_hash(piece.range.start, len, self.geometry.cluster_size())?;
        // The piece is not zero.
        Some(below == ClusterHash::Data(digest))
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
