use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::payload::Payloads;
use crate::ServerLimits;
use crate::proto::ExportName;

/// What the connections of a server share: its limits, the memory for payloads, and how many
/// sessions each export has.
#[derive(Debug, Clone)]
pub struct Gate {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: ServerLimits,
    payloads: Arc<Payloads>,
    sessions: Mutex<HashMap<ExportName, u32>>,
}

impl Gate {
    /// A gate with these limits and no connection.
    #[must_use]
    pub fn new(limits: ServerLimits) -> Self {
        let payloads = Arc::new(Payloads::new(limits.payload_budget_bytes));
        Self {
            shared: Arc::new(Shared {
                limits,
                payloads,
                sessions: Mutex::default(),
            }),
        }
    }

    pub(crate) fn limits(&self) -> &ServerLimits {
        &self.shared.limits
    }

    pub(crate) fn payloads(&self) -> Arc<Payloads> {
        Arc::clone(&self.shared.payloads)
    }

    /// A place among the sessions of an export, if there is one.
    pub(crate) fn enter(&self, name: &ExportName) -> Option<Place> {
        let mut sessions = self.shared.sessions.lock();
        let count = sessions.get(name).copied().unwrap_or(0);
        if count >= self.shared.limits.connections_per_export {
            return None;
        }
        sessions.insert(name.clone(), count + 1);
        Some(Place {
            gate: self.clone(),
            name: name.clone(),
        })
    }
}

/// A place among the sessions of an export; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    gate: Gate,
    name: ExportName,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sessions = self.gate.shared.sessions.lock();
        match sessions.get_mut(&self.name) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                sessions.remove(&self.name);
            }
        }
    }
}
