//! `/backups`.

mod cancel;
mod chain;
mod changeid;
mod complete;
mod delete;
mod disks;
mod events;
mod list;
mod show;
mod start;
mod stats;

use engine::Verb;
use utoipa_axum::routes;

use crate::access::Guarded;
use crate::error::Backups;

pub(crate) fn routes() -> Guarded<Backups> {
    Guarded::new()
        .allow(Verb::StartBackup, routes!(start::start))
        .allow(Verb::ReadBackups, routes!(list::list))
        .allow(Verb::ReadBackups, routes!(stats::stats))
        .allow(Verb::ReadBackups, routes!(events::all))
        .allow(Verb::ReadBackups, routes!(events::one))
        .allow(Verb::ReadChangeId, routes!(changeid::change_id))
        .allow(Verb::ReadBackups, routes!(chain::chain))
        .allow(Verb::ReadBackups, routes!(show::show))
        .allow(Verb::DeleteBackup, routes!(delete::delete))
        .allow(Verb::ReadBackups, routes!(disks::disks))
        .allow(Verb::CompleteDisk, routes!(complete::complete))
        .allow(Verb::CancelBackup, routes!(cancel::cancel))
}
