//! `GET /vm-contexts`.

use axum::extract::State;

use crate::error::{Refused, VmContexts};
use crate::routes::{Api, reply::Reply};
use crate::views::{VmContextListView, VmContextsFailure};

/// All VMs of the inventory.
#[utoipa::path(
    get,
    path = "/vm-contexts",
    operation_id = "list_vms",
    tag = "vms",
    responses(
        (status = 200, body = VmContextListView),
        (status = 500, body = VmContextsFailure),
    )
)]
pub(crate) async fn list(
    State(api): State<Api>,
) -> Result<Reply<VmContextListView>, Refused<VmContexts>> {
    let vms = api.engine.vms().await?;
    Ok(Reply::ok(VmContextListView::new(vms)))
}
