//! The hub in process: a data folder, a clock that stands still, and clients that call the exports directly.

mod backups;
mod crashes;
mod deletion;
mod events;
mod refusals;
mod storage;
mod telemetry;
mod watch;
mod world;

pub(crate) use world::any_backup;
