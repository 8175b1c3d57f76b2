//! The node side of Sendense Hub: reads the disks of a VM and pushes them to the hub over NBD.

mod error;
mod limits;
pub mod nbd;
mod source;

pub use error::{Error, ErrorKind};
pub use source::{Run, Source, SourceSpec, Unchanged};
