//! The real image under a scheduler that decides every step of every thread: thousands of random orders of requests on
//! a few clusters. What each request saw, what is left, and what power cuts leave must be explained by one order of
//! whole requests in which none comes before another that had ended when it began.
//!
//! ```text
//! cargo test -p qcow2 --features shuttle --test schedules
//! SENDENSE_SCHEDULES=100000   more of them
//! SENDENSE_TEST_SEED=…        the same ones again: the seed is printed at the start
//! SENDENSE_SCHEDULE=…         one alone: a failure prints it as "failing schedule"
//! ```
//! The requests of a schedule are drawn from its own chance, so that the schedule is all there is to keep. With the
//! feature on, locks work in the scheduler's threads only: run no other test with it.
#![expect(clippy::unwrap_used, reason = "a panic is the report")]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use qcow2::{
    BackingFormat, BackingName, Chain, CreateOptions, Elision, Error, ErrorKind, ExtentKind,
    FaultyStorage, Image, MemoryStorage, OpenedBacking, Opener, Seal, check,
};
use shuttle::rand::RngCore;
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, Runner, thread};

/// Requests begin and end at multiples of this: four of them make a sector, so that requests share clusters and sectors.
const GRAIN: usize = 128;
const SECTOR_GRAINS: usize = 4;
/// Clusters that the requests are about: the last two of one L2 table and the first two of the next.
const CLUSTERS: usize = 4;
/// What the parent has.
const BELOW: u8 = 0xbb;

#[test]
fn any_order_of_steps_is_an_order_of_requests() {
    if let Ok(schedule) = std::env::var("SENDENSE_SCHEDULE") {
        return run(ReplayScheduler::new_from_encoded(&schedule));
    }
    let number = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let seed = number("SENDENSE_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("SENDENSE_TEST_SEED={seed}");
    let schedules = usize::try_from(number("SENDENSE_SCHEDULES").unwrap_or(12_000)).unwrap();
    run(RandomScheduler::new_from_seed(seed, schedules / 3));
    // Few switches at chosen moments: finds what needs one thread to stand still while another does much.
    run(PctScheduler::new_from_seed(seed, 2, schedules / 3));
    run(PctScheduler::new_from_seed(seed, 4, schedules / 3));
}

fn run(scheduler: impl Scheduler + 'static) {
    let mut config = Config::default();
    config.stack_size = 512 << 10;
    Runner::new(scheduler, config).run(race);
}

/// One schedule: a random image, random requests of some threads, and the verdict.
fn race() {
    let mut rng = fastrand::Rng::with_seed(shuttle::rand::thread_rng().next_u64());
    let world = Arc::new(World::new(&mut rng));
    // Short races as often as long ones: in a short one each step is met more often.
    let most = rng.usize(1..=3);
    for _ in 0..rng.usize(0..most * 2) {
        world.call(world.random_action(&mut rng));
    }
    let lists: Vec<Vec<Action>> = (0..rng.usize(2..=most.max(2)))
        .map(|_| {
            (0..rng.usize(1..=most))
                .map(|_| world.random_action(&mut rng))
                .collect()
        })
        .collect();
    let threads: Vec<_> = lists
        .into_iter()
        .map(|actions| {
            let world = world.clone();
            thread::spawn(move || actions.into_iter().for_each(|action| world.call(action)))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    world.call(Action::Read(0..world.grains()));
    let end = world.storage.position();
    let cuts: Vec<Cut> = (0..2)
        .map(|_| world.cut(rng.usize(world.created_at..=end), rng.u64(..)))
        .collect();

    world.image.flush().unwrap();
    let report = check(&*world.storage).unwrap();
    assert!(report.is_clean(), "{report:?}");
    let calls = std::mem::take(&mut *world.calls.lock().unwrap());
    let order = Order {
        start: vec![if world.parent { BELOW } else { 0 }; world.grains()],
        calls: &calls,
        cuts: &cuts,
    };
    assert!(
        order.exists(),
        "no order of requests explains this: cluster={} parent={} {calls:#?} {cuts:#?}",
        world.cluster,
        world.parent
    );
}

#[derive(Debug, Clone)]
enum Action {
    Write { grains: Range<usize>, value: u8 },
    Zero { grains: Range<usize>, keep: bool },
    Read(Range<usize>),
    Extents(Range<usize>),
    Flush,
    Seal,
}

/// A request that has ended.
#[derive(Debug)]
struct Call {
    action: Action,
    /// What it learned of each of its grains.
    seen: Vec<Option<u8>>,
    /// The image was sealed.
    refused: bool,
    /// When it began and ended.
    time: Range<usize>,
    /// Positions in the storage's log before and after it.
    log: Range<usize>,
}

/// What a loss of power left.
#[derive(Debug)]
struct Cut {
    at: usize,
    sealed: bool,
    grains: Vec<u8>,
}

struct World {
    cluster: usize,
    parent: bool,
    /// Requests are about whole clusters on both sides of the border between two tables.
    whole: bool,
    storage: Arc<FaultyStorage>,
    image: Image,
    created_at: usize,
    clock: AtomicUsize,
    /// Values of writes: each has its own.
    values: AtomicUsize,
    calls: std::sync::Mutex<Vec<Call>>,
}

impl World {
    fn new(rng: &mut fastrand::Rng) -> Self {
        // One sector, or two that a cut may tear.
        let cluster = 512 << rng.usize(0..2);
        let parent = rng.bool();
        let version = rng.u32(2..=3);
        let options = CreateOptions {
            version,
            refcount_bits: if version == 2 { 16 } else { 1 << rng.u32(0..7) },
            cluster_size_bytes: u32::try_from(cluster).unwrap(),
            backing: parent.then(|| BackingName {
                name: "base".into(),
                format: Some(BackingFormat::Raw),
            }),
            ..CreateOptions::new(size(cluster) as u64)
        };
        let storage = Arc::new(FaultyStorage::new());
        let below = parent.then(|| {
            let base = Arc::new(base(cluster));
            Arc::new(Chain::open(base, "base", BackingFormat::Raw, &Base(cluster)).unwrap())
        });
        let image = Image::create(storage.clone(), &options, below).unwrap();
        Self {
            cluster,
            parent,
            whole: rng.u8(0..3) == 0,
            created_at: storage.position(),
            storage,
            image: image.with_elision(Elision::Read),
            clock: AtomicUsize::new(0),
            values: AtomicUsize::new(1),
            calls: std::sync::Mutex::default(),
        }
    }

    fn grains(&self) -> usize {
        CLUSTERS * self.cluster / GRAIN
    }

    fn offset(&self, grain: usize) -> u64 {
        (size(self.cluster) - CLUSTERS * self.cluster + grain * GRAIN) as u64
    }

    fn random_action(&self, rng: &mut fastrand::Rng) -> Action {
        let per_cluster = self.cluster / GRAIN;
        let (first, last) = if self.whole {
            (
                rng.usize(0..CLUSTERS / 2),
                rng.usize(CLUSTERS / 2..CLUSTERS),
            )
        } else {
            let first = rng.usize(0..CLUSTERS);
            (first, rng.usize(first..CLUSTERS.min(first + 2)))
        };
        let mut grains = first * per_cluster..(last + 1) * per_cluster;
        if !self.whole && rng.u8(0..3) > 0 {
            grains.start += rng.usize(0..per_cluster);
            grains.end -= rng.usize(0..grains.len().min(per_cluster));
        }
        match rng.u8(0..32) {
            0..10 => {
                let fresh = u8::try_from(self.values.fetch_add(1, Ordering::Relaxed)).unwrap();
                // Now and then what the parent has already.
                let value = if rng.u8(0..5) == 0 { BELOW } else { fresh };
                Action::Write { grains, value }
            }
            10..20 => Action::Zero {
                grains,
                keep: rng.bool(),
            },
            20..24 => Action::Read(grains),
            24..27 => Action::Extents(grains),
            27..31 => Action::Flush,
            _ => Action::Seal,
        }
    }

    fn call(&self, action: Action) {
        let began = self.clock.fetch_add(1, Ordering::Relaxed);
        let position = self.storage.position();
        let mut seen = Vec::new();
        let result = match &action {
            Action::Write { grains, value } => self.image.write(
                self.offset(grains.start),
                &vec![*value; grains.len() * GRAIN],
            ),
            Action::Zero { grains, keep } => self.image.write_zeroes(
                self.offset(grains.start),
                (grains.len() * GRAIN) as u64,
                *keep,
            ),
            Action::Read(grains) => {
                let mut bytes = vec![0xee; grains.len() * GRAIN];
                let result = self.image.read(self.offset(grains.start), &mut bytes);
                seen = values(&bytes).into_iter().map(Some).collect();
                result
            }
            Action::Extents(grains) => {
                seen = self.extents(grains);
                Ok(())
            }
            Action::Flush => self.image.flush(),
            Action::Seal => self.image.seal(&a_seal()),
        };
        let refused = match result {
            Ok(()) => false,
            Err(error) if error.kind() == ErrorKind::ReadOnly => true,
            Err(error) => panic!("{action:?}: {error}"),
        };
        let position = position..self.storage.position();
        let ended = self.clock.fetch_add(1, Ordering::Relaxed);
        self.calls.lock().unwrap().push(Call {
            action,
            seen,
            refused,
            time: began..ended,
            log: position,
        });
    }

    /// What the extents of a range say about its content.
    fn extents(&self, grains: &Range<usize>) -> Vec<Option<u8>> {
        let start = self.offset(grains.start);
        let len = (grains.len() * GRAIN) as u64;
        let mut seen = Vec::new();
        let mut at = start;
        for extent in self.image.extents(start, len).unwrap() {
            assert_eq!(extent.offset, at, "extents are in order and without gaps");
            at += extent.len_bytes;
            let value = match (extent.kind, extent.depth) {
                (ExtentKind::Data, 0) => None,
                (ExtentKind::Data, _) => Some(BELOW),
                (ExtentKind::Zero | ExtentKind::Unallocated | ExtentKind::Beyond, _) => Some(0),
            };
            let count = usize::try_from(extent.len_bytes).unwrap() / GRAIN;
            seen.extend(std::iter::repeat_n(value, count));
        }
        assert_eq!(at, start + len, "extents cover the range");
        seen
    }

    /// Cuts the power; requires that nothing is corrupt and that a seal is there as a whole or not at all.
    fn cut(&self, at: usize, seed: u64) -> Cut {
        let cut = self.storage.cut(at, seed);
        let report = check(&cut).unwrap();
        assert_eq!(report.corruptions, 0, "at={at}: {report:?}");
        let opener = Base(self.cluster);
        let chain = Chain::open(Arc::new(cut), "tip", BackingFormat::Qcow2, &opener).unwrap();
        let seal = chain.layers()[0].1.seal.clone();
        assert!(seal.is_none() || seal == Some(a_seal()), "{seal:?}");
        let mut bytes = vec![0xee; CLUSTERS * self.cluster];
        chain.read(self.offset(0), &mut bytes).unwrap();
        Cut {
            at,
            sealed: seal.is_some(),
            grains: values(&bytes),
        }
    }
}

/// The value of each grain: no request may be seen in a part of one.
fn values(bytes: &[u8]) -> Vec<u8> {
    bytes
        .chunks(GRAIN)
        .map(|grain| {
            assert!(grain.iter().all(|byte| *byte == grain[0]), "{grain:?}");
            grain[0]
        })
        .collect()
}

/// An order of the calls as if each was done in one moment.
struct Order<'a> {
    start: Vec<u8>,
    calls: &'a [Call],
    cuts: &'a [Cut],
}

impl Order<'_> {
    fn exists(&self) -> bool {
        self.search(&mut Vec::new(), &self.start, false)
    }

    /// Tries every call that may come next.
    fn search(&self, done: &mut Vec<usize>, disk: &[u8], sealed: bool) -> bool {
        let open = |index: &usize| !done.contains(index);
        let left: Vec<usize> = (0..self.calls.len()).filter(open).collect();
        let Some(first_end) = left.iter().map(|index| self.calls[*index].time.end).min() else {
            return self.cuts.iter().all(|cut| self.explains(done, cut));
        };
        for index in left {
            let call = &self.calls[index];
            if call.time.start > first_end || !call.is_possible(disk, sealed) {
                continue;
            }
            let mut next = disk.to_vec();
            call.apply(&mut next);
            done.push(index);
            if self.search(done, &next, sealed || call.seals()) {
                return true;
            }
            done.pop();
        }
        false
    }

    /// Whether a cut holds, sector by sector, what this order had at the last flush before it or at a later moment.
    fn explains(&self, order: &[usize], cut: &Cut) -> bool {
        let mut disk = self.start.clone();
        let mut possible = vec![disk.clone()];
        let (mut seal_begun, mut seal_done) = (false, false);
        for index in order {
            let call = &self.calls[*index];
            if call.log.start > cut.at {
                continue;
            }
            call.apply(&mut disk);
            possible.push(disk.clone());
            let is_over = call.log.end <= cut.at;
            seal_begun |= call.seals();
            seal_done |= call.seals() && is_over;
            if is_over && (call.seals() || matches!(call.action, Action::Flush)) {
                possible = vec![disk.clone()];
            }
        }
        let sectors = (0..disk.len()).step_by(SECTOR_GRAINS);
        let sectors = sectors.map(|first| first..first + SECTOR_GRAINS);
        let is_known = |sector: Range<usize>| {
            let known = |disk: &Vec<u8>| disk[sector.clone()] == cut.grains[sector.clone()];
            possible.iter().any(known)
        };
        let seal = if cut.sealed { seal_begun } else { !seal_done };
        seal && sectors.into_iter().all(is_known)
    }
}

impl Call {
    /// Whether the call could end as it did on this disk.
    fn is_possible(&self, disk: &[u8], sealed: bool) -> bool {
        match &self.action {
            Action::Write { .. } | Action::Zero { .. } | Action::Seal => self.refused == sealed,
            Action::Read(grains) | Action::Extents(grains) => disk[grains.clone()]
                .iter()
                .zip(&self.seen)
                .all(|(value, seen)| seen.is_none_or(|seen| seen == *value)),
            Action::Flush => true,
        }
    }

    fn apply(&self, disk: &mut [u8]) {
        match &self.action {
            _ if self.refused => {}
            Action::Write { grains, value } => disk[grains.clone()].fill(*value),
            Action::Zero { grains, .. } => disk[grains.clone()].fill(0),
            Action::Read(_) | Action::Extents(_) | Action::Flush | Action::Seal => {}
        }
    }

    fn seals(&self) -> bool {
        matches!(self.action, Action::Seal) && !self.refused
    }
}

fn a_seal() -> Seal {
    Seal {
        point_id: "point".into(),
        parent_id: None,
        hashes: None,
        change_id: Some("epoch/1".into()),
    }
}

/// Bytes of the disk: it ends with the requests' clusters.
fn size(cluster: usize) -> usize {
    let per_table = cluster / 8;
    (per_table + CLUSTERS / 2) * cluster
}

fn base(cluster: usize) -> MemoryStorage {
    MemoryStorage::with_bytes(vec![BELOW; size(cluster)])
}

/// Opens the base of a disk with these clusters.
struct Base(usize);

impl Opener for Base {
    fn open_backing(&self, name: &BackingName, _of: &str) -> Result<OpenedBacking, Error> {
        Ok(OpenedBacking {
            storage: Arc::new(base(self.0)),
            identity: name.name.clone(),
            format: BackingFormat::Raw,
        })
    }
}
