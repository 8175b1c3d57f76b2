//! Opens one disk of a completed backup for reading.

use std::sync::Arc;

use qcow2::Chain;

use super::hub::Hub;
use super::leases::Lease;
use crate::blocking::blocking;
use crate::error::Error;
use crate::id::{BackupId, DiskIndex};
use crate::model::{DiskStatus, Intent, JobStatus};
use crate::repository::Repository;

/// A disk of a point, open with everything below it.
pub(crate) struct Point {
    pub(crate) chain: Arc<Chain>,
    /// Size of the virtual disk; the image may be rounded up to whole sectors.
    pub(crate) size_bytes: u64,
    pub(crate) repository: Arc<Repository>,
    /// Keeps the files from being deleted.
    _lease: Lease,
}

/// Opens a disk of a completed backup.
///
/// # Errors
///
/// `NotFound` for an unknown backup or disk, `Conflict` for one that is not complete, `Corrupt` if its files are not what
/// they should be.
pub(crate) async fn open_point(hub: &Hub, id: &BackupId, disk: DiskIndex) -> Result<Point, Error> {
    let lease = hub.leases.share(id)?;
    let backup = hub.catalog.backup(id).await?;
    if backup.intent == Some(Intent::Deleting) {
        // A deletion that broke off: some of its files are gone.
        let details = format!("backup_id={id}");
        return Err(Error::conflict("backup is being deleted", details));
    }
    let disks = hub.catalog.backup_disks(id).await?;
    let row = disks
        .into_iter()
        .find(|row| row.disk_index == disk)
        .ok_or_else(|| {
            Error::not_found(
                "backup disk not found",
                format!("backup_id={id} disk_index={disk}"),
            )
        })?;
    if backup.status != JobStatus::Completed || row.status != DiskStatus::Completed {
        let details = format!("backup_id={id} disk_index={disk} status={}", backup.status);
        return Err(Error::conflict("backup is not complete", details));
    }
    let recorded = row.image_path.ok_or_else(|| {
        Error::corrupt(
            "backup disk has no image",
            format!("backup_id={id} disk_index={disk}"),
        )
    })?;
    let repository = hub.repository(&backup.repository_id).await?;
    let files = Arc::clone(&repository);
    let backup_id = id.clone();
    let chain = blocking(move || {
        let path = files.parse(&recorded)?;
        files.expect_point(&path, &backup_id)?;
        files.open_chain(&path)
    })
    .await?;
    Ok(Point {
        chain: Arc::new(chain),
        size_bytes: row.capacity_bytes,
        repository,
        _lease: lease,
    })
}
