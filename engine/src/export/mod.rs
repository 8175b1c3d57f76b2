//! Live exports: the devices that the NBD server serves, from the first request to the fence.
//!
//! ```text
//! registry (name ─▶ live export) ──open──▶ session ──gate──▶ device: sink (an image being written)
//!                                                                    source (a chain being read)
//! ```

mod device;
mod gate;
mod live;
mod registry;
mod session;
mod sink;
mod source;

#[cfg(test)]
mod tests;

pub use registry::ExportRegistry;
pub use session::OpenExport;

pub(crate) use device::{Device, DeviceError};
pub(crate) use live::{FailureReport, LiveExport, StorageFailure};
pub(crate) use registry::RegisterError;
