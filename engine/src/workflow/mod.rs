//! One file per verb; each reads: load (catalog), decide (model), act (repository, export, node), record (catalog).

mod events;
mod hooks;
mod hub;
mod job;
mod leases;
mod point;
mod targets;

mod cancel;
mod chain;
mod change_id;
mod complete_disk;
mod delete_backup;
mod end_backup;
mod inventory;
mod list;
mod open;
mod policies;
mod publish;
mod recover;
mod repositories;
mod restore_disk;
mod shutdown;
mod start_backup;
mod telemetry;
mod tokens;
mod watch;

pub(crate) use cancel::cancel;
pub(crate) use chain::{chain, chain_layers};
pub(crate) use change_id::change_id;
pub(crate) use complete_disk::complete_disk;
pub(crate) use delete_backup::delete_backup;
pub use events::{Heard, Subscription};
pub(crate) use hooks::Hooks;
pub(crate) use hub::Hub;
pub(crate) use inventory::add_credential;
pub(crate) use list::{backup, backup_disks, backups};
pub(crate) use open::open;
pub(crate) use policies::{ask_for_copy, create_policy};
pub(crate) use repositories::{
    create_repository, delete_repository, look_at_repository, refresh_storage, repositories,
    repository, try_place,
};
pub(crate) use restore_disk::{compare_disk, restore_disk};
pub(crate) use shutdown::shutdown;
pub(crate) use start_backup::start_backup;
pub(crate) use telemetry::telemetry;
pub(crate) use tokens::{authenticate, create_token};

#[cfg(test)]
mod tests;
