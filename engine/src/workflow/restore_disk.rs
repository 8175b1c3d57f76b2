//! Writes one disk of a point to a new raw file, and compares one with a raw file.

use std::path::Path;

use super::hub::Hub;
use super::point::open_point;
use crate::blocking::blocking;
use crate::error::Error;
use crate::id::{BackupId, DiskIndex};
use crate::model::Comparison;
use crate::standalone::{NewFile, RawFile, compare_devices, copy_data};

/// Writes the disk to a new, thin raw file and returns its size in bytes. The file appears under its name only when it is
/// whole and durable.
///
/// # Errors
///
/// `Conflict` if the target exists.
pub(crate) async fn restore_disk(
    hub: &Hub,
    id: &BackupId,
    disk: DiskIndex,
    target: &Path,
) -> Result<u64, Error> {
    let point = open_point(hub, id, disk).await?;
    let target = target.to_owned();
    blocking(move || {
        let new = NewFile::create(&target)?;
        let raw = RawFile::of(new.file()?, point.size_bytes)?;
        copy_data(point.chain.as_ref(), &raw, point.size_bytes)?;
        drop(raw);
        new.finish()?;
        Ok(point.size_bytes)
    })
    .await
}

/// Compares the disk byte for byte with a raw file.
pub(crate) async fn compare_disk(
    hub: &Hub,
    id: &BackupId,
    disk: DiskIndex,
    raw: &Path,
) -> Result<Comparison, Error> {
    let point = open_point(hub, id, disk).await?;
    let raw = raw.to_owned();
    blocking(move || {
        let raw = RawFile::open(&raw, true)?;
        compare_devices(
            (point.chain.as_ref(), point.size_bytes),
            (&raw, raw.len_bytes()),
        )
    })
    .await
}
