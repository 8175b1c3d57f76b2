//! States and rules of the hub, PURE: no database, no files, no clock, no runtime.

mod access;
mod backup;
mod chain;
mod change_id;
mod disk;
mod job;
mod token;
mod vm;

pub use access::*;
pub use backup::*;
pub use chain::*;
pub use change_id::*;
pub use disk::*;
pub use job::*;
pub use token::*;
pub use vm::*;
