//! Reading the data of clusters to hash it: in the order of the file, neighbours at once.

use crate::error::Error;
use crate::format::digest::Digest;
use crate::format::geometry::{HostOffset, to_u64, to_usize};
use crate::format::limits::MAX_HASH_READ_BYTES;
use crate::hashes::{Layout, digest};
use crate::storage::{self, Storage};

/// A cluster and where its data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) host: HostOffset,
    pub(crate) cluster: u64,
}

/// Reads and hashes clusters of an image; `found` is told of each what it holds, or why it cannot be read.
pub(crate) fn hash_data(
    storage: &dyn Storage,
    layout: &Layout,
    mut places: Vec<Place>,
    mut found: impl FnMut(u64, Result<Digest, Error>),
) {
    places.sort_unstable();
    let size = to_usize(layout.cluster_size);
    let at_once = to_usize(MAX_HASH_READ_BYTES.div_ceil(layout.cluster_size));
    let mut buffer = vec![0; at_once.min(places.len()) * size];
    let neighbours = |one: &Place, next: &Place| {
        one.host.0.checked_add(layout.cluster_size) == Some(next.host.0)
    };
    let mut hash = |places: &[Place]| -> Result<(), Error> {
        let Some((first, last)) = places.first().zip(places.last()) else {
            return Ok(());
        };
        // Behind the end of the disk a file may end, too.
        let last_len = to_usize(layout.cluster_len(last.cluster));
        let bytes = &mut buffer[..(places.len() - 1) * size + last_len];
        storage::read_padded(storage, first.host, bytes)?;
        for (place, bytes) in places.iter().zip(bytes.chunks(size)) {
            let len = layout.cluster_len(place.cluster).min(to_u64(bytes.len()));
            found(place.cluster, Ok(digest(&bytes[..to_usize(len)])));
        }
        Ok(())
    };
    let mut failed = Vec::new();
    for run in places
        .chunk_by(neighbours)
        .flat_map(|run| run.chunks(at_once))
    {
        if hash(run).is_ok() {
            continue;
        }
        // One by one: it is to be known which of them it is.
        for place in run {
            if let Err(error) = hash(std::slice::from_ref(place)) {
                failed.push((place.cluster, error));
            }
        }
    }
    for (cluster, error) in failed {
        found(cluster, Err(error));
    }
}
