//! `POST /backups/{backup_id}/complete`.

use axum::extract::{Path, State};

use crate::error::{Backups, Refused};
use crate::extract::{Body, CompleteDiskInput};
use crate::routes::{Api, reply::Reply};
use crate::views::{BackupsFailure, CompletedView};

/// One disk has been transferred: its data is durable and its change id recorded when this
/// answers. Repeating it is harmless; the last disk publishes the backup.
#[utoipa::path(
    post,
    path = "/backups/{backup_id}/complete",
    operation_id = "complete_disk",
    tag = "backups",
    params(("backup_id" = String, Path, description = "Id of the backup")),
    request_body = CompleteDiskInput,
    responses(
        (status = 200, body = CompletedView),
        (status = 400, description = "the request", body = BackupsFailure),
        (status = 404, description = "no such backup or disk", body = BackupsFailure),
        (status = 409, description = "the backup has ended, or another change id was recorded", body = BackupsFailure),
        (status = 500, description = "the data could not be made durable", body = BackupsFailure),
    )
)]
pub(crate) async fn complete(
    State(api): State<Api>,
    Path(backup_id): Path<String>,
    body: Body<CompleteDiskInput, Backups>,
) -> Result<Reply<CompletedView>, Refused<Backups>> {
    let request = body.0.check(&backup_id)?;
    api.engine.complete_disk(request.clone()).await?;
    Ok(Reply::ok(CompletedView::new(request, api.clock.now())))
}
