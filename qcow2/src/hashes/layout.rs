//! The bytes of a sidecar.
//!
//! ```text
//!   header      512 bytes: magic · version · kind of hash · cluster size · virtual size · length of the identity
//!               (64-bit words) · the identity, filled up with zeroes · at 496 the root
//!   directory   a digest of each page of 4096 clusters, zero where the page is all zero; zeroes up to the entries
//!   entries     from the next multiple of 4096 on, 16 bytes for each cluster of the disk; a page that is all zero is a hole
//! ```
//! Words are big-endian. A digest is the first 128 bits of BLAKE3; the root is the digest of the header before it and
//! of the directory, so that it stands for the whole file. An entry is zero where the image has nothing of its own
//! (what lies below decides), all ones for a cluster of zeroes, else the digest of the cluster's bytes that belong to
//! the disk. So the sidecar vouches for the mapping, too, and not only for the data.

use std::ops::Range;

use crate::error::{Error, corrupt, invalid, unsupported};
use crate::format::digest::Digest;
use crate::format::geometry::{to_u64, to_usize};
use crate::format::limits::{
    MAX_CLUSTER_BITS, MAX_HASH_IDENTITY_BYTES, MAX_HASH_PAGES, MIN_CLUSTER_BITS,
};
use crate::format::wire;

pub(crate) const HEADER_BYTES: usize = 512;
pub(crate) const ROOT_AT: usize = HEADER_BYTES - Digest::BYTES;
pub(crate) const PAGE_CLUSTERS: u64 = 4096;
/// "QHASHES" and a line feed, which a transfer as text would damage.
const MAGIC: u64 = 0x5148_4153_4845_530a;
const VERSION: u64 = 1;
/// The first 128 bits of BLAKE3.
const KIND: u64 = 1;
const WORDS: usize = 6;
const IDENTITY_AT: usize = WORDS * 8;
const ENTRIES_ALIGNMENT: u64 = 4096;
const _: () = assert!(IDENTITY_AT + MAX_HASH_IDENTITY_BYTES <= ROOT_AT);

/// The entry of a cluster that this image does not have. While it is written: of one whose hash is not known.
pub(crate) const NOTHING: Digest = Digest([0; Digest::BYTES]);
/// The entry of a cluster of zeroes.
pub(crate) const ZERO: Digest = Digest([0xff; Digest::BYTES]);

/// Where things are in the sidecar of an image of these sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) cluster_size: u64,
    pub(crate) virtual_size: u64,
}

impl Layout {
    /// # Errors
    /// `Unsupported` for a disk of more clusters than a sidecar may describe, `Corrupt` for a cluster size that no
    /// image has.
    pub(crate) fn new(cluster_size: u64, virtual_size: u64) -> Result<Self, Error> {
        let sizes = 1 << MIN_CLUSTER_BITS..=1 << MAX_CLUSTER_BITS;
        if !cluster_size.is_power_of_two() || !sizes.contains(&cluster_size) {
            return Err(corrupt(format!(
                "cluster size in a hash sidecar is not 512 bytes to 2 MiB: cluster_size={cluster_size}"
            )));
        }
        let layout = Self {
            cluster_size,
            virtual_size,
        };
        if layout.pages() > MAX_HASH_PAGES {
            return Err(unsupported(format!(
                "disk has too many clusters for a hash sidecar: virtual_size={virtual_size} \
                 cluster_size={cluster_size} limit_pages={MAX_HASH_PAGES}"
            )));
        }
        Ok(layout)
    }

    pub(crate) fn clusters(&self) -> u64 {
        self.virtual_size.div_ceil(self.cluster_size)
    }

    /// Bytes of a cluster that belong to the disk.
    pub(crate) fn cluster_len(&self, cluster: u64) -> u64 {
        let start = cluster * self.cluster_size;
        self.cluster_size
            .min(self.virtual_size.saturating_sub(start))
    }

    pub(crate) fn pages(&self) -> u64 {
        self.clusters().div_ceil(PAGE_CLUSTERS)
    }

    pub(crate) fn page_of(cluster: u64) -> u64 {
        cluster / PAGE_CLUSTERS
    }

    /// The clusters that a page describes; the last one is shorter.
    pub(crate) fn page_clusters(&self, page: u64) -> Range<u64> {
        let first = page * PAGE_CLUSTERS;
        first..(first + PAGE_CLUSTERS).min(self.clusters())
    }

    /// Where the directory's digest of a page is.
    pub(crate) fn digest_at(page: u64) -> u64 {
        to_u64(HEADER_BYTES) + page * to_u64(Digest::BYTES)
    }

    /// Where the entry of a cluster is; those of the next clusters follow.
    pub(crate) fn entry_at(&self, cluster: u64) -> u64 {
        let entries = Self::digest_at(self.pages()).next_multiple_of(ENTRIES_ALIGNMENT);
        entries + cluster * to_u64(Digest::BYTES)
    }

    /// The length of the file.
    pub(crate) fn file_len(&self) -> u64 {
        self.entry_at(self.clusters())
    }
}

/// What a sidecar says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) layout: Layout,
    /// The point that the image is a disk of.
    pub(crate) identity: String,
}

impl Header {
    /// The header before its root.
    ///
    /// # Errors
    /// `Invalid` for an identity that is empty or too long.
    pub(crate) fn encode(&self) -> Result<[u8; ROOT_AT], Error> {
        let identity = self.identity.as_bytes();
        if identity.is_empty() || identity.len() > MAX_HASH_IDENTITY_BYTES {
            return Err(invalid(format!(
                "identity of an image does not fit into its hash sidecar: len={} \
                 limit={MAX_HASH_IDENTITY_BYTES}",
                identity.len()
            )));
        }
        let Layout {
            cluster_size,
            virtual_size,
        } = self.layout;
        let words = [
            MAGIC,
            VERSION,
            KIND,
            cluster_size,
            virtual_size,
            to_u64(identity.len()),
        ];
        let mut bytes = [0; ROOT_AT];
        bytes[..IDENTITY_AT].copy_from_slice(&wire::table_bytes(&words));
        bytes[IDENTITY_AT..IDENTITY_AT + identity.len()].copy_from_slice(identity);
        Ok(bytes)
    }

    /// Reads all but the root, which needs the directory.
    pub(crate) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Error> {
        let word = |index: usize| wire::u64_at(bytes, index * 8);
        if word(0) != MAGIC {
            return Err(corrupt(format!(
                "file is not a hash sidecar: magic={:#x}",
                word(0)
            )));
        }
        for (index, name, known) in [(1, "version", VERSION), (2, "kind", KIND)] {
            if word(index) != known {
                return Err(unsupported(format!(
                    "hash sidecar is of an unknown sort: {name}={}",
                    word(index)
                )));
            }
        }
        let len = word(5);
        if len == 0 || len > to_u64(MAX_HASH_IDENTITY_BYTES) {
            return Err(corrupt(format!(
                "identity in a hash sidecar is out of bounds: len={len}"
            )));
        }
        let identity = &bytes[IDENTITY_AT..IDENTITY_AT + to_usize(len)];
        let identity = std::str::from_utf8(identity)
            .map_err(|_| corrupt("identity in a hash sidecar is not UTF-8"))?;
        Ok(Self {
            layout: Layout::new(word(3), word(4))?,
            identity: identity.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_a_place_of_its_own() {
        let layout = Layout::new(65_536, (1 << 40) + 512).unwrap();
        assert_eq!(layout.clusters(), (1 << 24) + 1);
        assert_eq!(
            (layout.pages(), layout.page_clusters(4096)),
            (4097, 1 << 24..(1 << 24) + 1)
        );
        assert_eq!(
            (layout.cluster_len(5), layout.cluster_len(1 << 24)),
            (65_536, 512)
        );
        // 512 + 4097 · 16 = 66,064.
        assert_eq!(layout.entry_at(0), 69_632);
        assert_eq!(layout.file_len(), 69_632 + 16 * ((1 << 24) + 1));
        assert_eq!(Layout::new(512, 0).unwrap().file_len(), 4096);
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        for (cluster, size) in [
            (0, 0),
            (256, 0),
            (1 << 22, 0),
            (65_535, 0),
            (512, 1 << 45),
            (65_536, u64::MAX),
        ] {
            assert!(
                Layout::new(cluster, size).is_err(),
                "cluster={cluster} size={size}"
            );
        }
        assert!(Layout::new(65_536, 1 << 51).is_ok());
    }
}
