//! `/policies`, and the copies of a backup.

mod copies;
mod copy;
mod create;
mod delete;
mod list;
mod show;

use engine::Verb;
use utoipa_axum::routes;

use crate::access::Guarded;
use crate::error::Policies;

pub(crate) fn routes() -> Guarded<Policies> {
    Guarded::new()
        .allow(Verb::ManagePolicies, routes!(create::create))
        .allow(Verb::ReadPolicies, routes!(list::list))
        .allow(Verb::ReadPolicies, routes!(show::show))
        .allow(Verb::ManagePolicies, routes!(delete::delete))
        .allow(Verb::ReadBackups, routes!(copies::copies))
        .allow(Verb::CopyBackup, routes!(copy::copy))
}
