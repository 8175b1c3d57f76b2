//! Connections in their handshake: how many there may be, and who goes when one more comes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The room of the handshakes. A newcomer always finds a place: where there is none, the oldest
/// makes one. So connections that say nothing keep nobody out, and who answers in time is served.
#[derive(Debug)]
pub(crate) struct Room {
    max: usize,
    max_per_address: usize,
    waiting: Mutex<Waiting>,
    /// Told whenever somebody leaves.
    departed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// By the order in which they came.
    all: BTreeMap<u64, Waiter>,
    /// Those of one address, for peers that are limited by it.
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Waiter {
    address: Option<IpAddr>,
    evicted: CancellationToken,
}

impl Room {
    pub(crate) fn new(max: u32, max_per_address: u32) -> Self {
        Self {
            max: usize::try_from(max).unwrap_or(usize::MAX).max(1),
            max_per_address: usize::try_from(max_per_address)
                .unwrap_or(usize::MAX)
                .max(1),
            waiting: Mutex::default(),
            departed: Notify::new(),
        }
    }

    /// Gives a newcomer its place. Without an address only the bound of all holds.
    pub(crate) fn arrive(self: &Arc<Self>, address: Option<IpAddr>) -> Arrival {
        let evicted = CancellationToken::new();
        let mut waiting = self.waiting.lock();
        let crowded = address
            .and_then(|address| waiting.by_address.get(&address))
            .filter(|those| those.len() >= self.max_per_address)
            .and_then(|those| those.first().copied());
        match crowded {
            Some(oldest_of_them) => waiting.evict(oldest_of_them),
            None if waiting.all.len() >= self.max => waiting.evict_oldest(),
            None => {}
        }
        let number = waiting.next;
        waiting.next += 1;
        if let Some(address) = address {
            waiting
                .by_address
                .entry(address)
                .or_default()
                .insert(number);
        }
        let waiter = Waiter {
            address,
            evicted: evicted.clone(),
        };
        waiting.all.insert(number, waiter);
        drop(waiting);
        Arrival {
            room: Arc::clone(self),
            number,
            evicted,
        }
    }

    /// Evicts up to `count` of the oldest; the future resolves when the next connection of any age
    /// has left.
    pub(crate) fn evict(&self, count: usize) -> impl Future<Output = ()> + '_ {
        // Made first: it hears of those who leave before it is waited for.
        let departed = self.departed.notified();
        let mut waiting = self.waiting.lock();
        for _ in 0..count.min(waiting.all.len()) {
            waiting.evict_oldest();
        }
        departed
    }
}

impl Waiting {
    fn evict_oldest(&mut self) {
        if let Some(&oldest) = self.all.keys().next() {
            self.evict(oldest);
        }
    }

    fn evict(&mut self, number: u64) {
        if let Some(waiter) = self.remove(number) {
            waiter.evicted.cancel();
        }
    }

    fn remove(&mut self, number: u64) -> Option<Waiter> {
        let waiter = self.all.remove(&number)?;
        if let Some(address) = waiter.address
            && let Some(those) = self.by_address.get_mut(&address)
        {
            those.remove(&number);
            if those.is_empty() {
                self.by_address.remove(&address);
            }
        }
        Some(waiter)
    }
}

/// A place among the handshakes; given back when dropped.
#[derive(Debug)]
pub(crate) struct Arrival {
    room: Arc<Room>,
    number: u64,
    evicted: CancellationToken,
}

impl Arrival {
    /// Resolves when somebody else got the place.
    pub(crate) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let gone = self.room.waiting.lock().remove(self.number);
        drop(gone);
        self.room.departed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)));
    const THERE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)));

    fn check(max: u32, per_address: u32, from: &[Option<IpAddr>], expected: &[usize]) {
        let room = Arc::new(Room::new(max, per_address));
        let arrivals: Vec<_> = from.iter().map(|&address| room.arrive(address)).collect();
        let evicted: Vec<_> = (0..arrivals.len())
            .filter(|&place| arrivals[place].evicted.is_cancelled())
            .collect();
        assert_eq!(evicted, expected, "max={max} per_address={per_address}");
        drop(arrivals);
        let waiting = room.waiting.lock();
        assert!(waiting.all.is_empty() && waiting.by_address.is_empty());
    }

    #[test]
    fn the_oldest_makes_place() {
        check(3, 9, &[None; 3], &[]);
        check(3, 9, &[None; 5], &[0, 1]);
        check(1, 9, &[HERE, THERE, None], &[0, 1]);
        // A room without a place would serve nobody.
        check(0, 0, &[None; 2], &[0]);
    }

    #[test]
    fn an_address_crowds_out_itself_only() {
        check(9, 2, &[THERE, HERE, HERE, HERE, HERE], &[1, 2]);
        check(4, 2, &[HERE, THERE, None, HERE, HERE, None], &[0, 1]);
        check(9, 2, &[None; 6], &[]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_departure_is_told() {
        let room = Arc::new(Room::new(4, 4));
        let (first, second) = (room.arrive(None), room.arrive(None));
        let departed = room.evict(1);
        assert!(first.evicted.is_cancelled() && !second.evicted.is_cancelled());
        drop(first);
        departed.await;
        assert_eq!(room.waiting.lock().all.len(), 1);
    }
}
