//! What the hub is: backups, chains, jobs, exports, and the two stores.
//!
//! ```text
//! Engine ─▶ workflow (one file per verb) ─▶ model (decides, pure)
//!                │                        ├▶ catalog (facts, SQL)
//!                │                        └▶ repository (image files)
//!                └▶ export (what the NBD server serves), node (who moves the data)
//! ```

mod blocking;
pub mod catalog;
pub mod clock;
pub mod config;
pub mod descriptors;
mod engine;
pub mod error;
pub mod export;
pub mod id;
pub mod limits;
pub mod model;
mod node;
mod random;
mod repository;
pub mod standalone;
mod tokens;
mod workflow;

pub use catalog::Catalog;
pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use config::{EngineConfig, Secret};
pub use engine::Engine;
pub use error::{Error, ErrorKind};
pub use export::ExportRegistry;
pub use id::{
    BackupDiskId, BackupId, ChangeId, ContextId, CopyId, CopyRuleId, DeviceKey, DiskIndex,
    ExportName, PolicyId, RepositoryId, VmContextId,
};
pub use model::*;
pub use tokens::Tokens;
pub use workflow::{Heard, Subscription};

/// What the NBD server counts.
pub use nbd_server::Statistics as NbdStatistics;
pub use nbd_server::statistics::{Counts, Kind};
/// A bound NBD listener and its address, so that `api` wires the hub without a dependency on the NBD crate.
pub use nbd_server::{
    Endpoint, ListenAddress, Listener, ServerLimits, Tls, TlsError, TlsPem, TlsServer,
};
