//! How often each cluster of a part of the file is used.

use std::ops::Range;

use crate::check::walk::{Kind, Visitor, Walker};
use crate::check::{Facts, Survey};
use crate::error::Error;
use crate::format::geometry::{Geometry, HostCluster, to_u64, to_usize};
use crate::format::refcount;

/// The uses of a part of the file.
#[derive(Debug)]
pub(super) struct Window {
    geometry: Geometry,
    /// What a refcount can say at most; uses are counted no further.
    max: u32,
    len: usize,
    end: u64,
    first: u64,
    next: u64,
    counts: Vec<u32>,
    /// For each cluster bits of [`kind_bit`], [`OVERLAP`] and [`TOLD`].
    kinds: Vec<u8>,
}

/// Two uses that cannot share a cluster.
const OVERLAP: u8 = 1 << 6;
/// This is in the report already.
const TOLD: u8 = 1 << 7;

fn kind_bit(kind: Kind) -> u8 {
    match kind {
        Kind::Data => 1 << 0,
        Kind::L2 => 1 << 1,
        Kind::Single => 1 << 2,
        Kind::RefcountTable => 1 << 3,
        Kind::RefcountBlock => 1 << 4,
    }
}

impl Window {
    /// A window of `len_clusters` in front of the clusters up to `end`.
    pub(super) fn new(geometry: &Geometry, len_clusters: u64, end: u64) -> Self {
        let max = refcount::max_refcount(geometry.refcount_order());
        Self {
            geometry: *geometry,
            max: u32::try_from(max).unwrap_or(u32::MAX),
            len: to_usize(len_clusters.min(end)),
            end,
            first: 0,
            next: 0,
            counts: Vec::new(),
            kinds: Vec::new(),
        }
    }

    /// Moves on to the next clusters, none of which has been counted; false at the end.
    pub(super) fn advance(&mut self) -> bool {
        self.first = self.next;
        self.next = (self.first + to_u64(self.len)).min(self.end);
        let len = to_usize(self.next - self.first);
        self.counts.clear();
        self.counts.resize(len, 0);
        self.kinds.clear();
        self.kinds.resize(len, 0);
        len > 0
    }

    /// Counts all uses, telling of what cannot be.
    pub(super) fn count(&mut self, walker: &Walker<'_>, survey: &mut Survey) -> Result<(), Error> {
        walker.walk(&mut Counter {
            window: self,
            survey,
            without_refcounts: false,
        })
    }

    /// Counts all uses but those by the refcount table and its blocks, telling nobody.
    pub(super) fn count_without_refcounts(&mut self, walker: &Walker<'_>) -> Result<(), Error> {
        walker.walk(&mut Counter {
            window: self,
            survey: &mut Survey::default(),
            without_refcounts: true,
        })
    }

    /// The clusters of the window, in parts that one refcount block describes each.
    pub(super) fn parts(&self) -> impl Iterator<Item = (u64, Range<u64>)> + use<> {
        let entries = self.geometry.block_entries();
        let (first, end) = (self.first, self.next);
        (first / entries..end.div_ceil(entries)).map(move |block| {
            (
                block,
                first.max(block * entries)..end.min((block + 1) * entries),
            )
        })
    }

    /// How often a cluster of the window is used.
    pub(super) fn used(&self, cluster: u64) -> u64 {
        u64::from(self.counts[to_usize(cluster - self.first)])
    }

    /// Compares uses and refcounts.
    pub(super) fn compare(&self, walker: &Walker<'_>, survey: &mut Survey) -> Result<(), Error> {
        let order = self.geometry.refcount_order();
        for (block, clusters) in self.parts() {
            let bytes = walker.block(block)?;
            for cluster in clusters {
                let slot = self.geometry.block_slot(HostCluster(cluster));
                let counted = bytes
                    .as_ref()
                    .map_or(0, |bytes| refcount::get(bytes, order, slot));
                let used = self.used(cluster);
                if used > 0 && bytes.is_none() {
                    survey.facts.missing_block = true;
                }
                let in_file = cluster < walker.clusters();
                if used > 0 || (counted > 0 && in_file) {
                    self.compare_one(HostCluster(cluster), used, counted, survey);
                }
            }
        }
        Ok(())
    }

    fn compare_one(&self, cluster: HostCluster, used: u64, counted: u64, survey: &mut Survey) {
        let offset = self.geometry.host_start(cluster).0;
        let kinds = self.kinds[to_usize(cluster.0 - self.first)];
        let overlaps = kinds & OVERLAP != 0;
        let report = &mut survey.report;
        report.image_end_offset = offset + self.geometry.cluster_size();
        if counted < used {
            report.corruption(format!(
                "cluster is used more often than counted: offset={offset:#x} refcount={counted} \
                 references={used}"
            ));
        } else if counted > used {
            report.leak(format!(
                "cluster is leaked: offset={offset:#x} refcount={counted} references={used}"
            ));
        } else if overlaps && kinds & TOLD == 0 {
            report.overlaps += 1;
            report.corruption(format!(
                "cluster is used for several things: offset={offset:#x} references={used}"
            ));
        }
        if overlaps {
            let refcounts = kind_bit(Kind::RefcountTable) | kind_bit(Kind::RefcountBlock);
            survey.facts.unsound |= kinds & refcounts != 0;
            survey.facts.tangled |= kinds & (kind_bit(Kind::L2) | kind_bit(Kind::Single)) != 0;
        }
    }
}

/// Puts what a walk tells into a window.
struct Counter<'a> {
    window: &'a mut Window,
    survey: &'a mut Survey,
    without_refcounts: bool,
}

impl Counter<'_> {
    fn refer_one(&mut self, kind: Kind, cluster: u64) {
        let index = to_usize(cluster - self.window.first);
        let offset = self.window.geometry.host_start(HostCluster(cluster)).0;
        let bit = kind_bit(kind);
        let kinds = &mut self.window.kinds[index];
        let shared = matches!(kind, Kind::Data | Kind::L2) && *kinds & !(bit | TOLD) == 0;
        if *kinds != 0 && !shared {
            *kinds |= OVERLAP;
        }
        *kinds |= bit;
        let count = &mut self.window.counts[index];
        if *count == self.window.max {
            *kinds |= TOLD;
            self.survey.report.corruption(format!(
                "cluster is used more often than can be counted: offset={offset:#x} \
                 references={}",
                u64::from(*count) + 1
            ));
        } else {
            *count += 1;
        }
        if kind == Kind::RefcountBlock && *count != 1 {
            *kinds |= TOLD;
            self.survey.facts.unsound = true;
            self.survey.report.corruption(format!(
                "refcount block lies where something else lies: offset={offset:#x} \
                 references={count}"
            ));
        }
    }

    /// Each window walks all tables: what they say is reported once.
    fn is_first(&self) -> bool {
        self.window.first == 0
    }
}

impl Visitor for Counter<'_> {
    fn refer(&mut self, kind: Kind, first: HostCluster, last: HostCluster) {
        if self.without_refcounts && matches!(kind, Kind::RefcountTable | Kind::RefcountBlock) {
            return;
        }
        let from = first.0.max(self.window.first);
        let end = (last.0 + 1).min(self.window.next);
        for cluster in from..end {
            self.refer_one(kind, cluster);
        }
    }

    fn guest_cluster(&mut self, fragmented: bool, compressed: bool) {
        if self.is_first() {
            let report = &mut self.survey.report;
            report.allocated_clusters += 1;
            report.fragmented_clusters += u64::from(fragmented);
            report.compressed_clusters += u64::from(compressed);
        }
    }

    fn corrupt(&mut self, text: String) {
        if self.is_first() {
            self.survey.report.corruption(text);
        }
    }

    fn facts(&mut self) -> &mut Facts {
        &mut self.survey.facts
    }
}
