//! Reads and writes qcow2 images and backing chains on a [`Storage`]: concurrent, crash-consistent, safe Rust.
//!
//! ```text
//!        Image (one writer of a file)          Chain (base..tip, read-only)        check
//!          │ locks on ranges │ commits            │ one extent map per range         │
//!          ▼                 ▼                    ▼                                  ▼
//!        plan::write     plan::order          plan::read                         format::*
//!        plan::allocate  (what is durable     (runs of clusters)        (bytes <-> types, all shifts,
//!          │              before what)            │                      all limits)
//!          └────────────────┬─────────────────────┴──────────────────────────────────┘
//!                           ▼
//!                  Storage: FileStorage · MemoryStorage · FaultyStorage · yours
//! ```
//! `format` and `plan` are pure and are all that remains without the feature `io`. Everything above blocks its
//! thread while it reads and writes; share an [`Image`] or a [`Chain`] by `Arc` among as many threads as you like.
//!
//! Offsets and lengths are bytes of the virtual disk, of any alignment, unless a name says otherwise; [`Error::kind`] says
//! what a caller should do about an error.
//!
//! The contract: what was written before a [`Image::flush`] that returned is there after a loss of power; what
//! came later is there or not, sector by sector; the file is never more wrong than some leaked clusters.
//!
//! ```
//! use std::sync::Arc;
//! use qcow2::{CreateOptions, Image, MemoryStorage};
//!
//! # fn main() -> Result<(), qcow2::Error> {
//! let storage = Arc::new(MemoryStorage::new());
//! let image = Image::create(storage, &CreateOptions::new(1 << 30), None)?;
//! image.write(4096, b"hello")?;
//! image.flush()?;
//! let mut into = [0; 5];
//! image.read(4096, &mut into)?;
//! assert_eq!(&into, b"hello");
//! # Ok(())
//! # }
//! ```

// The README's example is compiled and run like every other one.
#[cfg(all(doctest, feature = "io"))]
#[doc = include_str!("../README.md")]
struct Readme;

mod error;
pub mod format;
pub mod plan;

#[cfg(feature = "io")]
mod chain;
#[cfg(feature = "io")]
mod check;
#[cfg(feature = "io")]
mod codec;
#[cfg(feature = "io")]
mod hashes;
#[cfg(feature = "io")]
mod image;
#[cfg(feature = "io")]
pub mod storage;
#[cfg(feature = "io")]
mod sync;

pub use error::{Error, ErrorKind};
pub use format::compression::CompressionType;
pub use format::digest::Digest;
pub use format::seal::Seal;

#[cfg(feature = "io")]
pub use chain::{Chain, Changes, OpenedBacking, Opener};
#[cfg(feature = "io")]
pub use check::{CheckReport, Repair, RepairReport, check, repair};
#[cfg(feature = "io")]
pub use hashes::{ClusterHash, Damage, DamageKind, HashPage, Hashes, Subset, VerifyReport, verify};
#[cfg(feature = "io")]
pub use image::{
    BackingFormat, BackingName, CreateOptions, Elision, Extent, ExtentKind, Image, ImageInfo,
    MemoryLimits, WriteCounters,
};
#[cfg(feature = "io")]
pub use storage::{FaultyStorage, FileStorage, MemoryStorage, Storage};
