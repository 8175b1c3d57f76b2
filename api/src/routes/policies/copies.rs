//! `GET /backups/{backup_id}/copies`.

use axum::extract::{Path, State};

use crate::error::{Policies, Refused};
use crate::extract::stored_backup_id;
use crate::routes::{Api, reply::Reply};
use crate::views::BackupCopyView;

/// The copies of a backup, oldest first; an unknown backup has none.
#[utoipa::path(
    get,
    path = "/backups/{backup_id}/copies",
    operation_id = "backup_copies",
    tag = "policies",
    params(("backup_id" = String, Path, description = "Id of the backup")),
    responses(
        (status = 200, body = Vec<BackupCopyView>),
        (status = 404, description = "no backup can have this id", body = String, content_type = "text/plain"),
    )
)]
pub(crate) async fn copies(
    State(api): State<Api>,
    Path(backup_id): Path<String>,
) -> Result<Reply<Vec<BackupCopyView>>, Refused<Policies>> {
    let copies = api.engine.copies(&stored_backup_id(&backup_id)?).await?;
    Ok(Reply::ok(
        copies.into_iter().map(BackupCopyView::from).collect(),
    ))
}
