//! Live exports by name: what the NBD listener serves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_server::{ExportName, Exports, OpenError, Peer};

use super::live::LiveExport;
use super::session::OpenExport;
use crate::limits::EXPORTS_MAX;

/// The devices that clients can open now.
#[derive(Default)]
pub struct ExportRegistry {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: HashMap<String, Arc<LiveExport>>,
    /// What the empty name means; nothing in a hub, the only device of a stand-alone server.
    default_export: Option<Arc<LiveExport>>,
    /// Names that a client may be shown. A hub shows none: a name is what lets a client write.
    listed: Vec<String>,
    shutting_down: bool,
}

/// Why a device cannot be served under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error("export name is taken")]
    Taken,
    #[error("too many exports, limit={EXPORTS_MAX}")]
    TooMany,
    #[error("the hub is shutting down")]
    ShuttingDown,
}

impl std::fmt::Debug for ExportRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        f.debug_struct("ExportRegistry")
            .field("live", &state.live.len())
            .field("shutting_down", &state.shutting_down)
            .finish()
    }
}

impl ExportRegistry {
    /// Serves `export` under `name` from now on.
    pub(crate) fn register(
        &self,
        name: &str,
        export: Arc<LiveExport>,
    ) -> Result<(), RegisterError> {
        let mut state = self.state();
        if state.shutting_down {
            return Err(RegisterError::ShuttingDown);
        }
        if state.live.len() >= EXPORTS_MAX {
            return Err(RegisterError::TooMany);
        }
        if state.live.contains_key(name) {
            return Err(RegisterError::Taken);
        }
        state.live.insert(name.to_owned(), export);
        Ok(())
    }

    /// Lets LIST show the names that are registered now, and the empty name mean the only one of them.
    pub(crate) fn publish_names(&self) {
        let mut state = self.state();
        let mut names: Vec<String> = state.live.keys().cloned().collect();
        names.sort();
        state.default_export = match names.as_slice() {
            [only] => state.live.get(only).cloned(),
            _ => None,
        };
        state.listed = names;
    }

    /// No new connection finds `name`. Open ones stay until the export is withdrawn.
    pub(crate) fn unregister(&self, name: &str) {
        self.state().live.remove(name);
    }

    /// Refuses everything from now on and returns what was live.
    pub(crate) fn shut_down(&self) -> Vec<Arc<LiveExport>> {
        let mut state = self.state();
        state.shutting_down = true;
        state.default_export = None;
        state.listed.clear();
        state.live.drain().map(|(_, export)| export).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while holding it; a poisoned map would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exports for ExportRegistry {
    type Export = OpenExport;

    async fn open(&self, name: &ExportName, _peer: &Peer) -> Result<OpenExport, OpenError> {
        let state = self.state();
        if state.shutting_down {
            return Err(OpenError::ShuttingDown);
        }
        let named = state.live.get(name.as_str()).cloned();
        let found = match named {
            None if name.as_str().is_empty() => state.default_export.clone(),
            other => other,
        };
        found.map(OpenExport::new).ok_or(OpenError::Unknown)
    }

    async fn list(&self, _peer: &Peer) -> Vec<String> {
        self.state().listed.clone()
    }
}
