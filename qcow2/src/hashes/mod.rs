//! A hash of each cluster that an image holds, in a file beside it.

mod data;
mod layout;
mod read;
mod record;
mod verify;

use crate::error::Error;
use crate::format::digest::Digest;
use crate::storage::Storage;

pub(crate) use data::{Place, hash_data};
pub(crate) use layout::{Layout, NOTHING, ZERO};
pub use read::{ClusterHash, HashPage, Hashes};
pub(crate) use record::HashRecorder;
pub use verify::{Damage, DamageKind, Subset, VerifyReport, verify};

/// The digest of the bytes of a cluster: never one of the two entries that mean something else.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    let mut digest = shorten(&blake3::hash(bytes));
    if digest == NOTHING || digest == ZERO {
        digest.0[0] ^= 1;
    }
    digest
}

fn shorten(hash: &blake3::Hash) -> Digest {
    Digest(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
}

/// Digests as they stand in the file.
fn digests(bytes: &[u8]) -> Vec<Digest> {
    bytes.as_chunks().0.iter().copied().map(Digest).collect()
}

fn read_sidecar(storage: &dyn Storage, at: u64, into: &mut [u8]) -> Result<(), Error> {
    storage.read_at(at, into).map_err(|error| {
        Error::io(
            format!(
                "hash sidecar cannot be read: offset={at:#x} len={}",
                into.len()
            ),
            error,
        )
    })
}

fn write_sidecar(storage: &dyn Storage, at: u64, data: &[u8]) -> Result<(), Error> {
    storage.write_at(at, data).map_err(|error| {
        Error::io(
            format!(
                "hash sidecar cannot be written: offset={at:#x} len={}",
                data.len()
            ),
            error,
        )
    })
}

fn sidecar_len(storage: &dyn Storage) -> Result<u64, Error> {
    storage
        .len_bytes()
        .map_err(|error| Error::io("length of the hash sidecar cannot be read", error))
}
