//! What is backed up: a raw file, a block device, or a qcow2 file with its backing chain.

mod image;
mod opener;
mod raw;
mod spec;
#[cfg(test)]
mod tests;
mod traits;

pub use spec::SourceSpec;
pub use traits::{Run, Source, Unchanged};
