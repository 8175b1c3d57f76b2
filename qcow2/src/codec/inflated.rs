//! The clusters that were inflated last.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::format::l2::CompressedCell;
use crate::format::limits::MAX_INFLATED_BYTES;
use crate::sync::Mutex;

/// A compressed cluster: its layer and its place there.
type Key = (u16, CompressedCell);

/// The clusters that were inflated last, so that many small reads of one cluster inflate it once. Bounded by
/// [`MAX_INFLATED_BYTES`]; the lock is never held while a cluster is inflated.
#[derive(Debug, Default)]
pub(crate) struct Inflated(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    clusters: HashMap<Key, (Arc<Vec<u8>>, u64)>,
    /// By the time of the last use.
    order: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
}

impl Inflated {
    /// A cluster, if it is one of the last.
    pub(super) fn get(&self, key: &Key) -> Option<Arc<Vec<u8>>> {
        self.0.lock().get(key)
    }

    /// Remembers a cluster, and forgets the oldest where there are too many.
    pub(super) fn insert(&self, key: Key, cluster: Arc<Vec<u8>>) {
        self.0.lock().insert(key, cluster);
    }

    /// Forgets a cluster of layer 0 that may be written over.
    pub(crate) fn forget(&self, cell: CompressedCell) {
        self.0.lock().remove(&(0, cell));
    }
}

impl Recent {
    fn get(&mut self, key: &Key) -> Option<Arc<Vec<u8>>> {
        let (cluster, used) = self.clusters.get_mut(key)?;
        self.clock += 1;
        self.order.remove(used);
        self.order.insert(self.clock, *key);
        *used = self.clock;
        Some(cluster.clone())
    }

    fn insert(&mut self, key: Key, cluster: Arc<Vec<u8>>) {
        self.remove(&key);
        self.clock += 1;
        self.bytes += cluster.len();
        self.order.insert(self.clock, key);
        self.clusters.insert(key, (cluster, self.clock));
        while self.bytes > MAX_INFLATED_BYTES {
            let Some((_, oldest)) = self.order.pop_first() else {
                break;
            };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some((cluster, used)) = self.clusters.remove(key) {
            self.order.remove(&used);
            self.bytes -= cluster.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::geometry::HostOffset;

    fn key(number: u64) -> Key {
        let cell = CompressedCell {
            offset: HostOffset(number * 512),
            len_bytes: 512,
        };
        (0, cell)
    }

    #[test]
    fn the_oldest_go_and_the_bound_holds() {
        const CLUSTER: usize = 1 << 20;
        let room = MAX_INFLATED_BYTES / CLUSTER;
        let inflated = Inflated::default();
        for number in 0..room as u64 {
            inflated.insert(key(number), Arc::new(vec![0; CLUSTER]));
        }
        // Used again, so that the second is the oldest now.
        assert!(inflated.get(&key(0)).is_some());
        inflated.insert(key(100), Arc::new(vec![0; CLUSTER]));
        inflated.insert(key(100), Arc::new(vec![0; CLUSTER]));
        let held = |number| inflated.get(&key(number)).is_some();
        assert!(held(0) && held(100) && !held(1) && held(2));
        inflated.forget(key(0).1);
        assert!(!held(0));
        let recent = inflated.0.lock();
        assert_eq!(recent.bytes, (room - 1) * CLUSTER);
        assert_eq!(recent.clusters.len(), recent.order.len());
    }
}
