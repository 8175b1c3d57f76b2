//! Any bytes as an image: checked, opened, read, mapped and written; errors, never panics, never unbounded memory.
use std::io;
use std::sync::Arc;

use qcow2::{
    BackingFormat, BackingName, Chain, Error, ErrorKind, Image, MemoryStorage, OpenedBacking,
    Opener, Storage, check,
};

/// Nothing outside the image may be opened.
struct Closed;

impl Opener for Closed {
    fn open_backing(&self, name: &BackingName, _of: &str) -> Result<OpenedBacking, Error> {
        assert!(name.name.len() <= 1023);
        Err(Error::new(ErrorKind::Refused, "no backing file here"))
    }
}

/// A disk with little space: a hostile image may ask for writes far beyond its end, which a file would take as a hole.
#[derive(Debug)]
struct Small(MemoryStorage);

const SPACE: u64 = 16 << 20;

impl Storage for Small {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset.saturating_add(data.len() as u64) > SPACE {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.write_at(offset, data)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.0.len_bytes()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        if len_bytes > SPACE {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.set_len(len_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn start_writeback(&self, offset: u64, len_bytes: u64) {
        self.0.start_writeback(offset, len_bytes);
    }
}

/// One run.
pub fn run(data: &[u8]) {
    let storage = || Arc::new(Small(MemoryStorage::with_bytes(data.to_vec())));
    let _ = check(&*storage());
    let mut buffer = vec![0; 70_000];
    if let Ok(chain) = Chain::open(storage(), "image", BackingFormat::Qcow2, &Closed) {
        let size = chain.virtual_size_bytes();
        for offset in [0, size / 2, size.saturating_sub(70_000)] {
            let len = usize::try_from(size - offset)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let _ = chain.read(offset, &mut buffer[..len]);
            let _ = chain.extents(offset, len as u64);
        }
        assert!(
            chain.read(size, &mut buffer[..1]).is_err(),
            "nothing is beyond the end"
        );
    }
    if let Ok(image) = Image::open(storage(), None) {
        let size = image.virtual_size_bytes();
        for offset in [0, size / 3] {
            let len = usize::try_from(size - offset)
                .unwrap_or(usize::MAX)
                .min(5000);
            let _ = image.write(offset, &buffer[..len]);
            let _ = image.write(offset, &vec![7; len]);
            let _ = image.write_zeroes(offset, len as u64 / 2, false);
        }
        let _ = image.flush();
    }
}
