//! Deletes a backup: its files, then its rows.
//!
//! ```text
//! nobody reads it ─▶ intent deleting, nothing depends on it (one transaction) ─▶ images, disk by disk ─▶ rows
//! ```
//! From the intent on recovery finishes it from any point.

use std::sync::Arc;

use super::hooks::Step;
use super::hub::Hub;
use crate::blocking::blocking;
use crate::error::Error;
use crate::id::BackupId;
use crate::model::{Backup, BackupChange, BackupDisk, Intent, JobStatus};
use crate::repository::{Discard, Repository};

/// Deletes a backup that has ended; its files are gone when it returns.
///
/// # Errors
///
/// `NotFound`, and `Conflict` while something needs it.
pub(crate) async fn delete_backup(hub: Arc<Hub>, id: BackupId) -> Result<(), Error> {
    hub.accepting()?;
    if hub.job(&id).is_some() {
        // Running, or on its way to its end with files still there.
        let status = hub.catalog.backup(&id).await?.status;
        let details = format!("cancel it first backup_id={id} status={status}");
        return Err(Error::conflict("backup is running", details));
    }
    let repository = hub
        .repository(&hub.catalog.backup(&id).await?.repository_id)
        .await?;
    let _alone = hub.leases.take_all(&id)?;
    let deletion = hub.catalog.begin_deletion(&id, hub.clock.now()).await?;
    hub.reached(Step::DeletionIntended).await;
    remove(&hub, &repository, &deletion.backup, &deletion.disks).await?;
    tracing::info!(backup_id = %id, "backup deleted");
    hub.events.tell(BackupChange::Deleted, deletion.backup);
    Ok(())
}

/// Removes the files of a backup whose deletion was begun, and then its rows. May be repeated.
pub(crate) async fn remove(
    hub: &Hub,
    repository: &Arc<Repository>,
    backup: &Backup,
    disks: &[BackupDisk],
) -> Result<(), Error> {
    let id = &backup.id;
    let what = match (backup.status, backup.intent) {
        (JobStatus::Completed, _) => Some(Discard::Deleted(id.clone())),
        // Its end was not brought to an end.
        (_, Some(Intent::Deleting)) => Some(Discard::Everything(id.clone())),
        // Its files are gone, and their names may be those of a later backup.
        _ => None,
    };
    if let Some(what) = what {
        for recorded in disks.iter().filter_map(|disk| disk.image_path.clone()) {
            let (files, what) = (Arc::clone(repository), what.clone());
            blocking(move || files.discard_image(&files.parse(&recorded)?, &what)).await?;
            hub.reached(Step::OneDeleted).await;
        }
    }
    hub.catalog.finish_deletion(id, hub.clock.now()).await
}
