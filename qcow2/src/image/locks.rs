//! Locks on ranges of the disk: what makes requests on one cluster atomic against each other.

use std::ops::Range;

use crate::sync::{self, Condvar, Mutex};

#[derive(Debug)]
struct Holder {
    id: u64,
    clusters: Range<u64>,
    exclusive: bool,
}

impl Holder {
    fn excludes(&self, other: &Self) -> bool {
        (self.exclusive || other.exclusive)
            && self.clusters.start < other.clusters.end
            && other.clusters.start < self.clusters.end
    }
}

#[derive(Debug, Default)]
struct Queue {
    next_id: u64,
    /// Holders and those who wait, by arrival: one waits only for those who came before.
    holders: Vec<Holder>,
}

/// Shared and exclusive locks on ranges of guest clusters, granted in the order of arrival. A thread holds
/// one range at a time, so that there is nothing to deadlock on.
#[derive(Debug, Default)]
pub(crate) struct RangeLocks {
    queue: Mutex<Queue>,
    freed: Condvar,
}

/// A range that is held until this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    id: u64,
}

impl RangeLocks {
    /// Waits for a range that others may read meanwhile.
    pub(crate) fn shared(&self, clusters: Range<u64>) -> RangeGuard<'_> {
        self.lock(clusters, false)
    }

    /// Waits for a range of one's own.
    pub(crate) fn exclusive(&self, clusters: Range<u64>) -> RangeGuard<'_> {
        self.lock(clusters, true)
    }

    fn lock(&self, clusters: Range<u64>, exclusive: bool) -> RangeGuard<'_> {
        let mut queue = self.queue.lock();
        let id = queue.next_id;
        queue.next_id += 1;
        queue.holders.push(Holder {
            id,
            clusters,
            exclusive,
        });
        while !queue.is_granted(id) {
            queue = sync::wait(&self.freed, queue);
        }
        RangeGuard { locks: self, id }
    }
}

impl Queue {
    fn is_granted(&self, id: u64) -> bool {
        let mut earlier = self.holders.iter().take_while(|holder| holder.id < id);
        let mine = self.holders.iter().find(|holder| holder.id == id);
        mine.is_some_and(|mine| !earlier.any(|other| other.excludes(mine)))
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        // `retain` keeps the order of arrival, on which `is_granted` stands.
        self.locks
            .queue
            .lock()
            .holders
            .retain(|holder| holder.id != self.id);
        self.locks.freed.notify_all();
    }
}
