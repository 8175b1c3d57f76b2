//! `GET /backups/{vm_name}/chain`.

use axum::extract::{Path, State};

use crate::error::{Backups, Refused};
use crate::extract::{ChainQuery, Params};
use crate::routes::{Api, reply::Reply};
use crate::views::{BackupsFailure, ChainView};

/// The chain of one disk, base first; empty when there is none.
#[utoipa::path(
    get,
    path = "/backups/{vm_name}/chain",
    operation_id = "backup_chain",
    tag = "backups",
    params(("vm_name" = String, Path, description = "Name of the VM"), ChainQuery),
    responses(
        (status = 200, body = ChainView),
        (status = 400, description = "disk_id is no number", body = BackupsFailure),
        (status = 404, description = "no such VM", body = BackupsFailure),
    )
)]
pub(crate) async fn chain(
    State(api): State<Api>,
    Path(vm_name): Path<String>,
    Params(query): Params<ChainQuery>,
) -> Result<Reply<ChainView>, Refused<Backups>> {
    let (vm, disk, repository) = query.check(vm_name)?;
    let chain = api.engine.chain(&vm, disk, repository.as_deref()).await?;
    Ok(Reply::ok(ChainView::from(chain)))
}
