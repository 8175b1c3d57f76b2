//! The bodies of the targets whose corpus is replayed without a fuzzer, too (`qcow2/tests/replay.rs`).

pub mod qcow2_hashes;
pub mod qcow2_mutate;
pub mod qcow2_open;
