//! What a range of L2 entries means for a reader: as few runs as possible.

use std::ops::Range;

use crate::error::{Error, corrupt};
use crate::format::geometry::{Geometry, GuestOffset, HostOffset};
use crate::format::l2::{CompressedCell, L2Entry};
use crate::format::subcluster::{self, Subcluster, Subclusters};

/// Where the bytes of a run come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The file, from this position on.
    Host(HostOffset),
    /// Zeroes.
    Zero {
        /// Where the file keeps space for later writes.
        kept: Option<HostOffset>,
    },
    /// What lies below.
    Below,
    /// A part of a compressed cluster.
    Compressed(CompressedCell),
}

/// A range with one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub start: GuestOffset,
    /// Never 0.
    pub len_bytes: u64,
    /// Where the bytes come from.
    pub source: Source,
}

impl Run {
    /// Whether `next` continues this run, in the guest and in the file.
    fn takes(&self, next: &Self) -> bool {
        if self.start.0 + self.len_bytes != next.start.0 {
            return false;
        }
        match (self.source, next.source) {
            (Source::Host(mine), Source::Host(theirs))
            | (Source::Zero { kept: Some(mine) }, Source::Zero { kept: Some(theirs) }) => {
                mine.0 + self.len_bytes == theirs.0
            }
            (Source::Compressed(_), _) => false,
            (mine, theirs) => mine == theirs,
        }
    }
}

/// Appends a run, joined to the last one where it continues it.
pub fn push(runs: &mut Vec<Run>, run: Run) {
    if run.len_bytes == 0 {
        return;
    }
    match runs.last_mut() {
        Some(last) if last.takes(&run) => last.len_bytes += run.len_bytes,
        _ => runs.push(run),
    }
}

/// The runs of `start..end`; `entries` describe its clusters from the one that holds `start`.
///
/// # Errors
/// `Corrupt` for an entry that cannot be.
pub fn runs(
    geometry: &Geometry,
    version: u32,
    start: GuestOffset,
    end: GuestOffset,
    entries: &[u64],
) -> Result<Vec<Run>, Error> {
    let mut runs = Vec::new();
    let mut at = start;
    for words in entries.chunks_exact(geometry.l2_entry_words()) {
        if at >= end {
            break;
        }
        let raw = match words {
            [raw, bitmap] => {
                let parsed = subcluster::parse([*raw, *bitmap], geometry);
                let (entry, states) = parsed.map_err(|error| at_cluster(&error, geometry, at))?;
                if !matches!(entry, L2Entry::Compressed(_)) {
                    at = push_subclusters(&mut runs, geometry, at..end, entry, states);
                    continue;
                }
                raw
            }
            _ => &words[0],
        };
        let into = geometry.in_cluster(at.0);
        let len_bytes = (geometry.cluster_size() - into).min(end.0 - at.0);
        let parsed = L2Entry::parse(*raw, version, geometry);
        let source = match parsed.map_err(|error| at_cluster(&error, geometry, at))? {
            L2Entry::Unallocated => Source::Below,
            L2Entry::Zero { kept } => Source::Zero {
                kept: kept.map(|cell| HostOffset(cell.offset.0 + into)),
            },
            L2Entry::Data(cell) => Source::Host(HostOffset(cell.offset.0 + into)),
            L2Entry::Compressed(cell) => Source::Compressed(cell),
        };
        push(
            &mut runs,
            Run {
                start: at,
                len_bytes,
                source,
            },
        );
        at.0 += len_bytes;
    }
    Ok(runs)
}

/// An entry that cannot be, with the cluster of the disk that it is about.
fn at_cluster(error: &Error, geometry: &Geometry, at: GuestOffset) -> Error {
    let cluster = geometry.guest_start(geometry.guest_cluster(at));
    corrupt(format!("{error} guest_offset={}", cluster.0))
}

/// The runs of one cluster with subclusters, from the first byte of `range` on; returns where they end.
fn push_subclusters(
    runs: &mut Vec<Run>,
    geometry: &Geometry,
    range: Range<GuestOffset>,
    entry: L2Entry,
    states: Subclusters,
) -> GuestOffset {
    let size = geometry.subcluster_size();
    let mut at = range.start;
    let first = geometry.in_cluster(at.0) / size;
    for index in first..geometry.cluster_size() / size {
        if at >= range.end {
            break;
        }
        let into = geometry.in_cluster(at.0);
        let len_bytes = (size - into % size).min(range.end.0 - at.0);
        let index = u32::try_from(index).expect("a cluster has 32 subclusters");
        let source = match (states.state(index), entry) {
            (Subcluster::Zero, _) => Source::Zero { kept: None },
            (Subcluster::Data, L2Entry::Data(cell)) => {
                Source::Host(HostOffset(cell.offset.0 + into))
            }
            (Subcluster::Data | Subcluster::Below, _) => Source::Below,
        };
        let run = Run {
            start: at,
            len_bytes,
            source,
        };
        push(runs, run);
        at.0 += len_bytes;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subclusters_are_runs_of_their_own() {
        let geometry = Geometry::new(14, 4, 1 << 20).unwrap();
        let geometry = geometry.with_subclusters().unwrap();
        // Subclusters of 512 bytes: data, data, zero, below …; then a cluster that is zero but for its first.
        let entries = [0x4000 | 1 << 63, 0b11 | 0b100 << 32, 0, u64::MAX << 33];
        let runs = runs(
            &geometry,
            3,
            GuestOffset(100),
            GuestOffset(16384 + 5000),
            &entries,
        )
        .unwrap();
        let zero = Source::Zero { kept: None };
        let expected = [
            (100, 924, Source::Host(HostOffset(0x4000 + 100))),
            (1024, 512, zero),
            (1536, 16384 + 512 - 1536, Source::Below),
            (16384 + 512, 4488, zero),
        ];
        let found: Vec<_> = runs
            .iter()
            .map(|run| (run.start.0, run.len_bytes, run.source))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn neighbours_in_guest_and_file_become_one_run() {
        let geometry = Geometry::new(9, 4, 1 << 20).unwrap();
        let entries = [0x400 | 1 << 63, 0x600 | 1 << 63, 0xa00 | 1 << 63, 1, 1, 0];
        let runs = runs(&geometry, 3, GuestOffset(100), GuestOffset(3000), &entries).unwrap();
        let zero = Source::Zero { kept: None };
        let expected = [
            (100, 924, Source::Host(HostOffset(0x400 + 100))),
            (1024, 512, Source::Host(HostOffset(0xa00))),
            (1536, 1024, zero),
            (2560, 440, Source::Below),
        ];
        let found: Vec<_> = runs
            .iter()
            .map(|run| (run.start.0, run.len_bytes, run.source))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn kept_space_is_told_and_splits_zeroes() {
        let geometry = Geometry::new(9, 4, 1 << 20).unwrap();
        let entries = [
            1,
            0x400 | 1 << 63 | 1,
            0x600 | 1 << 63 | 1,
            0xa00 | 1 << 63 | 1,
        ];
        let runs = runs(&geometry, 3, GuestOffset(0), GuestOffset(2048), &entries).unwrap();
        let kept = |at| Source::Zero {
            kept: Some(HostOffset(at)),
        };
        let expected = [
            (0, 512, Source::Zero { kept: None }),
            (512, 1024, kept(0x400)),
            (1536, 512, kept(0xa00)),
        ];
        let found: Vec<_> = runs
            .iter()
            .map(|run| (run.start.0, run.len_bytes, run.source))
            .collect();
        assert_eq!(found, expected);
    }
}
