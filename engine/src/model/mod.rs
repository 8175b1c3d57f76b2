//! States and rules of the hub, PURE: no database, no files, no clock, no runtime.

mod backup;
mod chain;
mod change_id;
mod disk;
mod job;
mod vm;

pub use backup::*;
pub use chain::*;
pub use change_id::*;
pub use disk::*;
pub use job::*;
pub use vm::*;
