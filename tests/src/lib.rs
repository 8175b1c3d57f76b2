//! The harness of the tests at the boundaries: real peers, seeds that replay, a hub as a process.
//!
//! - [`peers`]: the programs we are compared with. Missing is a loud skip, and a failure in CI.
//! - [`seed`]: every random test prints its seed; `SENDENSE_TEST_SEED` replays it.
//! - [`qemu`]: qemu-img as the oracle for every image.
//! - [`disk`], [`images`]: a disk as it must read, random traces, and all who can read an image.
//! - [`raw_disk`]: raw files that stand for the disks of a VM.
//! - [`hub`]: the real program, started, driven over REST and NBD, and killed.
//! - [`legacy`]: a node appliance of the legacy hub, and the backup client that it starts.
//! - [`lossy_fs`]: real files on a disk that loses what was not synced.
//! - [`usage`]: memory and descriptors of a process.
//! - [`wire`]: an NBD connection that misbehaves as told.
//! - [`certificates`]: folders of certificates for TLS, made on the spot.
//! - [`servers`]: NBD servers, ours and those of others, and one client that asks them all the same.
//! - [`options`]: a client of handshakes that no well-behaved client has.

#![expect(
    clippy::print_stderr,
    reason = "seeds and skips are told to whoever reads the test's output"
)]

pub mod certificates;
pub mod disk;

pub mod hub;
pub mod images;
pub mod legacy;
pub mod lossy_fs;
pub mod options;
pub mod peers;
pub mod qemu;
pub mod raw_disk;
pub mod seed;
pub mod servers;
pub mod usage;
pub mod wire;
