//! `POST /backups/{backup_id}/copy`.

use axum::extract::{Path, State};

use crate::error::{Policies, Refused};
use crate::extract::{Body, CopyInput, stored_backup_id};
use crate::routes::{Api, reply::Reply};
use crate::views::CopyAskedView;

/// Ask for a copy of a completed backup. It is recorded as pending; nothing makes copies yet.
#[utoipa::path(
    post,
    path = "/backups/{backup_id}/copy",
    operation_id = "copy_backup",
    tag = "policies",
    params(("backup_id" = String, Path, description = "Id of the backup")),
    request_body = CopyInput,
    responses(
        (status = 201, body = CopyAskedView),
        (status = 400, description = "the request, or the backup is in this repository", body = String, content_type = "text/plain"),
        (status = 404, description = "no such backup or repository", body = String, content_type = "text/plain"),
        (status = 409, description = "there is such a copy, the backup is not complete, or the repository is disabled", body = String, content_type = "text/plain"),
    )
)]
pub(crate) async fn copy(
    State(api): State<Api>,
    Path(backup_id): Path<String>,
    body: Body<CopyInput, Policies>,
) -> Result<Reply<CopyAskedView>, Refused<Policies>> {
    let repository = body.0.check()?;
    let id = stored_backup_id(&backup_id)?;
    let copy = api.engine.ask_for_copy(&id, &repository).await?;
    Ok(Reply::created(CopyAskedView::from(copy)))
}
