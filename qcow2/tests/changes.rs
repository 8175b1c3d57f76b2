//! Changed ranges between two points: nothing that differs is left out, nothing that nobody touched is listed.

#![expect(clippy::unwrap_used, reason = "a panic is the report")]

// Each test file needs a part of it.
#[expect(dead_code, reason = "the rest is for the tests beside QEMU")]
mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use qcow2::{
    BackingFormat, BackingName, Chain, CreateOptions, Error, ErrorKind, Image, MemoryStorage,
    OpenedBacking, Opener, Storage,
};
use support::{random_data, rng, seed};

/// A file in memory that remembers what was read of it.
#[derive(Debug, Default)]
struct Watched {
    bytes: MemoryStorage,
    reads: Mutex<Vec<Range<u64>>>,
}

impl Storage for Watched {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        let range = offset..offset + into.len() as u64;
        self.reads.lock().unwrap().push(range);
        self.bytes.read_at(offset, into)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.bytes.write_at(offset, data)
    }
    fn len_bytes(&self) -> std::io::Result<u64> {
        self.bytes.len_bytes()
    }
    fn set_len(&self, len_bytes: u64) -> std::io::Result<()> {
        self.bytes.set_len(len_bytes)
    }
    fn sync(&self) -> std::io::Result<()> {
        self.bytes.sync()
    }
    fn start_writeback(&self, offset: u64, len_bytes: u64) {
        self.bytes.start_writeback(offset, len_bytes);
    }
}

/// One point: a layer and what its disk reads as.
#[derive(Debug)]
struct Point {
    storage: Arc<Watched>,
    below: Option<usize>,
    disk: Vec<u8>,
    /// Clusters that requests touched, in bytes.
    touched: Vec<Range<usize>>,
}

/// Points by number, each a file of that name.
#[derive(Debug, Default)]
struct Tree(Vec<Point>);

impl Opener for Tree {
    fn open_backing(&self, name: &BackingName, _of: &str) -> Result<OpenedBacking, Error> {
        Ok(OpenedBacking {
            storage: self.0[name.name.parse::<usize>().unwrap()].storage.clone(),
            identity: name.name.clone(),
            format: BackingFormat::Qcow2,
        })
    }
}

impl Tree {
    fn chain(&self, point: usize) -> Chain {
        let tip = self.0[point].storage.clone();
        Chain::open(tip, &point.to_string(), BackingFormat::Qcow2, self).unwrap()
    }

    /// Points from this one down.
    fn line(&self, point: usize) -> Vec<usize> {
        std::iter::successors(Some(point), |point| self.0[*point].below).collect()
    }

    /// A new point on `below` with some random requests.
    fn grow(&mut self, below: Option<usize>, rng: &mut fastrand::Rng) {
        let cluster = 512 << rng.usize(0..6);
        let size = rng.usize(100..400) * 512;
        let storage = Arc::new(Watched::default());
        let options = CreateOptions {
            cluster_size_bytes: u32::try_from(cluster).unwrap(),
            version: if rng.u8(0..4) == 0 { 2 } else { 3 },
            backing: below.map(|below| BackingName {
                name: below.to_string(),
                format: Some(BackingFormat::Qcow2),
            }),
            ..CreateOptions::new(size as u64)
        };
        let parent = below.map(|below| Arc::new(self.chain(below)));
        let image = Image::create(storage.clone(), &options, parent).unwrap();
        let mut disk = below.map_or_else(Vec::new, |below| self.0[below].disk.clone());
        disk.resize(size, 0);
        let mut touched = Vec::new();
        for _ in 0..rng.usize(0..5) {
            let start = rng.usize(0..size);
            let end = size.min(start + rng.usize(1..20_000));
            let data = if rng.u8(0..3) == 0 {
                image
                    .write_zeroes(start as u64, (end - start) as u64, rng.bool())
                    .unwrap();
                vec![0; end - start]
            } else {
                let data = random_data(rng, end - start);
                image.write(start as u64, &data).unwrap();
                data
            };
            disk[start..end].copy_from_slice(&data);
            touched.push(start / cluster * cluster..end.next_multiple_of(cluster));
        }
        image.flush().unwrap();
        self.0.push(Point {
            storage,
            below,
            disk,
            touched,
        });
    }

    /// The bytes that a layer above the common one touched or hid, and those that the older disk did not have.
    fn may_change(&self, newer: usize, older: usize) -> Option<Vec<bool>> {
        let (mine, theirs) = (self.line(newer), self.line(older));
        let common = *mine.iter().find(|point| theirs.contains(point))?;
        let size = self.0[newer].disk.len();
        let mut may = vec![false; size];
        let mut mark = |range: Range<usize>| {
            let end = range.end.min(size);
            may[range.start.min(end)..end].fill(true);
        };
        for line in [mine, theirs] {
            for point in line.into_iter().take_while(|point| *point != common) {
                let point = &self.0[point];
                point.touched.iter().cloned().for_each(&mut mark);
                mark(point.disk.len()..self.0[common].disk.len());
            }
        }
        mark(self.0[older].disk.len()..usize::MAX);
        Some(may)
    }

    fn check(&self, newer: usize, older: usize, context: &str) -> Verdict {
        let (tip, base) = (self.chain(newer), self.chain(older));
        let changes = tip.changes_since(&base);
        let Some(may) = self.may_change(newer, older) else {
            let error = changes.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{context}");
            assert!(error.to_string().contains("no layer in common"), "{error}");
            return Verdict::Refused;
        };
        let mut listed = vec![false; may.len()];
        let mut before = None;
        for range in changes.unwrap() {
            let range = range.unwrap();
            assert!(range.start < range.end, "{range:?} {context}");
            // Ranges that meet would be one.
            assert!(before.is_none_or(|end| end < range.start), "{context}");
            before = Some(range.end);
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            listed[range].fill(true);
        }
        let (new, old) = (&self.0[newer].disk, &self.0[older].disk);
        for at in 0..listed.len() {
            if listed[at] {
                assert!(may[at], "nobody touched byte {at}: {context}");
            } else {
                assert_eq!(new.get(at), old.get(at), "byte {at} differs: {context}");
            }
        }
        match listed.contains(&true) {
            true => Verdict::Some,
            false => Verdict::None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Refused,
    None,
    Some,
}

/// Random trees of points with their own lengths and cluster sizes, every pair of points of each.
#[test]
fn what_is_not_listed_is_equal_and_what_is_listed_was_touched() {
    let seed = seed();
    let mut rng = rng(seed);
    let mut verdicts = BTreeMap::new();
    for round in 0..40 {
        let mut tree = Tree::default();
        for point in 0..7 {
            let below = (point > 0 && rng.u8(0..8) > 0).then(|| rng.usize(0..point));
            tree.grow(below, &mut rng);
        }
        for newer in 0..7 {
            for older in 0..7 {
                let context = format!("newer={newer} older={older} round={round} seed={seed}");
                *verdicts
                    .entry(tree.check(newer, older, &context))
                    .or_insert(0) += 1;
            }
        }
    }
    assert!(
        verdicts.values().all(|count| *count > 50) && verdicts.len() == 3,
        "{verdicts:?}"
    );
}

/// Maps alone tell what changed: no byte of a guest is read.
#[test]
fn guest_data_is_never_read() {
    let seed = seed();
    let mut rng = rng(seed);
    let mut tree = Tree::default();
    for point in 0..5_usize {
        tree.grow(point.checked_sub(1), &mut rng);
    }
    let (tip, base) = (tree.chain(4), tree.chain(0));
    for point in &tree.0 {
        point.storage.reads.lock().unwrap().clear();
    }
    let changes: Vec<_> = tip.changes_since(&base).unwrap().collect();
    assert!(changes.iter().all(Result::is_ok), "{changes:?}");
    let mut read = 0;
    for (number, point) in tree.0.iter().enumerate() {
        let reads = point.storage.reads.lock().unwrap().clone();
        read += reads.len();
        let own = tree.chain(number);
        let extents = own.extents(0, own.virtual_size_bytes()).unwrap();
        for extent in extents.iter().filter(|extent| extent.depth == 0) {
            let Some(host) = extent.host_offset else {
                continue;
            };
            let data = host..host + extent.len_bytes;
            let meets = |range: &&Range<u64>| range.start < data.end && data.start < range.end;
            let wrong = reads.iter().find(meets);
            assert_eq!(wrong, None, "seed={seed} point={number} data={data:?}");
        }
    }
    assert!(read > 0, "nothing was read at all");
}

/// One file, found on top of different ones, is not one point.
#[test]
fn points_that_disagree_are_refused() {
    struct Elsewhere<'a>(&'a Tree);
    impl Opener for Elsewhere<'_> {
        fn open_backing(&self, name: &BackingName, of: &str) -> Result<OpenedBacking, Error> {
            let opened = self.0.open_backing(name, of)?;
            Ok(OpenedBacking {
                identity: format!("elsewhere/{}", opened.identity),
                ..opened
            })
        }
    }
    let mut tree = Tree::default();
    tree.grow(None, &mut rng(1));
    tree.grow(Some(0), &mut rng(2));
    let tip = tree.0[1].storage.clone();
    let newer = Chain::open(tip, "1", BackingFormat::Qcow2, &Elsewhere(&tree)).unwrap();
    let older = tree.chain(1);
    let error = newer.changes_since(&older).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("image=1"), "{error}");
}

/// A change that crosses what is looked at at once is one range.
#[test]
fn ranges_are_joined_over_spans() {
    let mut tree = Tree::default();
    let layer = |below: Option<&str>, offset: u64, len: usize, tree: &Tree| {
        let storage = Arc::new(Watched::default());
        let options = CreateOptions {
            cluster_size_bytes: 512,
            backing: below.map(|name| BackingName {
                name: name.into(),
                format: Some(BackingFormat::Qcow2),
            }),
            ..CreateOptions::new(20 << 20)
        };
        let parent = below.map(|_| Arc::new(tree.chain(0)));
        let image = Image::create(storage.clone(), &options, parent).unwrap();
        image.write(offset, &vec![7; len]).unwrap();
        image.flush().unwrap();
        Point {
            storage,
            below: None,
            disk: vec![],
            touched: vec![],
        }
    };
    let base = layer(None, 0, 512, &tree);
    tree.0.push(base);
    let tip = layer(Some("0"), (4 << 20) - 1, (8 << 20) + 2, &tree);
    tree.0.push(tip);
    let (tip, base) = (tree.chain(1), tree.chain(0));
    let changes: Vec<_> = tip.changes_since(&base).unwrap().flatten().collect();
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(changes[0], (4 << 20) - 512..(12 << 20) + 512);
    assert_eq!(tip.changes_since(&tip).unwrap().count(), 0);
}
