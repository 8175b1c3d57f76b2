//! What an engine is opened with.

use std::path::PathBuf;

/// Where an engine keeps its state and how others reach it.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The state of this hub: the SQLite file and the default repository live here.
    pub data_dir: PathBuf,
    /// `sqlite:PATH`; `None` is `hub.db` in `data_dir`.
    pub database: Option<String>,
    /// `HOST:PORT` that `nbd_targets` and `nbd_url` name.
    pub nbd_advertise: String,
    /// Base URL of the node appliance.
    pub node_url: String,
}

impl EngineConfig {
    /// The database's URL: the one given, or the default under `data_dir`.
    #[must_use]
    pub fn database_url(&self) -> String {
        match &self.database {
            Some(url) => url.clone(),
            None => format!("sqlite:{}", self.data_dir.join("hub.db").display()),
        }
    }
}
