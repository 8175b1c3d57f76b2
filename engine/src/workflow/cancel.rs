//! Cancels a running backup.

use std::sync::Arc;

use super::end_backup::end_backup;
use super::hub::Hub;
use crate::catalog::Ending;
use crate::error::Error;
use crate::id::BackupId;
use crate::model::Backup;

/// Ends the backup; its files and exports are gone when it returns.
///
/// # Errors
///
/// `Conflict` if it has ended before.
pub(crate) async fn cancel(hub: Arc<Hub>, id: BackupId) -> Result<(), Error> {
    let Some(job) = hub.job(&id) else {
        return Err(not_running(&hub.catalog.backup(&id).await?));
    };
    let mut turn = job.turn.lock().await;
    if turn.has_ended {
        return Err(not_running(&hub.catalog.backup(&id).await?));
    }
    end_backup(
        &hub,
        &job,
        &mut turn,
        Ending::Cancelled,
        "cancelled by request",
    )
    .await;
    Ok(())
}

/// What is said about a backup that takes no more requests.
pub(crate) fn not_running(backup: &Backup) -> Error {
    Error::conflict(
        "backup is not running",
        format!("backup_id={} status={}", backup.id, backup.status),
    )
}
