//! Who is measured: plain files, this engine, imago, qcow2-rs, all behind one trait.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use benches::{CLUSTER, chain, create, new_file, options};
use qcow2::format::limits::MIN_WRITEBACK_BYTES;
use qcow2::{Chain, Extent, FileStorage, Image, Storage as _};
use qcow2_rs::dev::{Qcow2Dev, Qcow2DevParams};
use qcow2_rs::sync_io::Qcow2IoSync;
use tokio::runtime::Runtime;

/// A disk that is measured; what it does not have, its maker does not offer.
pub(crate) trait Disk {
    fn read(&mut self, _offset: u64, _into: &mut [u8]) {
        unreachable!("not measured");
    }
    fn write(&mut self, _offset: u64, _data: &[u8]) {
        unreachable!("not measured");
    }
    fn zero(&mut self, _offset: u64, _len_bytes: u64) {
        unreachable!("not measured");
    }
    /// Everything is durable.
    fn flush(&mut self) {
        unreachable!("not measured");
    }
}

/// A disk to make: where, how large, on top of which image in the same folder.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) size_bytes: u64,
    pub(crate) below: Option<Below>,
}

/// The image below, opened once for all rounds, and the same bytes as a raw file.
#[derive(Clone)]
pub(crate) struct Below {
    pub(crate) image: PathBuf,
    pub(crate) chain: Arc<Chain>,
    pub(crate) raw: PathBuf,
}

impl Place {
    fn image(&self) -> Image {
        let name = |below: &Below| {
            let name = below.image.file_name().expect("a file");
            name.to_str().expect("a plain name").to_owned()
        };
        let name = self.below.as_ref().map(name);
        let parent = self.below.as_ref().map(|below| below.chain.clone());
        create(
            &self.path,
            &options(self.size_bytes, name.as_deref()),
            parent,
        )
    }
}

/// Plain system calls of the same pattern.
pub(crate) struct Raw {
    file: File,
    /// With an image below: its bytes, and where the clusters are that were copied up.
    below: Option<(File, HashMap<u64, u64>)>,
}

pub(crate) fn raw(place: &Place) -> Box<dyn Disk> {
    let below = place.below.as_ref().map(|below| {
        let file = File::open(&below.raw).expect("a raw file");
        (file, HashMap::new())
    });
    let file = new_file(&place.path);
    Box::new(Raw { file, below })
}

pub(crate) fn raw_open(path: &Path) -> Box<dyn Disk> {
    let file = File::open(path).expect("a raw file");
    Box::new(Raw { file, below: None })
}

impl Disk for Raw {
    fn read(&mut self, offset: u64, into: &mut [u8]) {
        self.file.read_exact_at(into, offset).expect("a read");
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some((below, copied)) = &mut self.below else {
            return self.file.write_all_at(data, offset).expect("a write");
        };
        let (cluster, inside) = (offset / CLUSTER as u64, offset % CLUSTER as u64);
        if let Some(at) = copied.get(&cluster) {
            return self.file.write_all_at(data, at + inside).expect("a write");
        }
        let at = (copied.len() * CLUSTER) as u64;
        let mut whole = vec![0; CLUSTER];
        // A write of all of it needs nothing from below.
        if data.len() < CLUSTER {
            below
                .read_exact_at(&mut whole, cluster * CLUSTER as u64)
                .expect("a read");
        }
        let inside = usize::try_from(inside).expect("inside of a cluster");
        whole[inside..inside + data.len()].copy_from_slice(data);
        self.file.write_all_at(&whole, at).expect("a write");
        copied.insert(cluster, at);
    }

    fn zero(&mut self, offset: u64, len_bytes: u64) {
        let zeroes = vec![0; usize::try_from(len_bytes).expect("a piece")];
        self.file.write_all_at(&zeroes, offset).expect("zeroes");
    }

    fn flush(&mut self) {
        self.file.sync_data().expect("a sync");
    }
}

/// Plain writes, and early writeback of the large ones, as this engine asks for it: the page cache is paid for sooner.
struct Hinted(FileStorage);

pub(crate) fn raw_hinted(place: &Place) -> Box<dyn Disk> {
    Box::new(Hinted(FileStorage::new(new_file(&place.path))))
}

impl Disk for Hinted {
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.write_at(offset, data).expect("a write");
        if data.len() as u64 >= MIN_WRITEBACK_BYTES {
            self.0.start_writeback(offset, data.len() as u64);
        }
    }
}

impl Disk for Image {
    fn read(&mut self, offset: u64, into: &mut [u8]) {
        Image::read(self, offset, into).expect("a read");
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        Image::write(self, offset, data).expect("a write");
    }

    fn zero(&mut self, offset: u64, len_bytes: u64) {
        self.write_zeroes(offset, len_bytes, false).expect("zeroes");
    }

    fn flush(&mut self) {
        Image::flush(self).expect("a flush");
    }
}

pub(crate) fn ours(place: &Place) -> Box<dyn Disk> {
    Box::new(place.image())
}

/// With a hash of every cluster recorded as it arrives.
pub(crate) fn ours_hashed(place: &Place) -> Box<dyn Disk> {
    let sidecar = new_file(&place.path.with_extension("hashes"));
    let image = place
        .image()
        .with_hashes(Arc::new(FileStorage::new(sidecar)));
    Box::new(image.expect("a sidecar"))
}

impl Disk for Chain {
    fn read(&mut self, offset: u64, into: &mut [u8]) {
        Chain::read(self, offset, into).expect("a read");
    }
}

pub(crate) fn ours_open(tip: &Path) -> Box<dyn Disk> {
    Box::new(chain(tip))
}

/// Plain reads of the same pieces of the same files: what the fragments of a chain cost whoever reads them.
struct Pieces {
    files: Vec<File>,
    extents: Vec<Extent>,
}

/// A chain that has data everywhere, tip first.
pub(crate) fn raw_pieces(paths: &[PathBuf]) -> Box<dyn Disk> {
    let tip = chain(&paths[0]);
    let open = |path: &PathBuf| File::open(path).expect("a layer");
    Box::new(Pieces {
        files: paths.iter().map(open).collect(),
        extents: tip.extents(0, tip.virtual_size_bytes()).expect("a map"),
    })
}

impl Disk for Pieces {
    fn read(&mut self, offset: u64, into: &mut [u8]) {
        let end = offset + into.len() as u64;
        let before = |extent: &Extent| extent.offset + extent.len_bytes <= offset;
        let first = self.extents.partition_point(before);
        let mut rest = into;
        for extent in self.extents[first..]
            .iter()
            .take_while(|it| it.offset < end)
        {
            let from = extent.offset.max(offset);
            let to = end.min(extent.offset + extent.len_bytes);
            let len = usize::try_from(to - from).expect("a piece");
            let (part, after) = rest.split_at_mut(len);
            let at = extent.host_offset.expect("data") + (from - extent.offset);
            let file = &self.files[usize::try_from(extent.depth).expect("a depth")];
            file.read_exact_at(part, at).expect("a read");
            rest = after;
        }
    }
}

/// imago, on an image that this engine has made.
pub(crate) struct Imago(imago::FormatAccess<imago::file::File>);

pub(crate) fn imago(place: &Place) -> Box<dyn Disk> {
    place.image().flush().expect("a flush");
    imago_at(&place.path, true)
}

pub(crate) fn imago_open(tip: &Path) -> Box<dyn Disk> {
    imago_at(tip, false)
}

fn imago_at(path: &Path, write: bool) -> Box<dyn Disk> {
    use imago::FormatDriverBuilder as _;
    let image = imago::qcow2::Qcow2::<imago::file::File>::builder_path(path)
        .write(write)
        .open(imago::PermissiveImplicitOpenGate())
        .expect("imago opens the image");
    Box::new(Imago(imago::FormatAccess::new(image)))
}

/// imago makes an image of its own.
pub(crate) fn imago_create(path: &Path, size_bytes: u64) {
    use imago::qcow2::Qcow2;
    use imago::{
        FormatCreateBuilder as _, FormatDriverBuilder as _, PermissiveImplicitOpenGate,
        Storage as _, StorageOpenOptions,
    };
    drop(new_file(path));
    let options = StorageOpenOptions::new().write(true).filename(path);
    let storage = imago::file::File::open(options).expect("the file");
    let image = Qcow2::<imago::file::File>::create_builder(storage)
        .size(size_bytes)
        .create_open(PermissiveImplicitOpenGate(), |file| {
            Ok(Qcow2::builder(file).write(true))
        })
        .expect("a fresh image");
    drop(image);
}

impl Disk for Imago {
    fn read(&mut self, offset: u64, into: &mut [u8]) {
        self.0.read(into, offset).expect("a read");
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.write(data, offset).expect("a write");
    }

    fn zero(&mut self, offset: u64, len_bytes: u64) {
        self.0.write_zeroes(offset, len_bytes).expect("zeroes");
    }

    fn flush(&mut self) {
        self.0.flush().expect("a flush");
        self.0.sync().expect("a sync");
    }
}

/// qcow2-rs, on an image that this engine has made: it cannot make one on top of another. Its futures stay on one thread;
/// its plain positional IO never waits, so that the runtime only polls.
pub(crate) struct Qcow2Rs {
    runtime: Runtime,
    image: Qcow2Dev<Qcow2IoSync>,
    writable: bool,
}

pub(crate) fn qcow2_rs(place: &Place) -> Box<dyn Disk> {
    place.image().flush().expect("a flush");
    let below = place.below.iter().map(|below| below.image.clone());
    let paths: Vec<_> = std::iter::once(place.path.clone()).chain(below).collect();
    Box::new(qcow2_rs_at(&paths, true))
}

/// A chain, tip first: what stands in a header would be looked for in the working folder.
pub(crate) fn qcow2_rs_open(paths: &[PathBuf]) -> Box<dyn Disk> {
    Box::new(qcow2_rs_at(paths, false))
}

fn qcow2_rs_at(paths: &[PathBuf], writable: bool) -> Qcow2Rs {
    let mut below = None;
    for (depth, path) in paths.iter().enumerate().rev() {
        let read_only = depth > 0 || !writable;
        // Blocks of 512 bytes, default caches, through the page cache.
        let params = Qcow2DevParams::new(9, None, None, read_only, false);
        if depth > 0 {
            params.mark_backing_dev(Some(true));
        }
        let io = Qcow2IoSync::new(path, read_only, false);
        let (mut image, _) = qcow2_rs::utils::qcow2_alloc_dev_sync(path, io, &params)
            .expect("qcow2-rs opens the image");
        if let Some(below) = below.take() {
            image.set_backing_dev(Box::new(below));
        }
        below = Some(image);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let image = below.expect("a chain has a tip");
    runtime
        .block_on(Box::pin(image.qcow2_prep_io()))
        .expect("qcow2-rs loads tables");
    Qcow2Rs {
        runtime,
        image,
        writable,
    }
}

impl Disk for Qcow2Rs {
    fn read(&mut self, offset: u64, into: &mut [u8]) {
        self.runtime
            .block_on(Box::pin(self.image.read_at(into, offset)))
            .expect("a read");
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.runtime
            .block_on(Box::pin(self.image.write_at(data, offset)))
            .expect("a write");
    }

    fn flush(&mut self) {
        let flushed = async {
            self.image.flush_meta().await?;
            self.image.fsync_range(0, usize::MAX).await
        };
        self.runtime.block_on(Box::pin(flushed)).expect("a flush");
    }
}

impl Drop for Qcow2Rs {
    fn drop(&mut self) {
        // It ends the program when it is dropped with changes in memory.
        if self.writable {
            self.flush();
        }
    }
}
