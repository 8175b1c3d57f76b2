//! What may differ between two points, from the maps of the layers alone.

use std::ops::Range;

use crate::chain::Chain;
use crate::chain::flatten::{PieceSource, flatten};
use crate::chain::layer::Layer;
use crate::error::{Error, invalid};

/// Ranges of the disk that may differ between two points, in bytes: in order, apart from each other, never empty.
/// One span of the disk is looked at at a time, so that memory is bounded whatever the disk's size.
#[derive(Debug)]
pub struct Changes<'a> {
    /// The layers of each point down to the one they share.
    sides: [&'a [Layer]; 2],
    /// Bytes of the older disk: what lies beyond is new.
    older_bytes: u64,
    newer_bytes: u64,
    span_bytes: u64,
    /// Where the next span begins.
    at: u64,
    found: std::vec::IntoIter<Range<u64>>,
    /// May go on in the next span.
    last: Option<Range<u64>>,
}

impl Chain {
    /// What may differ between this point and `older`: everything that a layer above their common one decides, as data or
    /// as zero, and the whole growth of a disk. What is not listed is equal byte by byte. Guest data is never read.
    ///
    /// `older` may be a point below this one or on another branch; layers are the same if their identities are.
    /// Ranges lie inside this disk: what an older, longer disk had beyond its end is not listed.
    ///
    /// # Errors
    /// `Invalid` if the points have no layer in common, or disagree about what lies below it. The iterator:
    /// `Corrupt` for entries that cannot be; `Io`.
    pub fn changes_since<'a>(&'a self, older: &'a Self) -> Result<Changes<'a>, Error> {
        let (mine, theirs) = self.common_layer(older)?;
        Ok(Changes {
            sides: [&self.layers[..=mine], &older.layers[..=theirs]],
            older_bytes: older.virtual_size_bytes(),
            newer_bytes: self.virtual_size_bytes(),
            span_bytes: self.span_bytes.min(older.span_bytes),
            at: 0,
            found: Vec::new().into_iter(),
            last: None,
        })
    }

    /// Depths, here and there, of the topmost layer that both have.
    fn common_layer(&self, other: &Self) -> Result<(usize, usize), Error> {
        let same = |mine: &Layer| {
            let theirs = other.layers.iter();
            theirs.clone().position(|it| it.identity == mine.identity)
        };
        let mut depths = self.layers.iter().enumerate();
        let common = depths.find_map(|(depth, layer)| Some((depth, same(layer)?)));
        let (mine, theirs) = common.ok_or_else(|| {
            invalid(format!(
                "points have no layer in common: newer={} older={}",
                self.layers[0].identity, other.layers[0].identity
            ))
        })?;
        let below = |chain: &'_ Self, depth: usize| -> Vec<String> {
            let layers = chain.layers[depth..].iter();
            layers.map(|layer| layer.identity.clone()).collect()
        };
        if below(self, mine) != below(other, theirs) {
            return Err(invalid(format!(
                "points disagree about what lies below a layer: image={}",
                self.layers[mine].identity
            )));
        }
        Ok((mine, theirs))
    }
}

impl Changes<'_> {
    /// Changed ranges of the next span.
    fn next_span(&mut self) -> Result<Vec<Range<u64>>, Error> {
        let span = self.at..self.newer_bytes.min(self.at + self.span_bytes);
        self.at = span.end;
        let mut found = Vec::new();
        for side in self.sides {
            decided_above(side, span.clone(), &mut found)?;
        }
        found.push(span.start.max(self.older_bytes)..span.end);
        found.retain(|range| range.start < range.end);
        found.sort_unstable_by_key(|range| range.start);
        Ok(found)
    }
}

/// Adds what the layers above the last one of `side` decide.
fn decided_above(
    side: &[Layer],
    span: Range<u64>,
    found: &mut Vec<Range<u64>>,
) -> Result<(), Error> {
    let Some((common, above)) = side.split_last().filter(|(_, above)| !above.is_empty()) else {
        return Ok(());
    };
    for piece in flatten(side, span)? {
        if usize::from(piece.layer) == above.len() {
            continue;
        }
        let end = piece.start + piece.len_bytes;
        // The end of a layer hides what lies below; where nothing lies there, nothing changes.
        let end = match piece.source {
            PieceSource::Beyond => end.min(common.info.virtual_size_bytes),
            _ => end,
        };
        found.push(piece.start..end);
    }
    Ok(())
}

impl Iterator for Changes<'_> {
    type Item = Result<Range<u64>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            for range in self.found.by_ref() {
                match &mut self.last {
                    Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                    _ => {
                        if let Some(whole) = self.last.replace(range) {
                            return Some(Ok(whole));
                        }
                    }
                }
            }
            if self.at == self.newer_bytes {
                return self.last.take().map(Ok);
            }
            match self.next_span() {
                Ok(found) => self.found = found.into_iter(),
                Err(error) => {
                    // Nothing more can be said: the iterator ends after the error.
                    self.at = self.newer_bytes;
                    self.last = None;
                    return Some(Err(error));
                }
            }
        }
    }
}
