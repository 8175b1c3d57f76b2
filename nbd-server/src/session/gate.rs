use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::payload::Payloads;
use super::room::{Arrival, Room};
use crate::proto::ExportName;
use crate::proto::limits::{ACCEPT_PAUSE, EVICTED_AT_ONCE};
use crate::statistics::{Counters, ExportRefusal};
use crate::{Peer, ServerLimits, Statistics};

/// What the connections of a server share: its limits, the room for handshakes, the memory for
/// payloads, how many sessions each export has, and what is counted of all that.
#[derive(Debug, Clone)]
pub struct Gate {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: ServerLimits,
    counters: Arc<Counters>,
    room: Arc<Room>,
    payloads: Arc<Payloads>,
    sessions: Mutex<Sessions>,
}

#[derive(Debug, Default)]
struct Sessions {
    all: u32,
    of_export: HashMap<ExportName, u32>,
}

impl Gate {
    /// A gate with these limits and no connection.
    #[must_use]
    pub fn new(limits: ServerLimits) -> Self {
        let counters = Arc::new(Counters::default());
        let room = Room::new(limits.handshakes, limits.handshakes_per_address);
        let payloads = Payloads::new(limits.payload_budget_bytes, Arc::clone(&counters));
        Self {
            shared: Arc::new(Shared {
                limits,
                counters,
                room: Arc::new(room),
                payloads: Arc::new(payloads),
                sessions: Mutex::default(),
            }),
        }
    }

    /// What was counted so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.shared.counters.statistics()
    }

    pub(crate) fn limits(&self) -> &ServerLimits {
        &self.shared.limits
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }

    pub(crate) fn payloads(&self) -> Arc<Payloads> {
        Arc::clone(&self.shared.payloads)
    }

    /// A place among the handshakes; somebody else may have to go for it.
    pub(crate) fn arrive(&self, peer: &Peer) -> Arrival {
        // Everybody behind a tunnel comes from the loopback address: it says nothing about who it is.
        let address = peer.ip().filter(|address| !address.is_loopback());
        self.shared.room.arrive(address)
    }

    /// After the system refused a socket: lets the oldest handshakes go, and waits until a
    /// descriptor came back, or for a moment if there is nobody to let go.
    pub(crate) async fn make_room(&self) {
        let departed = self.shared.room.evict(EVICTED_AT_ONCE);
        // In time or not: the next accept tells.
        let _ = tokio::time::timeout(ACCEPT_PAUSE, departed).await;
    }

    /// A place among the sessions of an export.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(crate) fn enter(&self, name: &ExportName) -> Result<Place, ExportRefusal> {
        let limits = &self.shared.limits;
        let mut sessions = self.shared.sessions.lock();
        if sessions.all >= limits.sessions {
            return Err(ExportRefusal::ServerFull);
        }
        let of_export = sessions.of_export.get(name).copied().unwrap_or(0);
        if of_export >= limits.connections_per_export {
            return Err(ExportRefusal::ExportFull);
        }
        sessions.of_export.insert(name.clone(), of_export + 1);
        sessions.all += 1;
        Ok(Place {
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
        sessions.all -= 1;
        match sessions.of_export.get_mut(&self.name) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                sessions.of_export.remove(&self.name);
            }
        }
    }
}
