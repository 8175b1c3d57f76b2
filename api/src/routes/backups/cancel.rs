//! `POST /backups/{backup_id}/cancel`.

use axum::extract::{Path, State};

use crate::error::{Backups, Refused};
use crate::extract::stored_backup_id;
use crate::routes::{Api, reply::Reply};
use crate::views::{BackupsFailure, CancelledView};

/// Give up a running backup: its exports close and its files are removed.
#[utoipa::path(
    post,
    path = "/backups/{backup_id}/cancel",
    operation_id = "cancel_backup",
    tag = "backups",
    params(("backup_id" = String, Path, description = "Id of the backup")),
    responses(
        (status = 200, body = CancelledView),
        (status = 404, description = "no such backup", body = BackupsFailure),
        (status = 409, description = "it has ended", body = BackupsFailure),
    )
)]
pub(crate) async fn cancel(
    State(api): State<Api>,
    Path(backup_id): Path<String>,
) -> Result<Reply<CancelledView>, Refused<Backups>> {
    let id = stored_backup_id(&backup_id)?;
    api.engine.cancel_backup(&id).await?;
    Ok(Reply::ok(CancelledView::new(&id)))
}
