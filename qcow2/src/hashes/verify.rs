//! Holding a sealed image against its hashes.

use std::sync::Arc;

use crate::chain::Chain;
use crate::error::{Error, corrupt, invalid};
use crate::format::geometry::{HostOffset, to_usize};
use crate::format::limits::{HASH_SUBSET_RUN_CLUSTERS, MAX_FINDINGS};
use crate::hashes::{ClusterHash, HashPage, Hashes, Layout, Place, digest, hash_data};
use crate::plan::read::{Run, Source};
use crate::storage::Storage;

/// Which data is read: all of it, or one of several parts that together are all of it. The parts are interleaved, so
/// that each reaches over the whole disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subset {
    part: u64,
    of: u64,
}

impl Subset {
    /// Everything.
    pub const ALL: Self = Self { part: 1, of: 1 };

    /// The part with the number `part`, from 1 on, `of` as many.
    ///
    /// # Errors
    /// `Invalid` for a part that does not exist.
    pub fn new(part: u64, of: u64) -> Result<Self, Error> {
        if part == 0 || part > of {
            return Err(invalid(format!(
                "there is no such part: part={part} of={of}"
            )));
        }
        Ok(Self { part, of })
    }

    fn has(self, cluster: u64) -> bool {
        cluster / HASH_SUBSET_RUN_CLUSTERS % self.of == self.part - 1
    }
}

/// What is wrong with a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamageKind {
    /// The data is not what was sealed.
    Content,
    /// The data cannot be read.
    Unreadable,
    /// It is data where the image had none, or the other way round, or its entry cannot be.
    Mapping,
    /// The hashes are damaged, and the image may be whole.
    Hashes,
}

/// Neighbouring clusters with one fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes of the disk.
    pub len_bytes: u64,
    /// What is wrong.
    pub kind: DamageKind,
}

/// What an image looks like beside its hashes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VerifyReport {
    /// Clusters whose data was read and hashed.
    pub checked_clusters: u64,
    /// Clusters of data that belong to other parts and were not read.
    pub skipped_clusters: u64,
    /// Clusters with any fault.
    pub damaged_clusters: u64,
    /// Those of them whose mapping is the fault; it is looked at for the whole disk, whatever the part.
    pub mapping_differences: u64,
    /// Where they are, in order, joined; the first hundred.
    pub damages: Vec<Damage>,
}

/// Reads the data that a sealed image holds itself, once and in the order of the file, and compares it, and the map, with
/// its hashes. Memory is bounded by a page of hashes and a megabyte of data.
///
/// # Errors
/// `Invalid` for an image whose seal names no hashes, `Corrupt` if these are not the ones that it names, and what opening
/// says of either. Damage is no error.
pub fn verify(
    image: Arc<dyn Storage>,
    hashes: Arc<dyn Storage>,
    subset: Subset,
) -> Result<VerifyReport, Error> {
    let chain = Chain::alone(image.clone())?;
    let info = chain.layers().remove(0).1;
    if info.seal.as_ref().is_none_or(|seal| seal.hashes.is_none()) {
        return Err(invalid("image is not sealed with hashes"));
    }
    let hashes = Hashes::open(hashes)?;
    if !hashes.belongs_to(&info) {
        return Err(corrupt(format!(
            "hash sidecar is not the one that the seal of the image names: identity={} root={}",
            hashes.identity(),
            hashes.root()
        )));
    }
    let verifier = Verifier {
        image,
        chain,
        layout: hashes.layout(),
        subset,
    };
    let mut report = VerifyReport::default();
    for page in 0..hashes.pages() {
        let faults = match hashes.page(page) {
            Ok(expected) => verifier.page(page, &expected, &mut report),
            Err(_) => verifier.every(page, DamageKind::Hashes),
        };
        report.add(
            &verifier.layout,
            verifier.layout.page_clusters(page).start,
            &faults,
        );
    }
    Ok(report)
}

struct Verifier {
    image: Arc<dyn Storage>,
    /// The image alone, without what lies below.
    chain: Chain,
    layout: Layout,
    subset: Subset,
}

type Faults = Vec<Option<DamageKind>>;

impl Verifier {
    fn every(&self, page: u64, fault: DamageKind) -> Faults {
        let clusters = self.layout.page_clusters(page);
        vec![Some(fault); to_usize(clusters.end - clusters.start)]
    }

    fn page(&self, page: u64, expected: &HashPage, report: &mut VerifyReport) -> Faults {
        let clusters = self.layout.page_clusters(page);
        let first = clusters.start;
        let mut faults = vec![None; to_usize(clusters.end - first)];
        let mut places = Vec::new();
        for (cluster, source) in self.sources(page) {
            let fault = &mut faults[to_usize(cluster - first)];
            let is_data = matches!(source, Some(Source::Host(_) | Source::Compressed(_)));
            match (expected.get(cluster), source) {
                (ClusterHash::Nothing, Some(Source::Below))
                | (ClusterHash::Zero, Some(Source::Zero { .. })) => {}
                (ClusterHash::Data(_), _) if is_data && !self.subset.has(cluster) => {
                    report.skipped_clusters += 1;
                }
                (ClusterHash::Data(_), Some(Source::Host(host))) => {
                    places.push(Place { host, cluster });
                }
                (ClusterHash::Data(sealed), Some(Source::Compressed(_))) => {
                    report.checked_clusters += 1;
                    let mut data = vec![0; to_usize(self.layout.cluster_len(cluster))];
                    *fault = match self
                        .chain
                        .read(cluster * self.layout.cluster_size, &mut data)
                    {
                        Err(_) => Some(DamageKind::Unreadable),
                        Ok(()) => (digest(&data) != sealed).then_some(DamageKind::Content),
                    };
                }
                _ => *fault = Some(DamageKind::Mapping),
            }
        }
        hash_data(&*self.image, &self.layout, places, |cluster, found| {
            report.checked_clusters += 1;
            faults[to_usize(cluster - first)] = match found {
                Err(_) => Some(DamageKind::Unreadable),
                Ok(found) => (expected.get(cluster) != ClusterHash::Data(found))
                    .then_some(DamageKind::Content),
            };
        });
        faults
    }

    /// The clusters of a page, each with the source of its bytes; `None` where the tables cannot tell.
    fn sources(&self, page: u64) -> Vec<(u64, Option<Source>)> {
        let clusters = self.layout.page_clusters(page);
        let size = self.layout.cluster_size;
        let runs = |first: u64, end: u64| {
            self.chain
                .own_runs(first * size..(end * size).min(self.layout.virtual_size))
        };
        if let Ok(runs) = runs(clusters.start, clusters.end) {
            return runs.iter().flat_map(|run| by_cluster(run, size)).collect();
        }
        // One by one: it is to be known which of them it is.
        let one = |cluster| match runs(cluster, cluster + 1).as_deref() {
            Ok([run]) => (cluster, Some(run.source)),
            _ => (cluster, None),
        };
        clusters.map(one).collect()
    }
}

fn by_cluster(run: &Run, size: u64) -> impl Iterator<Item = (u64, Option<Source>)> {
    let (source, first) = (run.source, run.start.0 / size);
    (first..(run.start.0 + run.len_bytes).div_ceil(size)).map(move |cluster| {
        let source = match source {
            Source::Host(at) => Source::Host(HostOffset(at.0 + (cluster - first) * size)),
            other => other,
        };
        (cluster, Some(source))
    })
}

impl VerifyReport {
    /// Counts the faults of neighbouring clusters from `first` on.
    fn add(&mut self, layout: &Layout, first: u64, faults: &[Option<DamageKind>]) {
        for (cluster, fault) in (first..).zip(faults) {
            let Some(kind) = *fault else {
                continue;
            };
            self.damaged_clusters += 1;
            self.mapping_differences += u64::from(kind == DamageKind::Mapping);
            let offset = cluster * layout.cluster_size;
            let len_bytes = layout.cluster_len(cluster);
            if let Some(last) = self.damages.last_mut()
                && last.kind == kind
                && last.offset + last.len_bytes == offset
            {
                last.len_bytes += len_bytes;
            } else if self.damages.len() < MAX_FINDINGS {
                self.damages.push(Damage {
                    offset,
                    len_bytes,
                    kind,
                });
            }
        }
    }
}
