//! The node side of Sendense Hub: reads the disks of a VM and pushes them to the hub over NBD.

mod limits;
pub mod nbd;
