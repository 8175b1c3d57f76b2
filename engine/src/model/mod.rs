//! States and rules of the hub, PURE: no database, no files, no clock, no runtime.

mod access;
mod audit;
mod backup;
mod chain;
mod change_id;
mod deletion;
mod disk;
mod event;
mod job;
mod meter;
mod mountinfo;
mod policy;
mod repository;
mod repository_config;
mod telemetry;
mod token;
mod vm;
mod watch;

pub use access::*;
pub use audit::*;
pub use backup::*;
pub use chain::*;
pub use change_id::*;
pub use deletion::*;
pub use disk::*;
pub use event::*;
pub use job::*;
pub use meter::*;
pub use mountinfo::*;
pub use policy::*;
pub use repository::*;
pub use repository_config::*;
pub use telemetry::*;
pub use token::*;
pub use vm::*;
pub use watch::*;
