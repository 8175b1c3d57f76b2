//! `GET /vm-contexts/{context_id}/disks`.

use axum::extract::{Path, State};

use crate::error::{Refused, VmContexts};
use crate::extract::context;
use crate::routes::{Api, reply::Reply};
use crate::views::{VmContextsFailure, VmDiskListView};

/// The disks of a VM; an unknown VM has none.
#[utoipa::path(
    get,
    path = "/vm-contexts/{context_id}/disks",
    operation_id = "vm_disks",
    tag = "vms",
    params(("context_id" = String, Path, description = "The VM in the inventory")),
    responses(
        (status = 200, body = VmDiskListView),
        (status = 500, body = VmContextsFailure),
    )
)]
pub(crate) async fn disks(
    State(api): State<Api>,
    Path(context_id): Path<String>,
) -> Result<Reply<VmDiskListView>, Refused<VmContexts>> {
    let disks = match context(&context_id) {
        Some(id) => api.engine.vm_disks(&id).await?,
        None => Vec::new(),
    };
    Ok(Reply::ok(VmDiskListView::new(disks)))
}
