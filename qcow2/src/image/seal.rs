//! Sealing: the hub's facts go into the header, and the image takes no more writes.

use crate::error::{Error, unsupported};
use crate::format::extension::{self, SEAL};
use crate::format::geometry::{HostOffset, to_u64, to_usize};
use crate::format::header::{BACKING_NAME_AT, backing_name_place};
use crate::format::seal::Seal;
use crate::format::wire;
use crate::image::{Image, Opened, open_file};
use crate::storage;
use crate::sync::Ordering;

impl Image {
    /// Writes the seal into the header and flushes; the image takes no writes afterwards. The hashes, if they are
    /// recorded, are completed and durable before, and the seal names their root, whatever `seal` says of it.
    ///
    /// A cut at any moment leaves either no seal or all of it: its body becomes durable first, and the eight bytes
    /// that make it part of the list lie within one sector.
    ///
    /// # Errors
    /// `ReadOnly` if it is sealed already, `Unsupported` if the first cluster has no room, else as `flush` and as
    /// reading does.
    pub fn seal(&self, seal: &Seal) -> Result<(), Error> {
        // Waits for requests under way and keeps new ones out.
        let _all = self.locks.exclusive(0..u64::MAX);
        self.check_writable()?;
        self.flush()?;
        let hashes = self.seal_hashes(&seal.point_id)?;
        let seal = Seal {
            hashes,
            ..seal.clone()
        };
        let body = extension::encode(SEAL, &seal.encode()?);
        let at = self.room_for(body.len())?;
        let (head, rest) = body.split_at(8);
        // Behind the body comes the end marker of the list.
        let mut tail = rest.to_vec();
        tail.extend_from_slice(&[0; 8]);
        storage::write(&*self.storage, HostOffset(at + 8), &tail)?;
        storage::sync(&*self.storage)?;
        storage::write(&*self.storage, HostOffset(at), head)?;
        storage::sync(&*self.storage)?;
        self.info.lock().seal = Some(seal);
        self.sealed.store(true, Ordering::Release);
        Ok(())
    }

    /// Where the list of extensions ends, with room for `len` bytes and an end marker; the backing name of an image
    /// that QEMU made is moved out of the way.
    fn room_for(&self, len: usize) -> Result<u64, Error> {
        let Opened { header, .. } = open_file(&*self.storage)?;
        let cluster_size = to_usize(header.geometry.cluster_size());
        let mut cluster = vec![0; cluster_size];
        storage::read_padded(&*self.storage, HostOffset(0), &mut cluster)?;
        let (extensions, _) = header.parse_cluster(&cluster)?;
        let end = extensions.end + len + 8;
        if end <= header.extension_limit() {
            return Ok(to_u64(extensions.end));
        }
        let no_room = || unsupported(format!("first cluster has no room for a seal: len={len}"));
        let (old_at, name_len) = header.backing_name.ok_or_else(no_room)?;
        let new_at = backing_name_place(&header.geometry, name_len);
        // The old name must stay whole until the header on disk names the new place.
        if new_at < end || new_at < old_at + name_len {
            return Err(no_room());
        }
        let name = &cluster[old_at..old_at + name_len];
        storage::write(&*self.storage, HostOffset(to_u64(new_at)), name)?;
        storage::sync(&*self.storage)?;
        let place = HostOffset(BACKING_NAME_AT);
        storage::write(&*self.storage, place, &wire::table_bytes(&[to_u64(new_at)]))?;
        storage::sync(&*self.storage)?;
        // Where the list ended without a marker, the old name would be read as part of it.
        Ok(to_u64(extensions.end))
    }
}
