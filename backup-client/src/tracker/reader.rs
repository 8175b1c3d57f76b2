//! Reading a state: verified as a whole first, then hash by hash in order.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::format::{BlockHash, HASH_BYTES, HEADER_BYTES, StateHeader, TRAILER_BYTES};
use crate::limits::WINDOW_BYTES;

/// A state file whose checksum is right.
#[derive(Debug)]
pub(crate) struct State {
    header: StateHeader,
    file: File,
}

impl State {
    /// Opens and verifies the whole file, streaming it. `Ok(None)` when there is none.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, String> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("cannot open path={}: {error}", path.display())),
        };
        let header = verify(&mut file).map_err(|why| format!("{why} path={}", path.display()))?;
        Ok(Some(Self { header, file }))
    }

    pub(crate) fn header(&self) -> &StateHeader {
        &self.header
    }

    /// The hashes from the first block on.
    ///
    /// # Errors
    /// Any error of the file.
    pub(crate) fn into_hashes(mut self) -> io::Result<HashReader> {
        self.file.seek(SeekFrom::Start(HEADER_BYTES as u64))?;
        Ok(HashReader {
            hashes: BufReader::with_capacity(WINDOW_BYTES, self.file),
        })
    }
}

fn verify(file: &mut File) -> Result<StateHeader, String> {
    let io = |error: io::Error| format!("cannot read: {error}");
    let len_bytes = file.metadata().map_err(io)?.len();
    if len_bytes < (HEADER_BYTES + TRAILER_BYTES) as u64 {
        return Err(format!("too short len_bytes={len_bytes}"));
    }
    let mut head = [0; HEADER_BYTES];
    file.read_exact(&mut head).map_err(io)?;
    let header = StateHeader::decode(&head)?;
    if header.file_len_bytes() != Some(len_bytes) {
        return Err(format!(
            "its length does not fit its header len_bytes={len_bytes} disk_bytes={}",
            header.size_bytes
        ));
    }

    let mut checksum = blake3::Hasher::new();
    checksum.update(&head);
    let mut left = len_bytes - (HEADER_BYTES + TRAILER_BYTES) as u64;
    let mut buffer = vec![0; WINDOW_BYTES];
    while left > 0 {
        let step = usize::try_from(left).map_or(WINDOW_BYTES, |left| left.min(WINDOW_BYTES));
        file.read_exact(&mut buffer[..step]).map_err(io)?;
        checksum.update(&buffer[..step]);
        left -= step as u64;
    }
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact(&mut trailer).map_err(io)?;
    if checksum.finalize() != blake3::Hash::from_bytes(trailer) {
        return Err("its checksum is wrong".to_owned());
    }
    Ok(header)
}

/// The hashes of a state in the order of the blocks.
#[derive(Debug)]
pub(crate) struct HashReader {
    hashes: BufReader<File>,
}

impl HashReader {
    /// The hash of the next block; the caller asks once per block of the header's size.
    ///
    /// # Errors
    /// Any error of the file.
    pub(crate) fn next_hash(&mut self) -> io::Result<BlockHash> {
        let mut hash = [0; HASH_BYTES];
        self.hashes.read_exact(&mut hash)?;
        Ok(hash)
    }
}
