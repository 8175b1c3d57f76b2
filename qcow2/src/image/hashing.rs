//! Hashes of what is written: recorded with each request, completed when the image is sealed.

use std::sync::Arc;

use crate::error::Error;
use crate::format::digest::Digest;
use crate::format::geometry::{HostOffset, to_usize};
use crate::hashes::{HashRecorder, Layout, NOTHING, Place, ZERO, digest, hash_data};
use crate::image::Image;
use crate::image::write::{Piece, part};
use crate::plan::read::Source;
use crate::plan::write::{Action, Content};
use crate::storage::Storage;

impl Image {
    /// Records a hash of each cluster that is written whole, and makes a sidecar of them in `storage` when the image
    /// is sealed; what is not known by then is read and hashed. Whatever `storage` holds is dropped.
    ///
    /// # Errors
    /// `Unsupported` for a disk of more clusters than a sidecar may describe; `Io` from `storage`.
    pub fn with_hashes(mut self, storage: Arc<dyn Storage>) -> Result<Self, Error> {
        let layout = Layout::new(self.geometry.cluster_size(), self.geometry.virtual_size())?;
        self.hashes = Some(HashRecorder::new(storage, layout)?);
        Ok(self)
    }

    /// Hashes the pieces that bring data for a whole cluster, where somebody wants it, while it is in the processor's cache. `data` begins at
    /// `start`; no lock on the tables is held.
    pub(super) fn hash_pieces(&self, start: u64, pieces: &mut [Piece], data: &[u8]) {
        for piece in pieces {
            let len = piece.range.end - piece.range.start;
            let whole = len == self.geometry.guest_len(piece.cluster);
            let wanted = self.hashes.is_some() || self.elides_by_hash(piece);
            if wanted && whole && piece.content == Content::Data {
                piece.digest = Some(digest(part(data, start, &piece.range)));
            }
        }
    }

    /// After a request: takes the hashes of what was written whole, and forgets those of every other cluster whose
    /// bytes changed, or may have changed. The caller holds the range still.
    pub(super) fn record_hashes(&self, pieces: &[Piece], is_written: bool) {
        let Some(recorder) = &self.hashes else {
            return;
        };
        // What is left as zero or to what lies below has no data to be hashed, whatever its entry says.
        let has_changed = |piece: &Piece| {
            matches!(
                piece.action,
                Action::InPlace(_) | Action::Fill(_) | Action::Allocate(_) | Action::Compress
            )
        };
        let runs = pieces.chunk_by(|one, next| has_changed(one) == has_changed(next));
        for run in runs.filter(|run| has_changed(&run[0])) {
            let known = |piece: &Piece| piece.digest.filter(|_| is_written).unwrap_or(NOTHING);
            let hashes: Vec<Digest> = run.iter().map(known).collect();
            recorder.record(run[0].cluster.0, &hashes);
        }
    }

    /// Completes the hashes and makes them durable. Returns their root; `None` where none are recorded. The caller
    /// holds the whole disk, and everything was flushed.
    pub(super) fn seal_hashes(&self, identity: &str) -> Result<Option<Digest>, Error> {
        let seal = |recorder: &HashRecorder| {
            recorder.seal(identity, |page| self.page_hashes(recorder, page))
        };
        self.hashes.as_ref().map(seal).transpose()
    }

    /// The entries of a page, of its clusters one by one as the tables have them.
    fn page_hashes(&self, recorder: &HashRecorder, page: u64) -> Result<Vec<Digest>, Error> {
        let layout = recorder.layout();
        let clusters = layout.page_clusters(page);
        let (first, size) = (clusters.start, layout.cluster_size);
        let start = first * size;
        let end = (clusters.end * size).min(layout.virtual_size);
        let mut entries = vec![NOTHING; to_usize(clusters.end - first)];
        let runs = self.runs(start, end - start)?;
        if runs.iter().all(|run| run.source == Source::Below) {
            return Ok(entries);
        }
        let known = recorder.known(page)?;
        let mut unknown = Vec::new();
        for run in runs {
            let from = run.start.0 / size;
            for cluster in from..(run.start.0 + run.len_bytes).div_ceil(size) {
                let index = to_usize(cluster - first);
                match run.source {
                    Source::Below => {}
                    Source::Zero { .. } => entries[index] = ZERO,
                    _ if known[index] != NOTHING && known[index] != ZERO => {
                        entries[index] = known[index];
                    }
                    Source::Compressed(_) => {
                        let mut data = vec![0; to_usize(layout.cluster_len(cluster))];
                        self.read_held(cluster * size, &mut data)?;
                        entries[index] = digest(&data);
                    }
                    Source::Host(at) => {
                        let host = HostOffset(at.0 + (cluster - from) * size);
                        unknown.push(Place { host, cluster });
                    }
                }
            }
        }
        let mut read = Ok(());
        hash_data(
            &*self.storage,
            &layout,
            unknown,
            |cluster, found| match found {
                Ok(digest) => entries[to_usize(cluster - first)] = digest,
                Err(error) => read = Err(error),
            },
        );
        read.map(|()| entries)
    }
}
