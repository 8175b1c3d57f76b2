//! What an engine is opened with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::model::WatchLimits;

/// Where an engine keeps its state and how others reach it.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The state of this hub: the SQLite file and the default repository live here.
    pub data_dir: PathBuf,
    /// `sqlite:PATH`; `None` is `hub.db` in `data_dir`.
    pub database: Option<String>,
    /// `HOST:PORT` that `nbd_targets` and `nbd_url` name; with `nbds://` before it where nothing is
    /// served without TLS.
    pub nbd_advertise: String,
    /// Base URL of the node appliance that serves every vCenter without one of its own.
    pub node_url: String,
    /// Base URLs of node appliances by the host name of the vCenter that they serve.
    pub vcenter_node_urls: BTreeMap<String, String>,
    /// Whether exports have names that nobody guesses, instead of the ids of their backups.
    pub private_exports: bool,
    /// The key that stored passwords are encrypted with: base64 of 32 bytes. Without it no password can be stored or used.
    pub credential_key: Option<Secret>,
    /// How long a running backup may be without a sign of its client.
    pub watch: WatchLimits,
    /// Whether NBD clients may have 64-bit lengths.
    pub extended_headers: bool,
}

/// A text that no log may show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` from being shown.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl EngineConfig {
    /// The database's URL: the one given, or the default under `data_dir`.
    #[must_use]
    pub fn database_url(&self) -> String {
        Self::url_of(&self.data_dir, self.database.as_deref())
    }

    /// The URL of the database of the hub on `data_dir`.
    #[must_use]
    pub fn url_of(data_dir: &Path, database: Option<&str>) -> String {
        match database {
            Some(url) => url.to_owned(),
            None => format!("sqlite:{}", data_dir.join("hub.db").display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(secret.reveal(), "hunter2");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }
}
