//! Any operations on a valid image with any lies in it: errors, never panics, never a write after a refusal.
//!
//! The input is a script: one byte for the sample, one for the number of lies, six bytes for each lie, then six bytes
//! for each operation.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qcow2::{
    BackingFormat, BackingName, Chain, CreateOptions, Error, ErrorKind, Image, MemoryStorage,
    OpenedBacking, Opener, Seal, Storage, check,
};

const SIZE: u64 = 64 << 10;
/// Bytes that the file may grow to: a lie may ask for more than there is memory.
const SPACE: u64 = 4 << 20;

/// Nothing outside the image may be opened.
struct Closed;

impl Opener for Closed {
    fn open_backing(&self, _: &BackingName, _of: &str) -> Result<OpenedBacking, Error> {
        Err(Error::new(ErrorKind::Refused, "no backing file here"))
    }
}

/// A small disk that counts what is written to it.
#[derive(Debug)]
struct Counted {
    inner: MemoryStorage,
    writes: AtomicU64,
}

impl Storage for Counted {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset.saturating_add(data.len() as u64) > SPACE {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.inner.write_at(offset, data)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.inner.len_bytes()
    }

    fn set_len(&self, _len_bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn start_writeback(&self, _offset: u64, _len_bytes: u64) {}
}

/// Runs a script.
pub fn run(data: &[u8]) {
    let [sample, lies, script @ ..] = data else {
        return;
    };
    let mut bytes = make(*sample);
    let (lies, operations) = script.split_at((usize::from(*lies % 8) * 6).min(script.len()));
    for lie in lies.chunks_exact(6) {
        tell(&mut bytes, lie);
    }
    let storage = Arc::new(Counted {
        inner: MemoryStorage::with_bytes(bytes),
        writes: AtomicU64::new(0),
    });
    let _ = check(&*storage);
    read(&storage);
    if let Ok(image) = Image::open(storage.clone(), None) {
        operate(&image, &storage, operations);
    } else {
        assert_eq!(storage.writes.load(Ordering::Relaxed), 0, "refused");
    }
    let _ = check(&*storage);
    read(&storage);
}

/// A valid image with some data, in clusters of 512 or 1024 bytes.
fn make(sample: u8) -> Vec<u8> {
    let cluster = 512 << (sample & 1);
    let options = CreateOptions {
        cluster_size_bytes: cluster,
        version: 2 + u32::from(sample >> 1 & 1),
        refcount_bits: 16,
        ..CreateOptions::new(SIZE)
    };
    let storage = Arc::new(MemoryStorage::new());
    let image = Image::create(storage.clone(), &options, None).expect("a fresh image");
    image.write(0, &[7; 3000]).expect("a write");
    image.write(SIZE - 900, &[8; 900]).expect("a write");
    if options.version == 3 {
        image.write_zeroes(1024, 1024, true).expect("zeroes");
    }
    image.flush().expect("a flush");
    drop(image);
    storage.to_bytes()
}

/// Changes a byte, or an entry of eight bytes into something that looks like one.
fn tell(bytes: &mut Vec<u8>, lie: &[u8]) {
    let at = usize::from(u16::from_le_bytes([lie[1], lie[2]])) % bytes.len();
    let value = u64::from(u16::from_le_bytes([lie[3], lie[4]]));
    let flags = u64::from(lie[5] & 3) << 62 | u64::from(lie[5] >> 2 & 1);
    let entry = at / 8 * 8;
    match lie[0] % 5 {
        0 => bytes[at] ^= 1 << (value % 8),
        1 => bytes[at] = lie[3],
        2 => bytes.truncate(at.max(1)),
        // One of the first clusters, which are the metadata.
        3 if entry + 8 <= bytes.len() => {
            let raw = (value % 32) << 9 | flags;
            bytes[entry..entry + 8].copy_from_slice(&raw.to_be_bytes());
        }
        _ if entry + 8 <= bytes.len() => {
            let raw = value << (lie[5] >> 3) | flags;
            bytes[entry..entry + 8].copy_from_slice(&raw.to_be_bytes());
        }
        _ => {}
    }
}

fn read(storage: &Arc<Counted>) {
    let Ok(chain) = Chain::open(storage.clone(), "image", BackingFormat::Qcow2, &Closed) else {
        return;
    };
    let mut buffer = vec![0; 4096];
    let size = chain.virtual_size_bytes().min(SIZE);
    for offset in (0..size).step_by(buffer.len()) {
        let len = (size - offset).min(buffer.len() as u64);
        let _ = chain.read(offset, &mut buffer[..usize::try_from(len).unwrap_or(0)]);
        let _ = chain.extents(offset, len);
    }
}

fn operate(image: &Image, storage: &Arc<Counted>, operations: &[u8]) {
    let size = image.virtual_size_bytes().min(SIZE);
    for operation in operations.chunks_exact(6).take(100) {
        let offset = u64::from(u16::from_le_bytes([operation[1], operation[2]])).min(size);
        let len = u64::from(u16::from_le_bytes([operation[3], operation[4]]) % 4096);
        let len = len.min(size - offset);
        let data = vec![operation[5]; usize::try_from(len).unwrap_or(0)];
        let result = match operation[0] % 8 {
            0 => image.flush(),
            1 => image.write_zeroes(offset, len, false),
            2 => image.write_zeroes(offset, len, true),
            3 => image.read(offset, &mut data.clone()),
            4 => image.extents(offset, len).map(drop),
            5 if operation[5] == 0 => image.seal(&Seal::default()),
            _ => image.write(offset, &data),
        };
        let fenced = |error: &Error| error.to_string().contains("takes no more writes");
        if result.as_ref().is_err_and(fenced) {
            let before = storage.writes.load(Ordering::Relaxed);
            assert!(image.flush().is_err() && image.write(0, &[1]).is_err());
            assert_eq!(storage.writes.load(Ordering::Relaxed), before, "fenced");
        }
    }
    let _ = image.flush();
}
