//! A file in memory that remembers the order of things: it can be cut at any moment, as by a loss of power,
//! and it can fail on demand.
//!
//! A cut keeps everything up to the last sync that had returned. Of the writes after it, each sector may be
//! there or not, whatever their order was, and the file may be as long as it was at any moment since, whatever
//! arrived of its content: the seed decides.

use crate::format::geometry::{to_u64, to_usize};
use crate::storage::{MemoryStorage, Storage, memory};
use crate::sync::Mutex;

/// Bytes that a disk writes at once or not at all.
const SECTOR_BYTES: u64 = 512;

#[derive(Debug, Clone)]
enum Event {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
    Sync,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    log: Vec<Event>,
    /// Writes until the next one fails; `None` never fails.
    writes_left: Option<u64>,
    failure: Option<std::io::ErrorKind>,
    reads: u64,
    syncs: u64,
    /// The file at an event of the log, kept because the next cut is most often near the last one.
    near: (usize, Vec<u8>),
}

/// A file in memory that can be cut at any moment and can fail on demand.
#[derive(Debug, Default)]
pub struct FaultyStorage {
    state: Mutex<State>,
}

impl FaultyStorage {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file with content that is durable.
    pub fn with_bytes(bytes: Vec<u8>) -> Self {
        let write = Event::Write {
            offset: 0,
            data: bytes.clone(),
        };
        let state = State {
            bytes,
            log: vec![write, Event::Sync],
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// Reads so far.
    pub fn reads(&self) -> u64 {
        self.state.lock().reads
    }

    /// Syncs so far.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// Events so far: the position to cut at.
    pub fn position(&self) -> usize {
        self.state.lock().log.len()
    }

    /// What a disk might hold if the power failed after the first `position` events.
    pub fn cut(&self, position: usize, seed: u64) -> MemoryStorage {
        let mut state = self.state.lock();
        let State { log, near, .. } = &mut *state;
        let events = &log[..position.min(log.len())];
        let synced = events
            .iter()
            .rposition(|event| matches!(event, Event::Sync))
            .unwrap_or(0);
        if near.0 > synced {
            *near = (0, Vec::new());
        }
        for event in &events[near.0..synced] {
            apply(&mut near.1, event);
        }
        near.0 = synced;
        MemoryStorage::with_bytes(lose(near.1.clone(), &events[synced..], &mut Rng(seed)))
    }

    /// Lets `writes` more writes through, then fails each one (and each sync) with `kind`.
    pub fn fail_after(&self, writes: u64, kind: std::io::ErrorKind) {
        let mut state = self.state.lock();
        state.writes_left = Some(writes);
        state.failure = Some(kind);
    }

    /// Stops failing.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.writes_left = None;
        state.failure = None;
    }
}

/// What may be left of a durable file after further events.
fn lose(mut bytes: Vec<u8>, events: &[Event], rng: &mut Rng) -> Vec<u8> {
    let Sectors {
        writes: mut rest,
        lens,
    } = whole_sectors(bytes.clone(), events);
    // Sectors of several writes to one place may arrive in any order.
    for index in (1..rest.len()).rev() {
        rest.swap(index, to_usize(rng.next() % to_u64(index + 1)));
    }
    let loss = rng.next() % 5;
    for event in &rest {
        if rng.next() % 4 >= loss {
            apply(&mut bytes, event);
        }
    }
    // The length is a fact of its own: it may be durable without the content, or the other way round.
    if rng.next().is_multiple_of(2) {
        bytes.resize(lens[to_usize(rng.next() % to_u64(lens.len()))], 0);
    }
    bytes
}

/// Events as a disk sees them.
struct Sectors {
    writes: Vec<Event>,
    /// The length of the file before the events and after each of them.
    lens: Vec<usize>,
}

fn apply(bytes: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Write { offset, data } => {
            memory::write(bytes, *offset, data).expect("the write worked the first time");
        }
        Event::SetLen(len) => bytes.resize(to_usize(*len), 0),
        Event::Sync => {}
    }
}

/// Cuts events into sectors, each with all of its content at that time.
fn whole_sectors(mut bytes: Vec<u8>, events: &[Event]) -> Sectors {
    let mut sectors = Vec::new();
    let mut lens = vec![bytes.len()];
    for event in events {
        apply(&mut bytes, event);
        lens.push(bytes.len());
        let Event::Write { offset, data } = event else {
            sectors.push(event.clone());
            continue;
        };
        let end = offset + to_u64(data.len());
        for sector in offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            let start = sector * SECTOR_BYTES;
            let stop = to_usize(start + SECTOR_BYTES).min(bytes.len());
            let data = bytes[to_usize(start)..stop].to_vec();
            sectors.push(Event::Write {
                offset: start,
                data,
            });
        }
    }
    Sectors {
        writes: sectors,
        lens,
    }
}

/// SplitMix64: enough chance for a test, without a dependency.
#[derive(Debug)]
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Storage for FaultyStorage {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        let mut state = self.state.lock();
        state.reads += 1;
        memory::read(&state.bytes, offset, into)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let mut state = self.state.lock();
        if let (Some(left), Some(kind)) = (state.writes_left, state.failure) {
            if left == 0 {
                return Err(kind.into());
            }
            state.writes_left = Some(left - 1);
        }
        memory::write(&mut state.bytes, offset, data)?;
        state.log.push(Event::Write {
            offset,
            data: data.to_vec(),
        });
        Ok(())
    }

    fn len_bytes(&self) -> std::io::Result<u64> {
        Ok(to_u64(self.state.lock().bytes.len()))
    }

    fn set_len(&self, len_bytes: u64) -> std::io::Result<()> {
        let len = memory::end(len_bytes, 0)?;
        let mut state = self.state.lock();
        state.bytes.resize(len, 0);
        state.log.push(Event::SetLen(len_bytes));
        Ok(())
    }

    fn sync(&self) -> std::io::Result<()> {
        let mut state = self.state.lock();
        if let (Some(0), Some(kind)) = (state.writes_left, state.failure) {
            return Err(kind.into());
        }
        state.syncs += 1;
        state.log.push(Event::Sync);
        Ok(())
    }

    fn start_writeback(&self, _offset: u64, _len_bytes: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_faulty_storage_without_faults_keeps_the_meaning_of_the_trait() {
        crate::storage::suite::run(FaultyStorage::new);
    }

    #[test]
    fn a_cut_may_lose_the_length_or_keep_it_alone() {
        let storage = FaultyStorage::with_bytes(vec![1; 512]);
        storage.write_at(512, &[2; 512]).unwrap();
        let end = storage.position();
        let seen: std::collections::BTreeSet<_> = (0..200)
            .map(|seed| storage.cut(end, seed).to_bytes())
            .map(|bytes| (bytes.len(), bytes.get(512).copied()))
            .collect();
        let possible = [(512, None), (1024, Some(0)), (1024, Some(2))];
        assert_eq!(seen, possible.into());
        // Back and forth: what was kept for the next cut does not show.
        storage.sync().unwrap();
        storage.write_at(0, &[3; 512]).unwrap();
        assert_eq!(storage.cut(storage.position(), 1).to_bytes()[512], 2);
        assert_eq!(storage.cut(2, 1).to_bytes(), [1; 512]);
    }

    #[test]
    fn a_cut_keeps_what_was_synced_and_may_lose_the_rest() {
        let storage = FaultyStorage::new();
        storage.write_at(0, &[1; 1024]).unwrap();
        storage.sync().unwrap();
        storage.write_at(0, &[2; 1024]).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let bytes = storage.cut(storage.position(), seed).to_bytes();
            assert_eq!(bytes.len(), 1024);
            for sector in [&bytes[..512], &bytes[512..]] {
                assert!(
                    sector.iter().all(|byte| *byte == sector[0]),
                    "sectors are not torn"
                );
            }
            seen.insert((bytes[0], bytes[512]));
        }
        assert_eq!(seen.len(), 4, "each sector is old or new: {seen:?}");
    }
}
