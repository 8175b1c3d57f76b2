//! Work on image files without a hub: what `sendense-hub export` and `sendense-hub image …` do. No catalog, no repository.

mod copy;
mod discard;
mod files;
mod image;
mod serve;
mod source;
mod verify;

pub use image::{
    CheckReport, CompressionType, ConvertImage, Converted, CreateImage, ImageFacts, MapExtent,
    Repair, RepairReport, changes, check, compare, convert, create, info, map, repair,
};
pub use serve::{Device, NamedDevice, Server, serve};
pub use source::{ImageFormat, Source};
pub use verify::{Damage, DamageKind, Verified, VerifiedFile, VerifyReport, verify};

pub(crate) use copy::{compare_devices, copy_data};
pub(crate) use files::{NewFile, RawFile};

#[cfg(test)]
mod tests;
