//! `/vm-contexts` and `/vmware-credentials`: what a backup needs to know about a VM.

mod credentials;
mod disks;
mod list;
mod register;
mod show;

use engine::Verb;
use utoipa_axum::routes;

use crate::access::Guarded;
use crate::error::{Problems, VmContexts};

pub(crate) fn routes() -> Guarded<VmContexts> {
    let credentials =
        Guarded::<Problems>::new().allow(Verb::AddCredential, routes!(credentials::create));
    Guarded::new()
        .allow(Verb::RegisterVm, routes!(register::register))
        .allow(Verb::ReadVms, routes!(list::list))
        .allow(Verb::ReadVms, routes!(show::by_id))
        .allow(Verb::ReadVms, routes!(show::by_name))
        .allow(Verb::ReadVms, routes!(disks::disks))
        .merge(credentials)
}
