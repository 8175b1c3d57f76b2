//! The node side of Sendense Hub: reads the disks of a VM and pushes them to the hub over NBD.
//!
//! ```text
//!  source ──▶ push ──▶ nbd ──▶ hub's export        backup: the steps, from registration to the last acknowledgement
//!    tracker ──▲  (what the hub has already)       hub:    the REST calls around them
//! ```
//!
//! [`backup()`] does the whole thing. [`nbd`] is a small NBD client for others.

mod backup;
pub mod cli;
mod error;
mod hub;
mod limits;
pub mod nbd;
mod push;
mod source;
mod tracker;

pub use backup::{
    BackupOptions, BackupReport, BackupType, DEFAULT_CONNECTIONS, DiskReport, HubCounters,
    Progress, Silent, Token, Warning, backup,
};
pub use error::{Error, ErrorKind};
pub use source::{Run, Source, SourceSpec, Unchanged};
pub use tracker::Everything;
