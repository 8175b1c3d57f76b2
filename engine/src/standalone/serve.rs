//! Serves image files over NBD, without a hub.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbd_server::{Endpoint, Gate, ListenAddress, Listener, ServerLimits, Statistics};
use qcow2::{Chain, FileStorage, Image, Opener};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::discard::DiscardSink;
use super::files::RawFile;
use super::image::{CreateImage, format_image};
use super::source::{ImageFormat, OpenedSource, Source};
use crate::blocking::blocking;
use crate::descriptors;
use crate::error::{Error, ErrorKind};
use crate::export::{Device as BlockDevice, ExportRegistry, LiveExport};
use crate::limits::IMAGE_CLUSTER_BYTES;
use crate::repository::{file_error, image_error};

/// What one name on the wire stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// An existing image file, qcow2 (any legal feature, or a plain refusal) or raw.
    Open {
        /// The file.
        source: Source,
        /// Takes no writes.
        read_only: bool,
    },
    /// A new qcow2 file; refuses to overwrite.
    Create {
        /// The new file.
        path: PathBuf,
        /// Size of the disk.
        size_bytes: u64,
        /// The image below, as [`CreateImage::backing`].
        backing: Option<Source>,
    },
    /// Accepts and forgets writes, reads as zero: for measuring the wire.
    DiscardSink {
        /// Size of the disk.
        size_bytes: u64,
    },
}

/// A device and the export name that means it. With exactly one device the empty name means it, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedDevice {
    /// The export name.
    pub name: String,
    /// What it stands for.
    pub device: Device,
}

/// Devices being served; `stop` (not drop) is the orderly end.
#[derive(Debug)]
pub struct Server {
    exports: Arc<ExportRegistry>,
    endpoints: Vec<Endpoint>,
    gate: Gate,
    listeners: JoinSet<()>,
    stop: CancellationToken,
}

impl Server {
    /// Where it listens, with the port that was given for port 0; same order as asked.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<ListenAddress> {
        let endpoints = self.endpoints.iter();
        endpoints.map(|endpoint| endpoint.address.clone()).collect()
    }

    /// The same, and what is done about TLS there.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// What its listeners counted.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.gate.statistics()
    }

    /// Stops accepting, answers what is in flight, flushes every writable image, closes.
    ///
    /// # Errors
    ///
    /// The first image that could not be flushed; the others are.
    pub async fn stop(mut self) -> Result<(), Error> {
        self.stop.cancel();
        while self.listeners.join_next().await.is_some() {}
        let mut outcome = Ok(());
        for export in self.exports.shut_down() {
            export.withdraw();
            export.stop_requests().await;
            let flushed = blocking(move || {
                export.device().flush().map_err(|error| {
                    let full = error.code == nbd_server::ErrorCode::NOSPC;
                    let kind = if full {
                        ErrorKind::NoSpace
                    } else {
                        ErrorKind::Unavailable
                    };
                    Error::new(kind, "failed to flush image", error.to_string())
                })
            })
            .await;
            outcome = outcome.and(flushed);
        }
        outcome
    }
}

/// Opens every device first (a refusal comes before anything listens), then binds every address and serves. The limits
/// count for all addresses together.
///
/// # Errors
///
/// `Conflict` for a name given twice, a file that exists or is being written by another process; what opening an image says;
/// `Unavailable` for an address that cannot be bound.
pub async fn serve(
    devices: Vec<NamedDevice>,
    listen: &[Endpoint],
    limits: ServerLimits,
) -> Result<Server, Error> {
    let exports = Arc::new(ExportRegistry::default());
    for named in devices {
        let device = blocking(move || open(&named.device).map(|device| (named.name, device))).await;
        let (name, device) = device?;
        let size_bytes = device.size_bytes();
        let live = Arc::new(LiveExport::new(device, size_bytes, None));
        exports.register(&name, live).map_err(|error| {
            Error::conflict("failed to serve image", format!("name={name}")).with_source(error)
        })?;
    }
    exports.publish_names();
    let gate = Gate::new(limits.within_descriptors(descriptors::current()));
    let mut bound = Vec::with_capacity(listen.len());
    for Endpoint { address, tls } in listen {
        let listener = Listener::bind(address).await.map_err(|error| {
            Error::new(
                ErrorKind::Unavailable,
                "failed to listen",
                format!("address={address:?}"),
            )
            .with_source(error)
        })?;
        bound.push(listener.with_tls(tls.clone()).with_gate(gate.clone()));
    }
    let stop = CancellationToken::new();
    let endpoints = bound.iter().map(Listener::endpoint).collect();
    let mut listeners = JoinSet::new();
    for listener in bound {
        let (exports, stop) = (Arc::clone(&exports), stop.clone());
        listeners.spawn(async move { listener.serve(exports, stop).await });
    }
    Ok(Server {
        exports,
        endpoints,
        gate,
        listeners,
        stop,
    })
}

fn open(device: &Device) -> Result<Arc<dyn BlockDevice>, Error> {
    match device {
        Device::DiscardSink { size_bytes } => Ok(Arc::new(DiscardSink {
            size_bytes: *size_bytes,
        })),
        Device::Create {
            path,
            size_bytes,
            backing,
        } => create(path, *size_bytes, backing.clone()),
        Device::Open { source, read_only } => {
            let opened = source.open(*read_only)?;
            if !read_only {
                lock(&opened.file, &opened.path)?;
            }
            match (opened.format, *read_only) {
                (ImageFormat::Raw, _) => Ok(Arc::new(RawFile::take(opened.file, *read_only)?)),
                (ImageFormat::Qcow2, true) => Ok(Arc::new(opened.chain()?)),
                (ImageFormat::Qcow2, false) => Ok(Arc::new(open_for_writing(&opened)?)),
            }
        }
    }
}

fn create(
    path: &Path,
    size_bytes: u64,
    backing: Option<Source>,
) -> Result<Arc<dyn BlockDevice>, Error> {
    let failed = |error| {
        file_error(
            "failed to create image",
            format!("path={}", path.display()),
            error,
        )
    };
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(failed)?;
    let image = CreateImage {
        cluster_size_bytes: IMAGE_CLUSTER_BYTES,
        backing,
        ..CreateImage::new(path, Some(size_bytes))
    };
    let made = lock(&file, path).and_then(|()| format_image(file, &image));
    match made {
        Ok(image) => Ok(Arc::new(image)),
        Err(error) => {
            // Ours, and empty: a second try must find its name free.
            let _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}

/// Opens a qcow2 file for writing, and what is below it for reading.
fn open_for_writing(opened: &OpenedSource) -> Result<Image, Error> {
    let path = opened.path.display().to_string();
    let failed = |error| image_error("failed to open image", format!("path={path}"), error);
    let tip = opened.chain()?.layers().into_iter().next();
    let backing = tip.and_then(|(_, info)| info.backing);
    let parent = match backing {
        None => None,
        Some(name) => {
            let below = opened.opener.open_backing(&name, &path).map_err(failed)?;
            let chain = Chain::open(below.storage, &below.identity, below.format, &opened.opener);
            Some(Arc::new(chain.map_err(failed)?))
        }
    };
    let file = opened
        .file
        .try_clone()
        .map_err(|error| file_error("failed to open image", format!("path={path}"), error))?;
    Image::open(Arc::new(FileStorage::new(file)), parent).map_err(failed)
}

/// Takes the whole-file lock of `flock`: two of our servers never write one file. qemu's byte-range locks do not see it.
pub(super) fn lock(file: &File, path: &Path) -> Result<(), Error> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Error::conflict(
            "image is being written by another process",
            format!("path={}", path.display()),
        )),
        Err(TryLockError::Error(error)) => Err(file_error(
            "failed to lock image",
            format!("path={}", path.display()),
            error,
        )),
    }
}
