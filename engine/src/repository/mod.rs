//! Image files on disk, and the only place that knows their paths.

mod error;
mod images;
mod layout;
mod lock;
mod manifest;
mod mounts;
mod opener;
mod root;
mod sweep;

pub(crate) use error::{file_error, image_error};
pub(crate) use images::{Discard, ImageState, Repository, StorageWrapper};
pub(crate) use layout::{ImagePath, is_protocol};
pub(crate) use lock::DataLock;
pub(crate) use manifest::{Counters, ImageFacts, MANIFEST_VERSION, Manifest};
pub(crate) use mounts::{ensure_mounted, expect_mounted};
pub(crate) use root::{Root, Space};
