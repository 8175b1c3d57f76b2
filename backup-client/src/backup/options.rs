//! What the caller asks for.

use std::fmt;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use crate::limits::{MAX_CONNECTIONS, MAX_DISKS};
use crate::source::SourceSpec;
use crate::{Error, ErrorKind};

/// Connections per export unless told otherwise: one saturates a core on each side, four a fast network.
pub const DEFAULT_CONNECTIONS: usize = 4;

/// A backup to be made.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// Address of the hub, `http://HOST:PORT`.
    pub hub: String,
    /// Bearer token for the hub.
    pub token: Option<Token>,
    /// Name of the VM; registered where the hub does not know it.
    pub vm_name: String,
    /// The VM's disks in order: the first becomes `disk-2000`.
    pub disks: Vec<SourceSpec>,
    /// Full, incremental, or what the hub finds right.
    pub backup_type: BackupType,
    /// Where to; `None` takes the hub's first enabled repository.
    pub repository: Option<String>,
    /// Where tracking states are kept; `None` switches tracking off.
    pub state_dir: Option<PathBuf>,
    /// NBD connections per disk, `1..=16`; one is used where the hub does not promise more.
    pub connections: usize,
    /// Cancelling it ends the job at the hub and the call with an error of kind `Cancelled`.
    pub cancel: CancellationToken,
}

impl BackupOptions {
    /// An `auto` backup without tracking, with default connections, that nobody cancels.
    #[must_use]
    pub fn new(hub: &str, vm_name: &str, disks: Vec<SourceSpec>) -> Self {
        Self {
            hub: hub.to_owned(),
            token: None,
            vm_name: vm_name.to_owned(),
            disks,
            backup_type: BackupType::Auto,
            repository: None,
            state_dir: None,
            connections: DEFAULT_CONNECTIONS,
            cancel: CancellationToken::new(),
        }
    }

    /// Refuses what cannot work, before anything is touched.
    pub(super) fn check(&self) -> Result<(), Error> {
        let refuse = |text: String| Err(Error::new(ErrorKind::Usage, text));
        if matches!(self.vm_name.as_str(), "" | "." | "..") {
            return refuse(format!("no usable vm name vm={:?}", self.vm_name));
        }
        if self.disks.is_empty() || self.disks.len() > MAX_DISKS {
            return refuse(format!(
                "a vm has between 1 and {MAX_DISKS} disks given={}",
                self.disks.len()
            ));
        }
        if !(1..=MAX_CONNECTIONS).contains(&self.connections) {
            return refuse(format!(
                "connections must be between 1 and {MAX_CONNECTIONS} given={}",
                self.connections
            ));
        }
        Ok(())
    }
}

/// A secret that never shows in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl From<String> for Token {
    fn from(secret: String) -> Self {
        Self(secret)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

/// Which kind of backup is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackupType {
    /// An increment where the hub has a good parent, else a full one.
    #[default]
    Auto,
    /// Everything, on its own.
    Full,
    /// On top of the last backup; an error where there is none.
    Incremental,
}

impl BackupType {
    /// The word of the REST API.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Full => "full",
            Self::Incremental => "incremental",
        }
    }
}
