//! Bytes to types and back: the layout of the format, nothing else. Pure: no IO, no clock, no threads.
//!
//! Rules come from QEMU's `docs/interop/qcow2`, named at each item as "qcow2 spec".

pub mod compression;
pub mod digest;
pub mod extension;
pub mod feature;
pub mod geometry;
pub mod header;
pub mod l1;
pub mod l2;
pub mod limits;
pub mod refcount;
pub mod seal;
pub mod snapshot;
pub mod subcluster;
pub mod suspect;
pub mod wire;
