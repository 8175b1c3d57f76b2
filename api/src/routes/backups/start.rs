//! `POST /backups`.

use axum::extract::State;

use crate::error::{Backups, Refused};
use crate::extract::{Body, StartBackupInput};
use crate::routes::{Api, reply::Reply};
use crate::views::{BackupView, BackupsFailure};

/// Start a backup of all disks of a VM. The exports accept before this answers.
#[utoipa::path(
    post,
    path = "/backups",
    operation_id = "start_backup",
    tag = "backups",
    request_body = StartBackupInput,
    responses(
        (status = 200, body = BackupView),
        (status = 400, description = "the request, or no parent for an increment", body = BackupsFailure),
        (status = 404, description = "no such VM, or it has no disks; no such repository or policy", body = BackupsFailure),
        (status = 409, description = "a backup of this VM is running", body = BackupsFailure),
        (status = 500, description = "the disks could not be prepared, or the node refused", body = BackupsFailure),
    )
)]
pub(crate) async fn start(
    State(api): State<Api>,
    body: Body<StartBackupInput, Backups>,
) -> Result<Reply<BackupView>, Refused<Backups>> {
    let (request, tags) = body.0.check()?;
    let started = api.engine.start_backup(request).await?;
    let id = started.backup.id.clone();
    Ok(Reply::ok(BackupView::started(started, tags)).about("backup_id", id.as_str()))
}
