//! `GET /backups/changeid`.

use axum::extract::State;

use crate::error::{Backups, Refused};
use crate::extract::{ChangeIdQuery, Params};
use crate::routes::{Api, reply::Reply};
use crate::views::{BackupsFailure, ChangeIdView};

/// From which position a node reads the changes of a disk; empty means: copy everything.
#[utoipa::path(
    get,
    path = "/backups/changeid",
    operation_id = "change_id",
    tag = "backups",
    params(ChangeIdQuery),
    responses(
        (status = 200, body = ChangeIdView),
        (status = 400, description = "vm_name is missing or disk_id is no number", body = BackupsFailure),
        (status = 500, body = BackupsFailure),
    )
)]
pub(crate) async fn change_id(
    State(api): State<Api>,
    Params(query): Params<ChangeIdQuery>,
) -> Result<Reply<ChangeIdView>, Refused<Backups>> {
    let (vm_name, disk) = query.check()?;
    let answer = api.engine.change_id(&vm_name, disk).await?;
    Ok(Reply::ok(ChangeIdView::new(vm_name, disk, answer)))
}
