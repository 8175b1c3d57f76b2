//! Reading compressed clusters of one file.

use std::sync::Arc;

use crate::codec::{Inflated, decompress};
use crate::error::{Error, corrupt};
use crate::format::compression::CompressionType;
use crate::format::geometry::{Geometry, GuestOffset, to_usize};
use crate::format::l2::CompressedCell;
use crate::storage::{self, Storage};

/// Reads compressed clusters of one file, and remembers the last ones.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) storage: &'a dyn Storage,
    pub(crate) geometry: &'a Geometry,
    pub(crate) compression: CompressionType,
    pub(crate) inflated: &'a Inflated,
    /// Which layer it is; 0 for an image of its own.
    pub(crate) layer: u16,
    /// Whose file it is, for errors, where that is known.
    pub(crate) image: Option<&'a str>,
}

impl Reader<'_> {
    /// Fills `into` with what begins at `start` and lies within the cluster at `cell`.
    ///
    /// # Errors
    /// `Corrupt` for a stream that is not one cluster; `Io`.
    pub(crate) fn read(
        &self,
        start: GuestOffset,
        cell: CompressedCell,
        into: &mut [u8],
    ) -> Result<(), Error> {
        let from = to_usize(self.geometry.in_cluster(start.0));
        let cluster_size = to_usize(self.geometry.cluster_size());
        let key = (self.layer, cell);
        let cluster = match self.inflated.get(&key) {
            Some(cluster) => cluster,
            // Nobody reads less than all of it: it need not be remembered.
            None if into.len() == cluster_size => return self.inflate(start, cell, into),
            None => {
                let mut cluster = vec![0; cluster_size];
                self.inflate(start, cell, &mut cluster)?;
                let cluster = Arc::new(cluster);
                self.inflated.insert(key, cluster.clone());
                cluster
            }
        };
        into.copy_from_slice(&cluster[from..from + into.len()]);
        Ok(())
    }

    fn inflate(
        &self,
        start: GuestOffset,
        cell: CompressedCell,
        into: &mut [u8],
    ) -> Result<(), Error> {
        // An entry says at most two clusters. The file may end within the last sector, as QEMU leaves it.
        let mut stream = vec![0; to_usize(u64::from(cell.len_bytes))];
        storage::read_padded(self.storage, cell.offset, &mut stream)?;
        decompress(self.compression, &stream, into).map_err(|why| {
            let image = self.image.map(|image| format!(" image={image}"));
            corrupt(format!(
                "compressed cluster cannot be read: {why} offset={} host_offset={:#x} len={}{}",
                self.geometry
                    .guest_start(self.geometry.guest_cluster(start))
                    .0,
                cell.offset.0,
                cell.len_bytes,
                image.unwrap_or_default()
            ))
        })
    }
}
