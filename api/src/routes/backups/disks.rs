//! `GET /backups/{backup_id}/disks`.

use axum::extract::{Path, State};

use crate::error::{Backups, Refused};
use crate::extract::stored_backup_id;
use crate::routes::{Api, reply::Reply};
use crate::views::{BackupDiskListView, BackupsFailure};

/// The disks of one backup: sizes, change ids, parents and what was received.
#[utoipa::path(
    get,
    path = "/backups/{backup_id}/disks",
    operation_id = "backup_disks",
    tag = "backups",
    params(("backup_id" = String, Path, description = "Id of the backup")),
    responses(
        (status = 200, body = BackupDiskListView),
        (status = 404, description = "no such backup", body = BackupsFailure),
    )
)]
pub(crate) async fn disks(
    State(api): State<Api>,
    Path(backup_id): Path<String>,
) -> Result<Reply<BackupDiskListView>, Refused<Backups>> {
    let id = stored_backup_id(&backup_id)?;
    let disks = api.engine.backup_disks(&id).await?;
    Ok(Reply::ok(BackupDiskListView::new(&id, disks)))
}
