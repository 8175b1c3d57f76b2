//! Small valid images as bytes, and the places in them where lies are told.

use std::sync::Arc;

use qcow2::format::extension::{self, BITMAPS};
use qcow2::format::feature::INCOMPATIBLE_EXTENDED_L2;
use qcow2::format::geometry::HostOffset;
use qcow2::format::header::{AUTOCLEAR_AT, Header, INCOMPATIBLE_AT, PREFIX_BYTES};
use qcow2::format::wire;
use qcow2::{
    BackingFormat, BackingName, Chain, CompressionType, CreateOptions, Error, ErrorKind, Image,
    MemoryStorage, OpenedBacking, Opener, Storage,
};

pub(crate) const COPIED: u64 = 1 << 63;
pub(crate) const ENTRY_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Nothing but the image itself may be opened.
pub(crate) struct Closed;

impl Opener for Closed {
    fn open_backing(&self, name: &BackingName, _of: &str) -> Result<OpenedBacking, Error> {
        Err(Error::new(
            ErrorKind::Refused,
            format!("no file may be opened: name={}", name.name),
        ))
    }
}

pub(crate) fn open_chain(storage: Arc<dyn Storage>) -> Result<Chain, Error> {
    Chain::open(storage, "image", BackingFormat::Qcow2, &Closed)
}

/// The bytes of an image; all fields are addressed by where they are.
#[derive(Clone)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Bytes {
    /// A version 3 image with data and zero clusters; its disk has eight L2 tables with clusters of 512 bytes.
    pub(crate) fn new(cluster_size: u32) -> Self {
        let span = u64::from(cluster_size) * u64::from(cluster_size) / 8;
        let cluster = u64::from(cluster_size);
        // The L2 table of a large cluster describes more than a test can hold.
        let size = (8 * span).min((64 * cluster).max(256 << 10));
        let (storage, image) = Self::create(cluster_size, size, 3);
        Self::fill(&image, &[0, 1, 2, size / cluster - 2], cluster);
        image.write_zeroes(cluster, cluster, true).unwrap();
        image.flush().unwrap();
        Self(storage.to_bytes())
    }

    /// As [`Bytes::new`], of version 2: without zero clusters.
    pub(crate) fn version_2(cluster_size: u32) -> Self {
        let cluster = u64::from(cluster_size);
        let (storage, image) = Self::create(cluster_size, cluster * cluster, 2);
        Self::fill(&image, &[0, 1, 2, cluster - 2], cluster);
        image.flush().unwrap();
        Self(storage.to_bytes())
    }

    /// Compressed clusters that share clusters of the file, between plain ones.
    pub(crate) fn compressed(cluster_size: u32, compression: CompressionType) -> Self {
        let options = CreateOptions {
            cluster_size_bytes: cluster_size,
            compression,
            ..CreateOptions::new(32 * u64::from(cluster_size))
        };
        let storage = Arc::new(MemoryStorage::new());
        let image = Image::create(storage.clone(), &options, None).unwrap();
        let cluster = u64::from(cluster_size);
        for number in 0..20 {
            let byte = u8::try_from(number + 1).unwrap();
            let data = vec![byte; usize::try_from(cluster).unwrap()];
            if number % 5 == 4 {
                image.write(number * cluster, &data).unwrap();
            } else {
                image.write_compressed(number * cluster, &data).unwrap();
            }
        }
        image.flush().unwrap();
        Self(storage.to_bytes())
    }

    /// As [`Bytes::new`], with entries of 16 bytes: every subcluster is as its cluster was.
    pub(crate) fn extended() -> Self {
        let mut bytes = Self::new(16 << 10);
        let count = bytes.header().geometry.guest_clusters();
        let tables: Vec<u64> = (0..u64::from(bytes.header().l1_entries))
            .map(|index| bytes.l2_at(index))
            .collect();
        assert_eq!(tables.len(), 1, "one table describes the disk");
        for number in (0..count).rev() {
            let entry = bytes.u64(tables[0] + number * 8);
            let bitmap = match entry {
                0 => 0,
                zero if zero & 1 == 1 => u64::from(u32::MAX) << 32,
                _ => u64::from(u32::MAX),
            };
            bytes.put_u64(tables[0] + number * 16, entry & !1);
            bytes.put_u64(tables[0] + number * 16 + 8, bitmap);
        }
        bytes.put_u64(INCOMPATIBLE_AT, INCOMPATIBLE_EXTENDED_L2);
        bytes
    }

    /// An empty image of 64 KiB over a backing file.
    pub(crate) fn over(name: &str, format: Option<BackingFormat>) -> Self {
        let base = Arc::new(MemoryStorage::new());
        let parent = Chain::open(base, "base", BackingFormat::Raw, &Closed).unwrap();
        let options = CreateOptions {
            cluster_size_bytes: 512,
            backing: Some(BackingName {
                name: name.into(),
                format,
            }),
            ..CreateOptions::new(64 << 10)
        };
        let storage = Arc::new(MemoryStorage::new());
        Image::create(storage.clone(), &options, Some(Arc::new(parent))).unwrap();
        Self(storage.to_bytes())
    }

    fn create(cluster_size: u32, size: u64, version: u32) -> (Arc<MemoryStorage>, Image) {
        let options = CreateOptions {
            cluster_size_bytes: cluster_size,
            version,
            ..CreateOptions::new(size)
        };
        let storage = Arc::new(MemoryStorage::new());
        let image = Image::create(storage.clone(), &options, None).unwrap();
        (storage, image)
    }

    fn fill(image: &Image, clusters: &[u64], cluster_size: u64) {
        for number in clusters {
            let byte = u8::try_from(number % 200 + 1).unwrap();
            let data = vec![byte; usize::try_from(cluster_size).unwrap()];
            image.write(number * cluster_size, &data).unwrap();
        }
    }

    pub(crate) fn header(&self) -> Header {
        let mut prefix = [0; PREFIX_BYTES];
        let len = self.0.len().min(PREFIX_BYTES);
        prefix[..len].copy_from_slice(&self.0[..len]);
        Header::parse(&prefix).unwrap()
    }

    pub(crate) fn storage(&self) -> Arc<MemoryStorage> {
        Arc::new(MemoryStorage::with_bytes(self.0.clone()))
    }

    pub(crate) fn cluster_size(&self) -> u64 {
        self.header().geometry.cluster_size()
    }

    pub(crate) fn u64(&self, at: u64) -> u64 {
        wire::u64_at(&self.0, usize::try_from(at).unwrap())
    }

    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap();
        if self.0.len() < at + bytes.len() {
            self.0.resize(at + bytes.len(), 0);
        }
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn put_u64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    pub(crate) fn l1_at(&self) -> u64 {
        self.header().l1_offset.0
    }

    pub(crate) fn table_at(&self) -> u64 {
        self.header().refcount_table_offset.0
    }

    /// Where a refcount block is.
    pub(crate) fn block_at(&self, index: u64) -> u64 {
        self.u64(self.table_at() + index * 8)
    }

    /// Where an L2 table is.
    pub(crate) fn l2_at(&self, l1_index: u64) -> u64 {
        self.u64(self.l1_at() + l1_index * 8) & ENTRY_OFFSET
    }

    /// Where the L2 entry of a guest cluster is.
    pub(crate) fn entry_at(&self, cluster: u64) -> u64 {
        let per_table = self.cluster_size() / 8;
        self.l2_at(cluster / per_table) + cluster % per_table * 8
    }

    /// Where the data of a guest cluster is.
    pub(crate) fn data_at(&self, cluster: u64) -> u64 {
        self.u64(self.entry_at(cluster)) & ENTRY_OFFSET
    }

    /// Where the 16-bit refcount of the cluster at `offset` is.
    pub(crate) fn refcount_at(&self, offset: u64) -> u64 {
        let cluster = offset / self.cluster_size();
        let per_block = self.cluster_size() / 2;
        self.block_at(cluster / per_block) + cluster % per_block * 2
    }

    pub(crate) fn set_refcount(&mut self, offset: u64, value: u16) {
        self.put(self.refcount_at(offset), &value.to_be_bytes());
    }

    fn refcount(&self, offset: u64) -> u16 {
        let at = usize::try_from(self.refcount_at(offset)).unwrap();
        wire::u16_at(&self.0, at)
    }

    /// A new cluster at the end of the file, counted once.
    fn append(&mut self, content: &[u8]) -> u64 {
        let size = self.cluster_size();
        let at = (self.0.len() as u64).next_multiple_of(size);
        self.0.resize(usize::try_from(at + size).unwrap(), 0);
        self.put(at, content);
        self.set_refcount(at, 1);
        at
    }

    /// Takes an internal snapshot, as QEMU does: a copy of the L1 table, everything below counted once more.
    pub(crate) fn with_snapshot(mut self) -> Self {
        let header = self.header();
        let l1_bytes = u64::from(header.l1_entries) * 8;
        assert!(l1_bytes <= self.cluster_size(), "one cluster of L1 table");
        for index in 0..u64::from(header.l1_entries) {
            let entry_at = self.l1_at() + index * 8;
            let l2 = self.l2_at(index);
            if l2 == 0 {
                continue;
            }
            self.put_u64(entry_at, l2);
            self.set_refcount(l2, self.refcount(l2) + 1);
            for at in (l2..l2 + self.cluster_size()).step_by(8) {
                let entry = self.u64(at);
                if entry & ENTRY_OFFSET != 0 {
                    self.put_u64(at, entry & !COPIED);
                    let data = entry & ENTRY_OFFSET;
                    self.set_refcount(data, self.refcount(data) + 1);
                }
            }
        }
        let start = usize::try_from(header.l1_offset.0).unwrap();
        let l1 = self.0[start..start + usize::try_from(l1_bytes).unwrap()].to_vec();
        let l1_at = self.append(&l1);
        let mut entry = l1_at.to_be_bytes().to_vec();
        entry.extend(header.l1_entries.to_be_bytes());
        entry.extend([0, 1, 0, 4]);
        entry.resize(36, 0);
        // 16 bytes of extra data as version 3 has them, the id "1" and the name "kept".
        entry.extend(16_u32.to_be_bytes());
        entry.extend(0_u64.to_be_bytes());
        entry.extend(header.geometry.virtual_size().to_be_bytes());
        entry.extend(b"1kept");
        entry.resize(entry.len().next_multiple_of(8), 0);
        let table_at = self.append(&entry);
        self.put(60, &1_u32.to_be_bytes());
        self.put_u64(64, table_at);
        self
    }

    /// Adds a persistent bitmap that is valid: a directory, a table and one cluster of bits.
    pub(crate) fn with_bitmap(mut self) -> Self {
        let bits = self.append(&[0xff; 16]);
        let table = self.append(&bits.to_be_bytes());
        let mut entry = table.to_be_bytes().to_vec();
        entry.extend(1_u32.to_be_bytes());
        entry.extend(2_u32.to_be_bytes());
        entry.extend([1, 16, 0, 1]);
        entry.extend(0_u32.to_be_bytes());
        entry.extend(b"b");
        entry.resize(entry.len().next_multiple_of(8), 0);
        let directory = self.append(&entry);
        let mut fields = 1_u32.to_be_bytes().to_vec();
        fields.extend(0_u32.to_be_bytes());
        fields.extend((entry.len() as u64).to_be_bytes());
        fields.extend(directory.to_be_bytes());
        self.put(112, &extension::encode(BITMAPS, &fields));
        self.put_u64(AUTOCLEAR_AT, 1);
        self
    }

    pub(crate) fn snapshots_at(&self) -> u64 {
        self.header().snapshots_offset.0
    }

    pub(crate) fn snapshot_l1_at(&self) -> u64 {
        self.u64(self.snapshots_at())
    }

    /// Where the bitmap directory is.
    pub(crate) fn directory_at(&self) -> u64 {
        self.u64(112 + 8 + 16)
    }

    pub(crate) fn is_valid(&self) -> bool {
        qcow2::check(&*self.storage()).unwrap().is_clean()
    }
}

/// Everything the image's disk holds, or an error.
pub(crate) fn read_all(storage: Arc<dyn Storage>) -> Result<Vec<u8>, Error> {
    let chain = open_chain(storage)?;
    let mut disk = vec![0; usize::try_from(chain.virtual_size_bytes()).unwrap()];
    chain.read(0, &mut disk)?;
    Ok(disk)
}

#[test]
fn the_samples_are_valid() {
    for size in [512, 4096, 65_536] {
        assert!(Bytes::new(size).is_valid(), "version 3 size={size}");
    }
    for bytes in [
        Bytes::version_2(512),
        Bytes::new(512).with_snapshot(),
        Bytes::new(512).with_bitmap(),
        Bytes::new(512).with_snapshot().with_bitmap(),
    ] {
        assert!(bytes.is_valid(), "{:?}", qcow2::check(&*bytes.storage()));
        assert_eq!(HostOffset(bytes.l1_at()), bytes.header().l1_offset);
    }
}
