//! Is every cluster of an image counted as often as it is used, and used for one thing only?
//!
//! A walk over all tables counts who refers to each cluster of a window of the file; then the counts are compared
//! with the refcounts. Files larger than a window are walked once per window, so that memory stays bounded.

mod walk;

use crate::check::walk::{Visitor, Walker};
use crate::error::Error;
use crate::format::geometry::{Geometry, HostCluster, HostOffset, to_u64, to_usize};
use crate::format::limits::{CHECK_WINDOW_CLUSTERS, MAX_FINDINGS};
use crate::format::refcount;
use crate::image::open_file;
use crate::storage::{self, Storage};

/// What `check` found in one image (no backing files looked at).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Findings after which the image must not be written, perhaps not be read.
    pub corruptions: u64,
    /// Clusters that are counted more often than they are used: space, not data, is lost.
    pub leaks: u64,
    /// The first findings, as sentences.
    pub findings: Vec<String>,
    /// Guest clusters that a cluster of the file is allocated for.
    pub allocated_clusters: u64,
    /// Guest clusters of the disk.
    pub total_clusters: u64,
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

    fn note(&mut self, text: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(text);
        }
    }
}

/// Checks one image: leaks, overlaps, wrong refcounts, offsets beyond the file.
///
/// # Errors
/// As opening it: `Unsupported` and `Corrupt` for what the header says, `Io`. What is found behind the header is in
/// the report.
pub fn check(storage: &dyn Storage) -> Result<CheckReport, Error> {
    let opened = open_file(storage)?;
    let geometry = opened.header.geometry;
    let walker = Walker::new(storage, &opened)?;
    let clusters = walker.clusters();
    let mut report = CheckReport {
        total_clusters: geometry.guest_clusters(),
        ..CheckReport::default()
    };
    let mut first = 0;
    while first < clusters {
        let len = to_usize(CHECK_WINDOW_CLUSTERS.min(clusters - first));
        let mut window = Window {
            geometry,
            first,
            counts: vec![0; len],
            // Where the entries that claim to be the only ones point to.
            copied: vec![0; len.div_ceil(64)],
            report: &mut report,
        };
        walker.walk(&mut window)?;
        window.compare(&walker)?;
        first += to_u64(len);
    }
    Ok(report)
}

/// The references to a part of the file.
struct Window<'a> {
    geometry: Geometry,
    first: u64,
    counts: Vec<u32>,
    copied: Vec<u64>,
    report: &'a mut CheckReport,
}

impl Window<'_> {
    fn index(&self, cluster: HostCluster) -> Option<usize> {
        let index = to_usize(cluster.0.checked_sub(self.first)?);
        (index < self.counts.len()).then_some(index)
    }

    fn compare(&mut self, walker: &Walker<'_>) -> Result<(), Error> {
        let order = self.geometry.refcount_order();
        let mut block: Option<(u64, Option<Vec<u8>>)> = None;
        for index in 0..self.counts.len() {
            let cluster = HostCluster(self.first + to_u64(index));
            let wanted = self.geometry.block_index(cluster);
            if block.as_ref().is_none_or(|(loaded, _)| *loaded != wanted) {
                block = Some((wanted, walker.block(wanted)?));
            }
            let counted = match &block {
                Some((_, Some(bytes))) => {
                    refcount::get(bytes, order, self.geometry.block_slot(cluster))
                }
                _ => 0,
            };
            self.compare_one(cluster, index, counted);
        }
        Ok(())
    }

    fn compare_one(&mut self, cluster: HostCluster, index: usize, counted: u64) {
        let used = u64::from(self.counts[index]);
        let offset = self.geometry.host_start(cluster).0;
        if used > 0 || counted > 0 {
            self.report.image_end_offset = offset + self.geometry.cluster_size();
        }
        if counted < used {
            self.report.corruption(format!(
                "cluster is used more often than counted: offset={offset:#x} refcount={counted} \
                 references={used}"
            ));
        } else if counted > used {
            self.report.leaks += 1;
            self.report.note(format!(
                "cluster is leaked: offset={offset:#x} refcount={counted} references={used}"
            ));
        }
        let copied = self.copied[index / 64] >> (index % 64) & 1 == 1;
        if copied && counted != 1 {
            self.report.corruption(format!(
                "cluster claims one reference and has another count: offset={offset:#x} \
                 refcount={counted}"
            ));
        }
    }
}

impl Visitor for Window<'_> {
    fn refer(&mut self, at: HostOffset, len_bytes: u64) {
        if len_bytes == 0 {
            return;
        }
        let last = self.geometry.host_cluster(HostOffset(at.0 + len_bytes - 1));
        for cluster in self.geometry.host_cluster(at).0..=last.0 {
            if let Some(index) = self.index(HostCluster(cluster)) {
                self.counts[index] = self.counts[index].saturating_add(1);
            }
        }
    }

    fn claim(&mut self, at: HostOffset) {
        if let Some(index) = self.index(self.geometry.host_cluster(at)) {
            self.copied[index / 64] |= 1 << (index % 64);
        }
    }

    fn guest_cluster(&mut self) {
        if self.first == 0 {
            self.report.allocated_clusters += 1;
        }
    }

    fn corrupt(&mut self, text: String) {
        // Each window walks all tables: what they say is reported once.
        if self.first == 0 {
            self.report.corruption(text);
        }
    }
}

fn read_table(
    storage: &dyn Storage,
    at: HostOffset,
    len_bytes: u64,
    file_len: u64,
) -> Result<Option<Vec<u8>>, Error> {
    if at.0.checked_add(len_bytes).is_none_or(|end| end > file_len) {
        return Ok(None);
    }
    let mut bytes = vec![0; to_usize(len_bytes)];
    storage::read(storage, at, &mut bytes)?;
    Ok(Some(bytes))
}
