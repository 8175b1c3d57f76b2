//! What the most hostile images take of memory, counted by the allocator. One test: it counts the whole process.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is the report; figures are printed"
)]

use std::alloc::System;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use cap::Cap;
use qcow2::format::compression::CompressionType;
use qcow2::format::extension::{self, BITMAPS};
use qcow2::format::geometry::{Geometry, HostOffset};
use qcow2::format::header::Header;
use qcow2::format::limits::{MAX_CHAIN_DEPTH, MAX_CHAIN_MEMORY_BYTES, MAX_IMAGE_MEMORY_BYTES};
use qcow2::{
    BackingFormat, BackingName, Chain, CreateOptions, Error, FileStorage, Image, OpenedBacking,
    Opener,
};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const MIB: u64 = 1 << 20;

/// What the process takes at most from now on must stay below `bound` over what it takes now.
struct Budget {
    idle: u64,
    bound: u64,
}

impl Budget {
    fn new(bound: u64) -> Self {
        Self {
            idle: ALLOCATOR.allocated() as u64,
            bound,
        }
    }

    fn check(&self, what: &str, run: impl FnOnce()) {
        let before = ALLOCATOR.max_allocated() as u64;
        run();
        let most = ALLOCATOR.max_allocated() as u64;
        let over = most - self.idle;
        eprintln!("{what}: at most {} KiB over idle", over / 1024);
        assert!(
            most == before || over <= self.bound,
            "{what}: {over} bytes over idle"
        );
    }
}

/// A file of holes.
struct Sparse {
    file: File,
    cluster: u64,
}

impl Sparse {
    fn new(cluster: u64, clusters: u64) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(clusters * cluster).unwrap();
        Self { file, cluster }
    }

    fn put(&self, cluster: u64, at: u64, bytes: &[u8]) {
        self.file
            .write_all_at(bytes, cluster * self.cluster + at)
            .unwrap();
    }

    /// Writes a table of `count` entries, piece by piece.
    fn put_table(&self, cluster: u64, count: u64, entry: impl Fn(u64) -> u64) {
        let per_piece = 8192;
        for first in (0..count).step_by(per_piece) {
            let end = count.min(first + per_piece as u64);
            let bytes: Vec<u8> = (first..end)
                .flat_map(|index| entry(index).to_be_bytes())
                .collect();
            self.put(cluster, first * 8, &bytes);
        }
    }

    fn storage(&self) -> Arc<FileStorage> {
        Arc::new(FileStorage::new(self.file.try_clone().unwrap()))
    }
}

/// Where the parts of a hostile image begin, as cluster numbers.
struct Hostile {
    cluster: u64,
    virtual_size: u64,
    l1_entries: u64,
    table_clusters: u64,
    snapshots: u64,
    bitmaps: u64,
    bitmap_entry_bytes: u64,
    /// Refcount blocks that exist, and L1 entries from the end that name an L2 table.
    blocks: u64,
    l2_tables: u64,
}

impl Hostile {
    fn build(&self) -> Sparse {
        let clusters_for = |bytes: u64| bytes.div_ceil(self.cluster);
        let table_at = 1;
        let l1_at = table_at + self.table_clusters;
        let snapshots_at = l1_at + clusters_for(self.l1_entries * 8);
        let directory_at = snapshots_at + clusters_for(self.snapshots * 40) + 1;
        let l2_at = directory_at + clusters_for(self.bitmaps * self.bitmap_entry_bytes) + 1;
        let blocks_at = l2_at + self.l2_tables;
        let snapshot_l1_at = blocks_at + self.blocks;
        let bitmap_tables_at = snapshot_l1_at + self.snapshots;
        let file = Sparse::new(self.cluster, bitmap_tables_at + self.bitmaps + 1);
        let offset = |cluster: u64| HostOffset(cluster * self.cluster);
        let bits = self.cluster.trailing_zeros();
        let header = Header {
            version: 3,
            geometry: Geometry::new(bits, 4, self.virtual_size).unwrap(),
            backing_name: None,
            l1_entries: u32::try_from(self.l1_entries).unwrap(),
            l1_offset: offset(l1_at),
            refcount_table_offset: offset(table_at),
            refcount_table_clusters: u32::try_from(self.table_clusters).unwrap(),
            snapshot_count: u32::try_from(self.snapshots).unwrap(),
            snapshots_offset: offset(snapshots_at),
            incompatible: 0,
            compatible: 0,
            autoclear: 1,
            header_len: 112,
            compression: CompressionType::Zlib,
        };
        file.put(0, 0, &header.encode());
        let mut fields = u32::try_from(self.bitmaps).unwrap().to_be_bytes().to_vec();
        fields.extend([0; 4]);
        fields.extend((self.bitmaps * self.bitmap_entry_bytes).to_be_bytes());
        fields.extend(offset(directory_at).0.to_be_bytes());
        file.put(0, 112, &extension::encode(BITMAPS, &fields));
        file.put_table(table_at, self.blocks, |index| offset(blocks_at + index).0);
        let first = self.l1_entries - self.l2_tables;
        file.put_table(l1_at, self.l1_entries, |index| {
            index
                .checked_sub(first)
                .map_or(0, |index| offset(l2_at + index).0)
        });
        for index in 0..self.snapshots {
            let mut entry = offset(snapshot_l1_at + index).0.to_be_bytes().to_vec();
            entry.extend(1_u32.to_be_bytes());
            file.put(snapshots_at, index * 40, &entry);
        }
        for index in 0..self.bitmaps {
            let mut entry = offset(bitmap_tables_at + index).0.to_be_bytes().to_vec();
            entry.extend(1_u32.to_be_bytes());
            entry.extend([0; 6]);
            entry.extend(
                u16::try_from(self.bitmap_entry_bytes - 24)
                    .unwrap()
                    .to_be_bytes(),
            );
            file.put(directory_at, index * self.bitmap_entry_bytes, &entry);
        }
        file
    }
}

/// Compressed clusters of one length, more than are remembered once they are inflated.
fn write_compressed(image: &Image, start: u64, cluster: u64) {
    for number in 0..COMPRESSED_BYTES / cluster {
        let data = vec![1; usize::try_from(cluster).unwrap()];
        let at = start + number * cluster;
        image.write_compressed(at, &data).unwrap();
    }
}

/// One byte of each of them.
fn inflate(cluster: u64, read: impl Fn(u64, &mut [u8]) -> Result<(), Error>, start: u64) {
    for number in 0..COMPRESSED_BYTES / cluster {
        read(start + number * cluster, &mut [0]).unwrap();
    }
}

const COMPRESSED_BYTES: u64 = 16 * MIB;

/// Every table at its limit, every cluster at its largest: opened, read and written.
fn largest_clusters(budget: &Budget) {
    let mut hostile = Hostile {
        cluster: 2 * MIB,
        virtual_size: 1 << 61,
        l1_entries: 4 << 20,
        table_clusters: 4,
        snapshots: 65_535,
        bitmaps: 65_535,
        bitmap_entry_bytes: 32,
        blocks: 1 << 20,
        l2_tables: (4 << 20) - 100,
    };
    let file = hostile.build();
    budget.check("all tables full", || {
        let image = Image::open(file.storage(), None).unwrap();
        assert!(image.write(0, &[1; 512]).is_err(), "no room for a cluster");
    });
    drop(file);
    hostile.blocks = 60;
    let file = hostile.build();
    let span = 512 << 30;
    budget.check("large clusters", || {
        let image = Image::open(file.storage(), None).unwrap();
        write_compressed(&image, 41 * span, 2 * MIB);
        inflate(2 * MIB, |at, into| image.read(at, into), 41 * span);
        for number in 0..40 {
            image.write(number * span + 512, &[1; 512]).unwrap();
            image
                .read((4 << 20) / 2 * span + number * span, &mut [0; 512])
                .unwrap();
        }
        image.write_zeroes(0, 3 * span, false).unwrap();
        image.flush().unwrap();
    });
    budget.check("a chain on large clusters", || {
        let chain = Chain::open(file.storage(), "tip", BackingFormat::Qcow2, &Never).unwrap();
        inflate(2 * MIB, |at, into| chain.read(at, into), 41 * span);
        for number in 0..40 {
            chain
                .read((1 << 20) * span + number * span, &mut [0; 512])
                .unwrap();
        }
    });
}

/// Every cluster at its smallest: as many tables and blocks as there can be, written in no order, freed again.
fn smallest_clusters(budget: &Budget) {
    let file = Sparse::new(512, 0);
    let size = 128 << 30;
    budget.check("small clusters", || {
        let options = CreateOptions {
            cluster_size_bytes: 512,
            ..CreateOptions::new(size)
        };
        let image = Image::create(file.storage(), &options, None).unwrap();
        let span = 64 * 512;
        for number in 0..30_000 {
            image.write(number * 137 * span % size, &[1; 512]).unwrap();
        }
        for number in 0..30_000 {
            image
                .write_zeroes(number * 137 * span % size, 512, false)
                .unwrap();
        }
        image.flush().unwrap();
    });
}

/// Directories of snapshots and bitmaps that are as long as they may be: opened and checked.
fn longest_directories(budget: &Budget) {
    let hostile = Hostile {
        cluster: 512,
        virtual_size: 128 << 30,
        l1_entries: 4 << 20,
        table_clusters: 16_384,
        snapshots: 65_535,
        bitmaps: 65_535,
        bitmap_entry_bytes: 1000,
        blocks: 10_000,
        l2_tables: 10_000,
    };
    let file = hostile.build();
    budget.check("long directories, opened", || {
        Image::open(file.storage(), None).unwrap();
    });
    budget.check("long directories, checked", || {
        let report = qcow2::check(&*file.storage()).unwrap();
        assert!(report.corruptions > 10_000, "nothing is counted");
    });
}

/// Opens one file again and again under other names.
struct Same(Arc<FileStorage>);

impl Opener for Same {
    fn open_backing(&self, _: &BackingName, of: &str) -> Result<OpenedBacking, Error> {
        let depth: usize = of.parse().unwrap();
        let format = if depth + 2 < MAX_CHAIN_DEPTH {
            BackingFormat::Qcow2
        } else {
            BackingFormat::Raw
        };
        Ok(OpenedBacking {
            storage: self.0.clone(),
            identity: (depth + 1).to_string(),
            format,
        })
    }
}

/// What one L2 table of 64 KiB describes.
const SPAN: u64 = 8192 * 65_536;

fn map(chain: &Chain, spans: u64) {
    for span in 0..spans {
        let extents = chain.extents(span * SPAN, SPAN).unwrap();
        assert_eq!(extents.len(), 8192);
    }
}

struct Never;

impl Opener for Never {
    fn open_backing(&self, name: &BackingName, _: &str) -> Result<OpenedBacking, Error> {
        panic!("nothing below: {name:?}")
    }
}

/// As many layers as there may be, every other cluster in each of them, more extents than are remembered.
fn deepest_chain(budget: &Budget) {
    let file = Sparse::new(65_536, 0);
    let base = Sparse::new(512, 1);
    let parent = Chain::open(base.storage(), "b", BackingFormat::Raw, &Never).unwrap();
    let options = CreateOptions {
        backing: Some(BackingName {
            name: "below".into(),
            format: None,
        }),
        ..CreateOptions::new(91 * SPAN)
    };
    let image = Image::create(file.storage(), &options, Some(Arc::new(parent))).unwrap();
    write_compressed(&image, 90 * SPAN, 65_536);
    image.flush().unwrap();
    drop(image);
    let end = file.file.metadata().unwrap().len() / 65_536 + 1;
    // One L2 table for all of the disk that is not compressed: every other cluster is the same cluster of the file.
    let mut field = [0; 8];
    file.file.read_exact_at(&mut field, 40).unwrap();
    let l1_at = u64::from_be_bytes(field) / 65_536;
    file.put_table(l1_at, 90, |_| end * 65_536);
    file.put_table(end, 8192, |index| index % 2 * (end + 1) * 65_536);
    file.put(end + 1, 0, &[7; 65_536]);
    let opener = Same(file.storage());
    budget.check("the deepest chain", || {
        let chain = Chain::open(file.storage(), "0", BackingFormat::Qcow2, &opener).unwrap();
        assert_eq!(chain.layers().len(), MAX_CHAIN_DEPTH);
        inflate(65_536, |at, into| chain.read(at, into), 90 * SPAN);
        map(&chain, 3);
    });
    budget.check("more extents than are kept", || {
        let chain = Chain::open(file.storage(), "254", BackingFormat::Qcow2, &opener).unwrap();
        assert_eq!(chain.layers().len(), 2);
        inflate(65_536, |at, into| chain.read(at, into), 90 * SPAN);
        map(&chain, 90);
    });
}

#[test]
fn the_most_hostile_images_stay_within_the_bound() {
    deepest_chain(&Budget::new(MAX_CHAIN_MEMORY_BYTES));
    smallest_clusters(&Budget::new(MAX_IMAGE_MEMORY_BYTES));
    longest_directories(&Budget::new(MAX_IMAGE_MEMORY_BYTES));
    largest_clusters(&Budget::new(MAX_IMAGE_MEMORY_BYTES));
}
