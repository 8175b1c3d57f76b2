//! `DELETE /backups/{backup_id}`.

use axum::extract::{Path, State};

use crate::error::{Backups, Refused};
use crate::extract::stored_backup_id;
use crate::routes::{Api, reply::Reply};
use crate::views::{BackupsFailure, DeletedView};

/// Delete a backup that has ended, with its files. What stands on it goes first.
#[utoipa::path(
    delete,
    path = "/backups/{backup_id}",
    operation_id = "delete_backup",
    tag = "backups",
    params(("backup_id" = String, Path, description = "Id of the backup")),
    responses(
        (status = 200, body = DeletedView),
        (status = 404, description = "no such backup", body = BackupsFailure),
        (status = 409, description = "it runs, another backup stands on it, it is in use, or its repository keeps it", body = BackupsFailure),
    )
)]
pub(crate) async fn delete(
    State(api): State<Api>,
    Path(backup_id): Path<String>,
) -> Result<Reply<DeletedView>, Refused<Backups>> {
    let id = stored_backup_id(&backup_id)?;
    api.engine.delete_backup(&id).await?;
    Ok(Reply::ok(DeletedView::new(&id)))
}
