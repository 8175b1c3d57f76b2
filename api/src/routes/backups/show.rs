//! `GET /backups/{backup_id}`.

use axum::extract::{Path, State};

use crate::error::{Backups, Refused};
use crate::extract::stored_backup_id;
use crate::routes::{Api, reply::Reply};
use crate::views::{BackupView, BackupsFailure};

/// One backup.
#[utoipa::path(
    get,
    path = "/backups/{backup_id}",
    operation_id = "show_backup",
    tag = "backups",
    params(("backup_id" = String, Path, description = "Id of the backup")),
    responses(
        (status = 200, body = BackupView),
        (status = 404, description = "no such backup", body = BackupsFailure),
    )
)]
pub(crate) async fn show(
    State(api): State<Api>,
    Path(backup_id): Path<String>,
) -> Result<Reply<BackupView>, Refused<Backups>> {
    let id = stored_backup_id(&backup_id)?;
    let backup = api.engine.backup(&id).await?;
    Ok(Reply::ok(BackupView::from(backup)))
}
