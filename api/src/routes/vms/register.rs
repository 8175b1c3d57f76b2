//! `POST /vm-contexts`.

use axum::extract::State;

use crate::error::{Refused, VmContexts};
use crate::extract::{Body, VmInput};
use crate::routes::{Api, reply::Reply};
use crate::views::{VmContextsFailure, VmRegisteredView};

/// Register a VM with all its disks, or update the one of the same name and vCenter.
#[utoipa::path(
    post,
    path = "/vm-contexts",
    operation_id = "register_vm",
    tag = "vms",
    request_body = VmInput,
    responses(
        (status = 201, description = "new", body = VmRegisteredView),
        (status = 200, description = "updated", body = VmRegisteredView),
        (status = 400, description = "the request", body = VmContextsFailure),
        (status = 409, description = "another VM has this name or id", body = VmContextsFailure),
    )
)]
pub(crate) async fn register(
    State(api): State<Api>,
    body: Body<VmInput, VmContexts>,
) -> Result<Reply<VmRegisteredView>, Refused<VmContexts>> {
    let (vm, created) = api.engine.register_vm(body.0.into()).await?;
    let id = vm.context_id.clone();
    let view = VmRegisteredView::new(vm, created);
    Ok(Reply::created_or_updated(created, view).about("context_id", id.as_str()))
}
