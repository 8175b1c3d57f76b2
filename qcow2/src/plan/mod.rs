//! Decisions over tables in memory: what a request means for clusters, where new ones go, and in which
//! order changes become durable. Pure: no IO, no clock, no threads.

pub mod allocate;
pub mod order;
pub mod read;
pub mod write;
pub mod zero;
