//! Writing clusters compressed: several of them share a cluster of the file.

use std::borrow::Cow;

use crate::codec::compress;
use crate::error::{Error, invalid};
use crate::format::geometry::{to_u64, to_usize};
use crate::image::Image;
use crate::image::write::{Piece, Request, part};
use crate::plan::write::{Action, Content};

impl Image {
    /// Writes whole clusters compressed, each by itself: those that are zero become facts, those that do not get
    /// smaller are stored as they are. Threads that write different clusters compress in parallel.
    ///
    /// # Errors
    /// `Invalid` for a range that does not begin and end at clusters (or end with the disk), else as [`Image::write`].
    pub fn write_compressed(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let len = to_u64(data.len());
        self.check_range(offset, len)?;
        let end = offset + len;
        let ends = |at| self.geometry.in_cluster(at) == 0;
        if !ends(offset) || !ends(end) && end != self.geometry.virtual_size() {
            return Err(invalid(format!(
                "only whole clusters are compressed: offset={offset} len={len} cluster_size={}",
                self.geometry.cluster_size()
            )));
        }
        // One at a time: no more than one stream is held, and others may come between.
        let mut at = offset;
        for cluster in data.chunks(to_usize(self.geometry.cluster_size())) {
            let len = to_u64(cluster.len());
            let compressed = true;
            let request = Request::Data {
                data: cluster,
                compressed,
            };
            self.request(at, len, request)?;
            at += len;
        }
        Ok(())
    }

    /// Compresses the data of pieces that are whole clusters; `data` begins at `start`. No lock on the tables is held.
    pub(super) fn compress_pieces(&self, start: u64, pieces: &mut [Piece], data: &[u8]) {
        let cluster_size = to_usize(self.geometry.cluster_size());
        for piece in pieces {
            if piece.content != Content::Data || piece.action == Action::Nothing {
                continue;
            }
            let mut cluster = Cow::Borrowed(part(data, start, &piece.range));
            if cluster.len() < cluster_size {
                // A stream is a whole cluster, also where the disk ends within it.
                cluster.to_mut().resize(cluster_size, 0);
            }
            piece.stream = compress(self.compression, &cluster);
            if piece.stream.is_some() {
                piece.action = Action::Compress;
            }
        }
    }
}
