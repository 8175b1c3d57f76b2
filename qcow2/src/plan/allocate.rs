//! Where new clusters go: into clusters freed earlier, else at the end of the file.

use std::collections::BTreeMap;

use crate::format::geometry::HostCluster;
use crate::format::limits::MAX_FREE_RUNS;

/// Neighbouring host clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterRun {
    /// The first.
    pub start: HostCluster,
    /// How many; never 0.
    pub count: u64,
}

impl ClusterRun {
    /// The clusters, in order.
    pub fn clusters(self) -> impl Iterator<Item = HostCluster> {
        (self.start.0..self.start.0 + self.count).map(HostCluster)
    }
}

/// The clusters that may be handed out: everything from the end on, and what was freed durably.
#[derive(Debug)]
pub struct FreeSpace {
    end: HostCluster,
    free: BTreeMap<u64, u64>,
}

impl FreeSpace {
    /// Free space that begins at `end`.
    pub fn new(end: HostCluster) -> Self {
        Self {
            end,
            free: BTreeMap::new(),
        }
    }

    /// The first cluster that was never handed out.
    pub fn end(&self) -> HostCluster {
        self.end
    }

    /// `count` clusters in one run, at the end of the file.
    pub fn take_run(&mut self, count: u64) -> ClusterRun {
        let start = self.end;
        self.end.0 += count;
        ClusterRun { start, count }
    }

    /// Takes one certain cluster, if it is free.
    pub fn take_exactly(&mut self, cluster: HostCluster) -> bool {
        if cluster == self.end {
            self.take_run(1);
            return true;
        }
        let before = self.free.range(..=cluster.0).next_back();
        let Some((&start, &len)) = before.filter(|(start, len)| cluster.0 - **start < **len) else {
            return false;
        };
        self.free.remove(&start);
        let skipped = cluster.0 - start;
        if skipped > 0 {
            self.free.insert(start, skipped);
        }
        if skipped + 1 < len {
            self.free.insert(cluster.0 + 1, len - skipped - 1);
        }
        true
    }

    /// A run of up to `count` clusters, freed ones first.
    pub fn take_some(&mut self, count: u64) -> ClusterRun {
        let Some((start, len)) = self.free.pop_first() else {
            return self.take_run(count);
        };
        let taken = len.min(count);
        if taken < len {
            self.free.insert(start + taken, len - taken);
        }
        ClusterRun {
            start: HostCluster(start),
            count: taken,
        }
    }

    /// Takes a cluster back. Nothing on disk may refer to it any more.
    pub fn give(&mut self, cluster: HostCluster) {
        let mut start = cluster.0;
        let mut len = 1;
        if let Some((&before, &before_len)) = self.free.range(..start).next_back()
            && before + before_len == start
        {
            self.free.remove(&before);
            start = before;
            len += before_len;
        }
        if let Some(after_len) = self.free.remove(&(start + len)) {
            len += after_len;
        }
        // Over the limit the cluster is free on disk all the same; it is only not reused before the next open.
        if self.free.len() < MAX_FREE_RUNS {
            self.free.insert(start, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_clusters_join_and_come_first() {
        let mut space = FreeSpace::new(HostCluster(10));
        for cluster in [5, 3, 4, 8] {
            space.give(HostCluster(cluster));
        }
        let runs = [space.take_some(6), space.take_some(3), space.take_some(2)];
        let found: Vec<_> = runs.iter().map(|run| (run.start.0, run.count)).collect();
        assert_eq!(found, [(3, 3), (8, 1), (10, 2)]);
        assert_eq!(space.end(), HostCluster(12));
    }

    #[test]
    fn a_certain_cluster_is_taken_if_it_is_free() {
        let mut space = FreeSpace::new(HostCluster(10));
        for cluster in 3..8 {
            space.give(HostCluster(cluster));
        }
        for (cluster, expected) in [(5, true), (5, false), (2, false), (10, true), (12, false)] {
            assert_eq!(space.take_exactly(HostCluster(cluster)), expected);
        }
        let found = [2, 2, 1].map(|count| space.take_some(count).start.0);
        assert_eq!(found, [3, 6, 11]);
    }

    #[test]
    fn nothing_is_handed_out_twice() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut space = FreeSpace::new(HostCluster(1));
        let mut held = std::collections::BTreeSet::new();
        for _ in 0..2000 {
            let wanted = HostCluster(rng.u64(1..=space.end().0));
            if rng.u8(0..4) == 0 && space.take_exactly(wanted) {
                assert!(held.insert(wanted), "handed out twice");
            } else if rng.bool() || held.is_empty() {
                for cluster in space.take_some(rng.u64(1..9)).clusters() {
                    assert!(held.insert(cluster), "handed out twice");
                }
            } else {
                let index = rng.usize(0..held.len());
                let cluster = *held.iter().nth(index).unwrap();
                held.remove(&cluster);
                space.give(cluster);
            }
        }
    }
}
