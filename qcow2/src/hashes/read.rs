//! Reading a sidecar: nothing in it is believed before its digest was.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, corrupt};
use crate::format::digest::Digest;
use crate::format::geometry::{to_u64, to_usize};
use crate::format::limits::HASH_DIRECTORY_PIECE_BYTES;
use crate::hashes::layout::{HEADER_BYTES, Header, Layout, NOTHING, ROOT_AT, ZERO};
use crate::hashes::{digests, read_sidecar, shorten, sidecar_len};
use crate::image::ImageInfo;
use crate::storage::Storage;

/// What a sealed image says about one of its clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterHash {
    /// The image has nothing of its own: what lies below decides.
    Nothing,
    /// The image says that it is zero.
    Zero,
    /// The digest of the bytes that belong to the disk.
    Data(Digest),
}

/// The hashes of a sealed image: a sidecar that was opened and checked. Holds no more of it than its header.
#[derive(Debug)]
pub struct Hashes {
    storage: Arc<dyn Storage>,
    header: Header,
    root: Digest,
}

/// The hashes of 4096 neighbouring clusters.
#[derive(Debug, Clone)]
pub struct HashPage {
    first: u64,
    count: usize,
    /// Empty for a page that is all zero.
    entries: Vec<Digest>,
}

impl Hashes {
    /// Opens a sidecar: checks its header, its length and its root. The pages are checked when they are read.
    ///
    /// # Errors
    /// `Corrupt` for bytes that contradict themselves, `Unsupported` for a newer layout, `Io`.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Self, Error> {
        let mut bytes = [0; HEADER_BYTES];
        let len = sidecar_len(&*storage)?;
        if len < to_u64(HEADER_BYTES) {
            return Err(corrupt(format!("hash sidecar is too short: len={len}")));
        }
        read_sidecar(&*storage, 0, &mut bytes)?;
        let header = Header::parse(&bytes)?;
        let expected = header.layout.file_len();
        if len != expected {
            return Err(corrupt(format!(
                "hash sidecar has another length than its header says: len={len} expected={expected}"
            )));
        }
        let root = Digest(*bytes.last_chunk().expect("a header ends with its root"));
        let found = root_of(&*storage, &bytes, header.layout)?;
        if root != found {
            return Err(corrupt(format!(
                "root of a hash sidecar does not match its content: offset={ROOT_AT} root={root} found={found}"
            )));
        }
        Ok(Self {
            storage,
            header,
            root,
        })
    }

    /// The digest that stands for the whole sidecar. The image's seal names it.
    pub fn root(&self) -> Digest {
        self.root
    }

    /// The point that the image is a disk of.
    pub fn identity(&self) -> &str {
        &self.header.identity
    }

    /// Bytes of a cluster.
    pub fn cluster_size_bytes(&self) -> u64 {
        self.header.layout.cluster_size
    }

    /// Bytes of the virtual disk.
    pub fn virtual_size_bytes(&self) -> u64 {
        self.header.layout.virtual_size
    }

    /// How many pages there are.
    pub fn pages(&self) -> u64 {
        self.header.layout.pages()
    }

    pub(crate) fn layout(&self) -> Layout {
        self.header.layout
    }

    /// Whether these are the hashes that the seal of an image names.
    pub(crate) fn belongs_to(&self, image: &ImageInfo) -> bool {
        let seal = image.seal.as_ref();
        seal.and_then(|seal| seal.hashes) == Some(self.root)
            && self.cluster_size_bytes() == u64::from(image.cluster_size_bytes)
            && self.virtual_size_bytes() == image.virtual_size_bytes
    }

    /// Reads a page and holds it against the directory.
    ///
    /// # Errors
    /// `OutOfRange` for a page that the disk does not have, `Corrupt` for one that is not what it was, `Io`.
    pub fn page(&self, page: u64) -> Result<HashPage, Error> {
        if page >= self.pages() {
            let pages = self.pages();
            let message = format!("hash sidecar has no such page: page={page} pages={pages}");
            return Err(Error::new(ErrorKind::OutOfRange, message));
        }
        let clusters = self.header.layout.page_clusters(page);
        let first = clusters.start;
        let count = to_usize(clusters.end - clusters.start);
        let mut expected = [0; Digest::BYTES];
        read_sidecar(&*self.storage, Layout::digest_at(page), &mut expected)?;
        if Digest(expected) == NOTHING {
            return Ok(HashPage {
                first,
                count,
                entries: vec![],
            });
        }
        let mut bytes = vec![0; count * Digest::BYTES];
        let at = self.header.layout.entry_at(first);
        read_sidecar(&*self.storage, at, &mut bytes)?;
        let found = crate::hashes::digest(&bytes);
        if found != Digest(expected) {
            return Err(corrupt(format!(
                "page of a hash sidecar is not what it was: page={page} offset={at:#x} \
                 expected={} found={found}",
                Digest(expected)
            )));
        }
        Ok(HashPage {
            first,
            count,
            entries: digests(&bytes),
        })
    }
}

impl HashPage {
    /// The first cluster that it describes.
    pub fn first_cluster(&self) -> u64 {
        self.first
    }

    /// The hashes of its clusters, in order.
    pub fn iter(&self) -> impl Iterator<Item = ClusterHash> {
        (0..self.count).map(|index| self.at(index))
    }

    /// The hash of a cluster; `Nothing` for one that belongs to another page.
    pub fn get(&self, cluster: u64) -> ClusterHash {
        let index = cluster.checked_sub(self.first);
        index.map_or(ClusterHash::Nothing, |index| self.at(to_usize(index)))
    }

    fn at(&self, index: usize) -> ClusterHash {
        match self.entries.get(index) {
            None | Some(&NOTHING) => ClusterHash::Nothing,
            Some(&ZERO) => ClusterHash::Zero,
            Some(digest) => ClusterHash::Data(*digest),
        }
    }
}

/// The root as header and directory give it.
fn root_of(
    storage: &dyn Storage,
    header: &[u8; HEADER_BYTES],
    layout: Layout,
) -> Result<Digest, Error> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..ROOT_AT]);
    let mut buffer = vec![0; HASH_DIRECTORY_PIECE_BYTES];
    let (mut at, end) = (Layout::digest_at(0), layout.entry_at(0));
    while at < end {
        let piece = &mut buffer[..to_usize(end - at).min(HASH_DIRECTORY_PIECE_BYTES)];
        read_sidecar(storage, at, piece)?;
        hasher.update(piece);
        at += to_u64(piece.len());
    }
    Ok(shorten(&hasher.finalize()))
}
