//! Damaged images, and what qemu-img and we say and do about them.
//!
//! Every image of a corpus is damaged many times from a seed. The verdicts must agree, and so must the figures; where
//! they do not, [`Excuse`] names the reason, and nothing else is excused.

use std::collections::BTreeMap;
use std::sync::Arc;

use qcow2::{BackingFormat, Chain, CheckReport, Error, ErrorKind, MemoryStorage, Repair};
use serde_json::Value;
use tests::disk::Disk;
use tests::images::{Folder, qemu_io};
use tests::peers::{have, run, run_ok};
use tests::seed;

/// Bytes of every disk: a few tables of the small clusters, one of the large ones.
const LEN: usize = 384 << 10;

/// How a base image is made.
#[derive(Debug, Clone, Copy)]
enum Base {
    /// By us, with clusters of this size.
    Ours(usize),
    /// By qemu-img, with these options.
    Qemu(&'static str),
    /// By qemu-img, and with two snapshots.
    Snapshots(&'static str),
    /// By qemu-img, compressed.
    Compressed(&'static str),
    /// By qemu-img, with bitmaps that have bits.
    Bitmaps(&'static str),
}

const BASES: [Base; 16] = [
    Base::Ours(512),
    Base::Ours(4096),
    Base::Ours(65_536),
    Base::Qemu("cluster_size=512,refcount_bits=1"),
    Base::Qemu("cluster_size=1k,refcount_bits=8"),
    Base::Qemu("cluster_size=4k,refcount_bits=64"),
    Base::Qemu("cluster_size=2k,compat=0.10"),
    Base::Qemu("cluster_size=64k,lazy_refcounts=on"),
    Base::Snapshots("cluster_size=512,refcount_bits=32"),
    Base::Snapshots("cluster_size=4k,refcount_bits=2"),
    Base::Snapshots("cluster_size=4k,compat=0.10"),
    Base::Compressed("cluster_size=4k"),
    Base::Compressed("cluster_size=64k,compression_type=zstd"),
    Base::Bitmaps("cluster_size=4k"),
    Base::Snapshots("cluster_size=16k,extended_l2=on"),
    Base::Compressed("cluster_size=16k,extended_l2=on"),
];

/// What is done to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    None,
    /// A used cluster is counted too often.
    CountHigh,
    /// A used cluster is counted too little, or not at all.
    CountLow,
    /// A cluster behind all others is counted, and the file reaches to it.
    CountUnused,
    /// Several counts are anything.
    CountAnything,
    /// An L1 or L2 entry is wrong about being the only one.
    Flag,
    L2Beyond,
    L2Unaligned,
    L2Reserved,
    /// An L2 entry leads to a table or to the header.
    L2ToMetadata,
    /// Two L2 entries lead to one cluster.
    L2Shared,
    /// An L2 entry is gone.
    L2Cleared,
    /// The bit of a zero cluster.
    L2Zero,
    L1Beyond,
    L1Unaligned,
    L1Reserved,
    /// An L1 entry leads to data.
    L1ToData,
    L1Shared,
    L1Cleared,
    TableZero,
    TableUnaligned,
    TableReserved,
    TableBeyond,
    TableToData,
    TableShared,
    /// Bytes of the snapshot table.
    Snapshots,
    /// A compressed entry: its flag, place or length.
    Compressed,
    /// Bytes of the bitmap directory or of a bitmap's table.
    Bitmaps,
    Truncated,
    DirtyBit,
    CorruptBit,
    /// Bytes of a table.
    TableBytes,
    /// What an extended L2 entry says of its subclusters.
    Subclusters,
}

const DAMAGES: [Damage; 33] = [
    Damage::None,
    Damage::CountHigh,
    Damage::CountLow,
    Damage::CountUnused,
    Damage::CountAnything,
    Damage::Flag,
    Damage::L2Beyond,
    Damage::L2Unaligned,
    Damage::L2Reserved,
    Damage::L2ToMetadata,
    Damage::L2Shared,
    Damage::L2Cleared,
    Damage::L2Zero,
    Damage::L1Beyond,
    Damage::L1Unaligned,
    Damage::L1Reserved,
    Damage::L1ToData,
    Damage::L1Shared,
    Damage::L1Cleared,
    Damage::TableZero,
    Damage::TableUnaligned,
    Damage::TableReserved,
    Damage::TableBeyond,
    Damage::TableToData,
    Damage::TableShared,
    Damage::Snapshots,
    Damage::Compressed,
    Damage::Bitmaps,
    Damage::Truncated,
    Damage::DirtyBit,
    Damage::CorruptBit,
    Damage::TableBytes,
    Damage::Subclusters,
];

/// What a check says of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Clean,
    Leaks,
    Corrupt,
    /// No check could be made, or not to its end.
    Failed,
}

impl Base {
    /// Makes the image in the folder and returns its bytes.
    fn make(self, rng: &mut fastrand::Rng) -> Vec<u8> {
        let folder = Folder::new();
        let path = folder.path("base");
        match self {
            Self::Ours(cluster) => {
                let image = folder.create("base", LEN as u64, cluster, None);
                let mut disk = Disk::new(LEN, None);
                for _ in 0..12 {
                    let op = disk.random_op(rng, cluster);
                    disk.apply(&op);
                    op.send(&image);
                }
                image.flush().expect("a flush");
            }
            Self::Qemu(options) => create(&folder, options, rng),
            Self::Snapshots(options) => {
                create(&folder, options, rng);
                for name in ["one", "the second"] {
                    run_ok("qemu-img", ["snapshot", "-c", name, text(&path)]);
                    qemu_io(&path, false, &writes(rng, 4));
                }
            }
            Self::Compressed(options) => {
                create(&folder, options, rng);
                let target = folder.path("compressed");
                let args = ["convert", "-c", "-f", "qcow2", "-O", "qcow2", "-o", options];
                run_ok(
                    "qemu-img",
                    args.into_iter().chain([text(&path), text(&target)]),
                );
                qemu_io(&target, false, &writes(rng, 2));
                std::fs::rename(target, &path).expect("a file");
            }
            Self::Bitmaps(options) => {
                create(&folder, options, rng);
                for name in ["first", "second"] {
                    let args = ["bitmap", "--add", "-g", "512", text(&path), name];
                    run_ok("qemu-img", args);
                    qemu_io(&path, false, &writes(rng, 4));
                }
            }
        }
        std::fs::read(path).expect("the image")
    }
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn create(folder: &Folder, options: &str, rng: &mut fastrand::Rng) {
    let (path, len) = (folder.path("base"), LEN.to_string());
    let args = ["create", "-q", "-f", "qcow2", "-o", options];
    run_ok(
        "qemu-img",
        args.into_iter().chain([text(&path), len.as_str()]),
    );
    qemu_io(&path, false, &writes(rng, 8));
}

/// Commands for qemu-io that write data and zeroes.
fn writes(rng: &mut fastrand::Rng, count: usize) -> Vec<String> {
    let request = |index| {
        let at = rng.usize(0..LEN / 512) * 512;
        let len = (rng.usize(1..60) * 512).min(LEN - at);
        if index % 4 == 3 {
            format!("write -z {at} {len}")
        } else {
            format!("write -P {} {at} {len}", rng.u8(1..))
        }
    };
    (0..count).map(request).collect()
}

/// The bytes of an image, and where its tables are. Only of images that are whole.
struct Bytes {
    bytes: Vec<u8>,
    cluster: usize,
    order: u32,
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

impl Bytes {
    fn new(bytes: Vec<u8>) -> Self {
        let mut this = Self {
            bytes,
            cluster: 0,
            order: 4,
        };
        this.cluster = 1 << this.u32_at(20);
        if this.u32_at(4) == 3 {
            this.order = this.u32_at(96);
        }
        this
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn get(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    fn put(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    fn clusters(&self) -> usize {
        self.bytes.len().div_ceil(self.cluster)
    }

    /// Bytes of an L2 entry.
    fn l2_entry(&self) -> usize {
        let extended = self.u32_at(4) == 3 && self.bytes[79] & 1 << 4 != 0;
        if extended { 16 } else { 8 }
    }

    /// Where the entries of a table are that are not 0.
    fn entries(&self, at: usize, count: usize) -> Vec<usize> {
        self.wide_entries(at, count, 8)
    }

    /// The same, of entries that have more bytes behind them.
    fn wide_entries(&self, at: usize, count: usize, step: usize) -> Vec<usize> {
        let entries = (0..count).map(|index| at + index * step);
        entries
            .filter(|at| at + 8 <= self.bytes.len() && self.get(*at) != 0)
            .collect()
    }

    fn l1(&self) -> Vec<usize> {
        self.entries(index(self.get(40)), self.u32_at(36) as usize)
    }

    fn l2(&self) -> Vec<usize> {
        let step = self.l2_entry();
        let tables = self.l1().into_iter().map(|at| self.get(at) & OFFSET);
        tables
            .flat_map(|table| self.wide_entries(index(table), self.cluster / step, step))
            .collect()
    }

    /// L2 entries of plain clusters, or of compressed ones.
    fn data(&self, compressed: bool) -> Vec<usize> {
        let mut entries = self.l2();
        entries.retain(|at| {
            let entry = self.get(*at);
            (entry & COMPRESSED != 0) == compressed && entry & OFFSET != 0
        });
        entries
    }

    fn refcount_table(&self) -> Vec<usize> {
        let count = self.u32_at(56) as usize * self.cluster / 8;
        self.entries(index(self.get(48)), count)
    }

    /// A place of metadata: the header, a table, a block.
    fn metadata(&self, rng: &mut fastrand::Rng) -> u64 {
        let mut places = vec![0, self.get(40), self.get(48)];
        places.extend(self.refcount_table().iter().map(|at| self.get(*at)));
        places.extend(self.l1().iter().map(|at| self.get(*at) & OFFSET));
        let place = places[rng.usize(0..places.len())];
        if place == 0 { self.get(40) } else { place }
    }

    fn per_block(&self) -> usize {
        (self.cluster * 8) >> self.order
    }

    /// The refcount of a cluster, and how to set it; 0 where there is no block.
    fn count(&mut self, cluster: usize, value: Option<u64>) -> u64 {
        let table = index(self.get(48));
        let block = index(self.get(table + cluster / self.per_block() * 8));
        let slot = cluster % self.per_block();
        if block == 0 || block >= self.bytes.len() {
            return 0;
        }
        let bits = 1_usize << self.order;
        if bits < 8 {
            let (byte, shift) = (block + slot * bits / 8, slot * bits % 8);
            let mask = u8::MAX >> (8 - bits);
            if let Some(value) = value {
                let kept = self.bytes[byte] & !(mask << shift);
                self.bytes[byte] =
                    kept | u8::try_from(value & u64::from(mask)).expect("masked") << shift;
            }
            return u64::from(self.bytes[byte] >> shift & mask);
        }
        let at = block + slot * bits / 8;
        let range = at..at + bits / 8;
        if let Some(value) = value {
            self.bytes[range.clone()].copy_from_slice(&value.to_be_bytes()[8 - bits / 8..]);
        }
        let bytes = &self.bytes[range];
        bytes
            .iter()
            .fold(0, |all, byte| all << 8 | u64::from(*byte))
    }

    fn used(&mut self) -> Vec<usize> {
        let all: Vec<usize> = (0..self.clusters()).collect();
        all.into_iter()
            .filter(|cluster| self.count(*cluster, None) > 0)
            .collect()
    }

    fn flip_bytes(&mut self, range: std::ops::Range<usize>, rng: &mut fastrand::Rng) {
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(range.clone());
            self.bytes[at] ^= 1 << rng.u8(0..8);
        }
    }
}

/// One of some; `None` of none.
fn any(of: &[usize], rng: &mut fastrand::Rng) -> Option<usize> {
    (!of.is_empty()).then(|| of[rng.usize(0..of.len())])
}

/// Damages an image; `None` where it has not what would be damaged.
fn damage(base: &[u8], damage: Damage, rng: &mut fastrand::Rng) -> Option<Vec<u8>> {
    let mut image = Bytes::new(base.to_vec());
    let (cluster, end) = (image.cluster, image.bytes.len());
    let max = u64::MAX >> (64 - (1_u32 << image.order));
    let beyond = ((end.next_multiple_of(cluster) + rng.usize(0..1000) * cluster) as u64) & OFFSET;
    let (l1, l2, table) = (image.l1(), image.data(false), image.refcount_table());
    match damage {
        Damage::None => {}
        Damage::CountHigh | Damage::CountLow => {
            let used = image.used();
            let victim = any(&used, rng)?;
            let count = image.count(victim, None);
            let new = match damage {
                Damage::CountHigh if count < max => count + rng.u64(1..=(max - count).min(9)),
                Damage::CountHigh => return None,
                _ => rng.u64(0..count),
            };
            image.count(victim, Some(new));
        }
        Damage::CountUnused => {
            let victim = end.div_ceil(cluster);
            image.bytes.resize((victim + 1) * cluster, 0);
            image.count(victim, Some(1));
        }
        Damage::CountAnything => {
            for _ in 0..rng.usize(2..12) {
                let victim = rng.usize(0..image.clusters());
                image.count(victim, Some(rng.u64(0..=max.min(3))));
            }
        }
        Damage::Flag => {
            let entries = [l1, l2].concat();
            for _ in 0..rng.usize(1..4) {
                let at = any(&entries, rng)?;
                image.put(at, image.get(at) ^ COPIED);
            }
        }
        Damage::L2Beyond => {
            let at = any(&l2, rng)?;
            image.put(at, image.get(at) & !OFFSET | beyond);
        }
        Damage::L2Unaligned => {
            let at = any(&l2, rng)?;
            if cluster == 512 {
                return None;
            }
            image.put(at, image.get(at) | 512);
        }
        Damage::L2Reserved => {
            let at = any(&l2, rng)?;
            image.put(
                at,
                image.get(at) | 1 << [1, 5, 8, 56, 60, 61][rng.usize(0..6)],
            );
        }
        Damage::L2ToMetadata => {
            let at = any(&l2, rng)?;
            let place = image.metadata(rng);
            image.put(at, image.get(at) & !OFFSET | place);
        }
        Damage::L2Shared => {
            let (at, other) = (any(&l2, rng)?, any(&l2, rng)?);
            image.put(at, image.get(other));
        }
        Damage::L2Cleared => image.put(any(&l2, rng)?, 0),
        Damage::L2Zero => {
            let at = any(&l2, rng)?;
            image.put(at, image.get(at) ^ 1);
        }
        Damage::L1Beyond => {
            let at = any(&l1, rng)?;
            image.put(at, image.get(at) & !OFFSET | beyond);
        }
        Damage::L1Unaligned => {
            let at = any(&l1, rng)?;
            if cluster == 512 {
                return None;
            }
            image.put(at, image.get(at) | 512);
        }
        Damage::L1Reserved => {
            let at = any(&l1, rng)?;
            image.put(at, image.get(at) | 1 << [0, 5, 8, 56, 62][rng.usize(0..5)]);
        }
        Damage::L1ToData => {
            let (at, data) = (any(&l1, rng)?, any(&l2, rng)?);
            image.put(at, image.get(at) & !OFFSET | image.get(data) & OFFSET);
        }
        Damage::L1Shared => {
            let (at, other) = (any(&l1, rng)?, any(&l1, rng)?);
            image.put(at, image.get(other));
        }
        Damage::L1Cleared => image.put(any(&l1, rng)?, 0),
        Damage::TableZero => image.put(any(&table, rng)?, 0),
        Damage::TableUnaligned => {
            let at = any(&table, rng)?;
            if cluster == 512 {
                return None;
            }
            image.put(at, image.get(at) | 512);
        }
        Damage::TableReserved => {
            let at = any(&table, rng)?;
            image.put(at, image.get(at) | 1 << rng.u8(0..9));
        }
        Damage::TableBeyond => image.put(any(&table, rng)?, beyond),
        Damage::TableToData => {
            let (at, data) = (any(&table, rng)?, any(&l2, rng)?);
            image.put(at, image.get(data) & OFFSET);
        }
        Damage::TableShared => {
            let (at, other) = (any(&table, rng)?, any(&table, rng)?);
            if rng.bool() && at != other {
                image.put(at, image.get(other));
            } else {
                let place = image.metadata(rng);
                image.put(at, place);
            }
        }
        Damage::Snapshots => {
            if image.u32_at(60) == 0 {
                return None;
            }
            let at = index(image.get(64));
            match rng.u8(0..3) {
                0 => image.flip_bytes(at..at + 60, rng),
                1 => image.flip_bytes(60..72, rng),
                // The place of the first snapshot's L1 table.
                _ => image.put(
                    at,
                    [beyond, image.get(40), image.get(at) + 512][rng.usize(0..3)],
                ),
            }
        }
        Damage::Compressed => {
            let at = any(&image.data(true), rng)?;
            let bits = 62 - (cluster.trailing_zeros() - 8);
            let change = [
                COPIED,
                1 << bits,
                1 << (cluster.trailing_zeros() + 1),
                1 << 40,
            ];
            image.put(at, image.get(at) ^ change[rng.usize(0..4)]);
        }
        Damage::Bitmaps => {
            let extension = image
                .bytes
                .windows(4)
                .position(|kind| kind == [0x23, 0x85, 0x28, 0x75])?;
            let directory = index(image.get(extension + 24));
            let table = index(image.get(directory));
            match rng.u8(0..4) {
                0 => image.flip_bytes(extension + 8..extension + 32, rng),
                1 => image.flip_bytes(directory..directory + 24, rng),
                2 => image.flip_bytes(table..table + 8, rng),
                // Without its bit, the bitmaps are nobody's.
                _ => image.bytes[95] &= !1,
            }
        }
        Damage::Truncated => image.bytes.truncate(end - rng.usize(1..end / 2)),
        Damage::DirtyBit | Damage::CorruptBit => {
            if image.u32_at(4) < 3 {
                return None;
            }
            image.bytes[79] |= if damage == Damage::DirtyBit { 1 } else { 2 };
            let victim = rng.usize(0..image.clusters());
            image.count(victim, Some(rng.u64(0..2)));
        }
        Damage::TableBytes => {
            let place = index(image.metadata(rng));
            image.flip_bytes(place..(place + cluster).min(end), rng);
        }
        Damage::Subclusters => {
            if image.l2_entry() == 8 {
                return None;
            }
            let at = any(&image.l2(), rng)? + 8;
            image.put(at, image.get(at) ^ 1 << rng.u8(0..64));
        }
    }
    Some(image.bytes)
}

/// What qemu-img says.
#[derive(Debug)]
struct Theirs {
    verdict: Verdict,
    json: Value,
    said: String,
}

impl Theirs {
    fn check(path: &std::path::Path, repair: Option<Repair>) -> Self {
        let mut args = vec!["check", "-f", "qcow2", "--output=json"];
        args.extend(match repair {
            None => [].as_slice(),
            Some(Repair::Leaks) => &["-r", "leaks"],
            Some(Repair::All) => &["-r", "all"],
        });
        args.push(text(path));
        let output = run("qemu-img", args);
        let verdict = match output.status.code() {
            Some(0) => Verdict::Clean,
            Some(2) => Verdict::Corrupt,
            Some(3) => Verdict::Leaks,
            _ => Verdict::Failed,
        };
        Self {
            verdict,
            json: serde_json::from_slice(&output.stdout).unwrap_or_default(),
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn figure(&self, name: &str) -> u64 {
        self.json[name].as_u64().unwrap_or(0)
    }

    fn figures(&self) -> [u64; 7] {
        [
            "corruptions",
            "leaks",
            "total-clusters",
            "allocated-clusters",
            "fragmented-clusters",
            "compressed-clusters",
            "image-end-offset",
        ]
        .map(|name| self.figure(name))
    }
}

fn figures(report: &CheckReport) -> [u64; 7] {
    [
        report.corruptions,
        report.leaks,
        report.total_clusters,
        report.allocated_clusters,
        report.fragmented_clusters,
        report.compressed_clusters,
        report.image_end_offset,
    ]
}

fn verdict(report: &CheckReport) -> Verdict {
    match (report.corruptions, report.leaks) {
        (0, 0) => Verdict::Clean,
        (0, _) => Verdict::Leaks,
        _ => Verdict::Corrupt,
    }
}

/// A position in a file of the corpus as one in memory.
fn index(value: u64) -> usize {
    usize::try_from(value).expect("the files are small")
}

/// Why a verdict or a figure of ours may be another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Excuse {
    /// qemu-img gives up (a refcount table entry or a table of snapshots or bitmaps that it cannot read); we report
    /// that as a corruption and go on.
    TheyGiveUp,
    /// A header that contradicts itself: no reader of ours opens such an image, and so neither does the check.
    WeRefuse,
    /// The bit for zeroes means nothing in version 2 and beside subclusters: qemu-img's check is silent about it.
    ZeroBit,
    /// One cluster for two purposes, and the refcount says so: qemu-img takes it for shared data.
    Overlap,
    /// Entries of a damaged table of snapshots are counted in another way.
    SnapshotTable,
    /// qemu-img does not open an image with a bitmap whose description it does not like; we never read bitmaps, and a
    /// writer drops them.
    Bitmap,
}

/// Compares what both found.
fn judge(
    kind: Damage,
    has_zero_bit: bool,
    ours: &Result<CheckReport, Error>,
    theirs: &Theirs,
) -> Result<Option<Excuse>, &'static str> {
    let report = match ours {
        Ok(_) if theirs.verdict == Verdict::Failed && theirs.json.is_null() => {
            // It does not open the image: nothing to compare, but we must not call it good.
            return match ours.as_ref().map(verdict) {
                Ok(Verdict::Corrupt) => Ok(Some(Excuse::TheyGiveUp)),
                _ if kind == Damage::Bitmaps && theirs.said.contains("Bitmap '") => {
                    Ok(Some(Excuse::Bitmap))
                }
                _ => Err("they refuse"),
            };
        }
        Ok(report) => report,
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            return match theirs.verdict {
                Verdict::Failed => Ok(None),
                Verdict::Corrupt => Ok(Some(Excuse::WeRefuse)),
                _ => Err("we refuse"),
            };
        }
        Err(_) => return Err("we fail"),
    };
    let (our, their) = (figures(report), theirs.figures());
    match theirs.verdict {
        Verdict::Failed if report.corruptions > 0 => Ok(Some(Excuse::TheyGiveUp)),
        _ if our == their && verdict(report) == theirs.verdict => Ok(None),
        _ if !has_zero_bit
            && matches!(kind, Damage::L2Zero | Damage::TableBytes)
            && our[0] > their[0]
            && our[1..] == their[1..] =>
        {
            Ok(Some(Excuse::ZeroBit))
        }
        Verdict::Corrupt if kind == Damage::Snapshots && report.corruptions > 0 => {
            Ok(Some(Excuse::SnapshotTable))
        }
        // The snapshot table may lie where it was cut.
        Verdict::Corrupt if kind == Damage::Truncated && our[1..6] == their[1..6] => {
            Ok(Some(Excuse::SnapshotTable))
        }
        _ if our[0] == their[0] + report.overlaps && our[1..] == their[1..] => {
            Ok(Some(Excuse::Overlap))
        }
        _ => Err("another verdict, or other figures"),
    }
}

/// The corpus is the same in every run, so that a verdict of qemu-img's that nobody knew of stops nobody;
/// `SENDENSE_TEST_SEED` makes another one.
fn corpus_seed(test: &str) -> u64 {
    if std::env::var_os("SENDENSE_TEST_SEED").is_some() {
        return seed::seed(test);
    }
    1
}

/// How many images of the corpus are damaged in each way.
const ROUNDS: usize = 1;

#[test]
fn damaged_images_get_qemu_imgs_verdict() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let seed = corpus_seed("damaged_images_get_qemu_imgs_verdict");
    let mut rng = fastrand::Rng::with_seed(seed);
    let folder = Folder::new();
    let path = folder.path("damaged");
    let (mut excuses, mut verdicts) = (BTreeMap::new(), BTreeMap::new());
    for (index, base) in BASES.iter().enumerate() {
        let good = base.make(&mut rng);
        for kind in DAMAGES.into_iter().cycle().take(DAMAGES.len() * ROUNDS) {
            let Some(bytes) = damage(&good, kind, &mut rng) else {
                continue;
            };
            let context = format!("seed={seed} base={index}:{base:?} damage={kind:?}");
            std::fs::write(&path, &bytes).expect("a file");
            let theirs = Theirs::check(&path, None);
            let image = Bytes::new(bytes.clone());
            let has_zero_bit = image.u32_at(4) == 3 && image.l2_entry() == 8;
            let ours = qcow2::check(&MemoryStorage::with_bytes(bytes));
            match judge(kind, has_zero_bit, &ours, &theirs) {
                Ok(None) => *verdicts.entry(theirs.verdict).or_insert(0) += 1,
                Ok(Some(excuse)) => *excuses.entry(excuse).or_insert(0) += 1,
                Err(why) => panic!(
                    "{why}: {context}\nours {ours:?}\ntheirs {:?} {:?}\n{}",
                    theirs.verdict,
                    theirs.figures(),
                    theirs.said
                ),
            }
        }
    }
    eprintln!("equal: {verdicts:?}, excused: {excuses:?}");
    let equal: usize = verdicts.values().sum();
    assert!(equal > 250 && excuses.values().sum::<usize>() < 60);
    assert!(verdicts.len() >= 3, "every kind of verdict: {verdicts:?}");
}

/// What a guest reads, or why it cannot.
fn content(bytes: &[u8]) -> Option<Vec<u8>> {
    let storage = Arc::new(MemoryStorage::with_bytes(bytes.to_vec()));
    let chain = Chain::open(storage, "tip", BackingFormat::Qcow2, &Folder::new()).ok()?;
    let mut read = vec![0; LEN];
    chain.read(0, &mut read).ok()?;
    Some(read)
}

/// Whether qemu-img looks at every image that was repaired, or at some chosen from the seed.
fn whole_corpus() -> bool {
    std::env::var("SENDENSE_CHECK_CORPUS").is_ok_and(|value| value == "all")
}

/// The first byte that a repair wrote and that is none of its business. Its business are refcounts in their blocks, the
/// fields of the header that say where those are and what they are worth, the flags of entries, and what it adds to
/// the file.
fn stray_byte(before: &[u8], after: &[u8]) -> Option<usize> {
    let image = Bytes::new(before.to_vec());
    let table = index(image.get(48));
    let blocks: Vec<usize> = image
        .entries(table, image.u32_at(56) as usize * image.cluster / 8)
        .into_iter()
        .map(|at| index(image.get(at)))
        .collect();
    (0..before.len().max(after.len())).find(|at| {
        let (Some(old), Some(new)) = (before.get(*at), after.get(*at)) else {
            return *at >= after.len();
        };
        let header = (48..60).contains(at) || (72..80).contains(at);
        let flag = at % 8 == 0 && old ^ new == 0x80;
        let count = || {
            blocks
                .iter()
                .any(|block| (*block..block + image.cluster).contains(at))
        };
        old != new && !header && !flag && !count()
    })
}

/// Why an image may be better or worse after our repair than after qemu-img's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    /// qemu-img gives up on entries of the refcount table that are not aligned or have reserved bits, or passes over
    /// them; we write all refcounts anew.
    TheirTable,
    /// One cluster for two purposes: qemu-img counts it twice and takes it for shared data, we go on telling of it.
    Overlap,
    /// qemu-img makes an entry of zeroes of one that is kept for later and not aligned, also where the "table" is data of
    /// the guest; we change no entry.
    TheyZero,
    /// qemu-img makes the file longer until an entry is inside it; we go on telling of it.
    TheyGrow,
    /// Data of the guest lies where refcounts lie: we move the refcounts away, qemu-img goes on telling of it.
    WeMove,
}

/// Compares what qemu-img's check says of the image that qemu-img repaired and of ours.
fn judge_repair(
    kind: Damage,
    theirs: Verdict,
    ours: Verdict,
    after: &CheckReport,
) -> Result<Option<Left>, &'static str> {
    let table = matches!(
        kind,
        Damage::TableUnaligned | Damage::TableReserved | Damage::TableBytes | Damage::TableShared
    );
    match (theirs, ours) {
        _ if theirs == ours => Ok(None),
        (Verdict::Corrupt | Verdict::Failed, Verdict::Clean | Verdict::Leaks) if table => {
            Ok(Some(Left::TheirTable))
        }
        (Verdict::Corrupt, Verdict::Clean | Verdict::Leaks) if kind == Damage::L2ToMetadata => {
            Ok(Some(Left::WeMove))
        }
        // Where we are worse, we must say so.
        _ if after.corruptions == 0 => Err("not repaired, and not told"),
        _ if after.overlaps > 0 => Ok(Some(Left::Overlap)),
        _ if matches!(
            kind,
            Damage::L2Unaligned | Damage::TableBytes | Damage::L1ToData
        ) =>
        {
            Ok(Some(Left::TheyZero))
        }
        _ if matches!(kind, Damage::TableBeyond | Damage::Truncated) => Ok(Some(Left::TheyGrow)),
        _ => Err("another verdict"),
    }
}

#[test]
fn repaired_images_are_as_good_as_qemu_imgs() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let seed = corpus_seed("repaired_images_are_as_good_as_qemu_imgs");
    let mut rng = fastrand::Rng::with_seed(seed);
    let folder = Folder::new();
    let (path, other) = (folder.path("theirs"), folder.path("ours"));
    let (mut same, mut read, mut left) = (0, 0, BTreeMap::new());
    for (index, base) in BASES.iter().enumerate() {
        let good = base.make(&mut rng);
        for kind in DAMAGES {
            let Some(bytes) = damage(&good, kind, &mut rng) else {
                continue;
            };
            let what = [Repair::Leaks, Repair::All][usize::from(rng.u8(0..4) > 0)];
            let context = format!("seed={seed} base={index}:{base:?} damage={kind:?} {what:?}");
            let asked = rng.u8(0..6) == 0 || whole_corpus();
            let storage = MemoryStorage::with_bytes(bytes.clone());
            let Ok(report) = qcow2::repair(&storage, what) else {
                assert!(
                    storage.to_bytes() == bytes,
                    "refused, and written: {context}"
                );
                continue;
            };
            let repaired = storage.to_bytes();
            assert_eq!(stray_byte(&bytes, &repaired), None, "{context}");
            if let Some(before) = content(&bytes) {
                assert!(
                    content(&repaired).as_ref() == Some(&before),
                    "content: {context}"
                );
                read += 1;
            }
            if !asked {
                continue;
            }
            std::fs::write(&path, &bytes).expect("a file");
            std::fs::write(&other, &repaired).expect("a file");
            Theirs::check(&path, Some(what));
            let (theirs, ours) = (Theirs::check(&path, None), Theirs::check(&other, None));
            match judge_repair(kind, theirs.verdict, ours.verdict, &report.after) {
                Ok(None) => same += 1,
                Ok(Some(why)) => *left.entry(why).or_insert(0) += 1,
                Err(why) => panic!(
                    "{why}: {context}\ntheirs {:?} ours {:?} {}\n{report:?}",
                    theirs.verdict, ours.verdict, ours.said
                ),
            }
        }
    }
    eprintln!("the same: {same}, read: {read}, left otherwise: {left:?}");
    assert!(same > 30 && read > 150);
}
