//! `GET /vm-contexts/by-id/{context_id}` and `GET /vm-contexts/{vm_name}`.

use axum::extract::{Path, State};
use engine::Vm;

use crate::error::{Failure, Refused, VmContexts};
use crate::extract::context;
use crate::routes::{Api, reply::Reply};
use crate::views::{VmContextDetailView, VmContextsFailure};

/// One VM, by its context id.
#[utoipa::path(
    get,
    path = "/vm-contexts/by-id/{context_id}",
    operation_id = "show_vm_by_id",
    tag = "vms",
    params(("context_id" = String, Path, description = "The VM in the inventory")),
    responses(
        (status = 200, body = VmContextDetailView),
        (status = 404, description = "no such VM", body = VmContextsFailure),
    )
)]
pub(crate) async fn by_id(
    State(api): State<Api>,
    Path(context_id): Path<String>,
) -> Result<Reply<VmContextDetailView>, Refused<VmContexts>> {
    let id = context(&context_id)
        .ok_or_else(|| Failure::not_found("VM not found", "no VM can have this id"))?;
    let vm = api.engine.vm_by_id(&id).await?;
    detail(&api, vm).await
}

/// One VM, by its name.
#[utoipa::path(
    get,
    path = "/vm-contexts/{vm_name}",
    operation_id = "show_vm",
    tag = "vms",
    params(("vm_name" = String, Path, description = "Name of the VM")),
    responses(
        (status = 200, body = VmContextDetailView),
        (status = 404, description = "no such VM", body = VmContextsFailure),
        (status = 409, description = "several vCenters have a VM of this name", body = VmContextsFailure),
    )
)]
pub(crate) async fn by_name(
    State(api): State<Api>,
    Path(vm_name): Path<String>,
) -> Result<Reply<VmContextDetailView>, Refused<VmContexts>> {
    let vm = api.engine.vm(&vm_name).await?;
    detail(&api, vm).await
}

async fn detail(api: &Api, vm: Vm) -> Result<Reply<VmContextDetailView>, Refused<VmContexts>> {
    let disks = api.engine.vm_disks(&vm.context_id).await?;
    Ok(Reply::ok(VmContextDetailView::new(vm, disks)))
}
