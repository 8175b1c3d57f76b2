//! Is every cluster of an image counted as often as it is used, and used for one thing only? And if not: what of it
//! can be repaired without touching a byte of the disk.
//!
//! A walk over all tables counts who refers to each cluster of a window of the file; then the counts are compared
//! with the refcounts. Files larger than a window are walked once per window, so that memory stays bounded. Verdicts
//! and figures are those of `qemu-img check`.

mod count;
mod flags;
mod rebuild;
mod repair;
mod walk;

#[cfg(test)]
mod tests;

use crate::check::count::Window;
use crate::check::walk::Walker;
use crate::error::Error;
use crate::format::limits::{CHECK_WINDOW_CLUSTERS, MAX_FINDINGS};
use crate::image::open_file;
use crate::storage::Storage;

pub use repair::{Repair, RepairReport, repair};

/// What `check` found in one image (no backing files looked at).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Findings after which the image must not be written, perhaps not be read.
    pub corruptions: u64,
    /// Those of them that are clusters in use for several things and counted for each: `qemu-img check` passes over them.
    pub overlaps: u64,
    /// Clusters that are counted more often than they are used: space, not data, is lost.
    pub leaks: u64,
    /// The first findings, as sentences.
    pub findings: Vec<String>,
    /// Guest clusters of the disk.
    pub total_clusters: u64,
    /// Guest clusters that a cluster of the file is allocated for, or a part of one.
    pub allocated_clusters: u64,
    /// Allocated clusters that do not lie behind their neighbour's in the file; all compressed ones count.
    pub fragmented_clusters: u64,
    /// Guest clusters that are compressed.
    pub compressed_clusters: u64,
    /// Where the last cluster in use ends.
    pub image_end_offset: u64,
}

impl CheckReport {
    /// Neither corruptions nor leaks.
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0
    }

    fn corruption(&mut self, text: String) {
        self.corruptions += 1;
        self.note(text);
    }

    fn leak(&mut self, text: String) {
        self.leaks += 1;
        self.note(text);
    }

    fn note(&mut self, text: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(text);
        }
    }
}

/// Checks one image: leaks, overlaps, wrong refcounts, offsets beyond the file.
///
/// # Errors
/// As opening it: `Unsupported` and `Corrupt` for what the header says, `Io`; `Unsupported` also for a file of more
/// clusters than can be checked. What is found behind the header is in the report.
pub fn check(storage: &dyn Storage) -> Result<CheckReport, Error> {
    let opened = open_file(storage)?;
    let walker = Walker::new(storage, &opened)?;
    Ok(survey(&walker, CHECK_WINDOW_CLUSTERS)?.report)
}

/// What a repair has to know of an image beyond the figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Facts {
    /// The refcount table and its blocks are not all where they can be written: they are in the way of something.
    unsound: bool,
    /// A cluster is used that no refcount block describes.
    missing_block: bool,
    /// Something could not be read or understood: there may be references that nobody has seen.
    incomplete: bool,
    /// Tables lie where something else lies: they cannot be written.
    tangled: bool,
    /// Something that begins in the file ends in the cluster behind it.
    spills: bool,
    /// The lowest offset that something refers to and that lies beyond the file.
    first_beyond: Option<u64>,
}

/// A report and what is behind it.
#[derive(Debug, Default)]
struct Survey {
    report: CheckReport,
    facts: Facts,
    /// Entries that are wrong about their being the only ones: a part of the corruptions.
    wrong_flags: u64,
}

fn survey(walker: &Walker<'_>, window_clusters: u64) -> Result<Survey, Error> {
    let mut survey = Survey::default();
    survey.report.total_clusters = walker.geometry.guest_clusters();
    survey.report.image_end_offset = walker.geometry.cluster_size();
    let mut window = Window::new(&walker.geometry, window_clusters, walker.clusters() + 1);
    while window.advance() {
        window.count(walker, &mut survey)?;
        window.compare(walker, &mut survey)?;
    }
    survey.wrong_flags = flags::check(walker, &mut survey.report)?;
    Ok(survey)
}
