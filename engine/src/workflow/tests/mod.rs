//! The hub in process: a data folder, a clock that stands still, and clients that call the exports directly.

mod backups;
mod crashes;
mod deletion;
mod refusals;
mod storage;
mod telemetry;
mod watch;
mod world;
