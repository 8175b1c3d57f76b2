//! What a server has seen: counted while it works, told as plain numbers.

mod counters;
mod kinds;
mod tally;

pub use kinds::{CommandKind, ErrorKind, ExportRefusal, HandshakeEnd, Kind, SessionEnd};
pub use tally::Counts;

pub(crate) use counters::{Counted, Counters, Gauge};

/// What the connections of a [`Gate`](crate::Gate) did since it was made, as far as it was counted
/// when this was taken. Sums may be a moment apart from their parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistics {
    /// Connections that were accepted.
    pub accepted: u64,
    /// Times the system refused to accept one, mostly because descriptors had run out.
    pub accept_failures: u64,
    /// Connections in their handshake now.
    pub handshaking: u64,
    /// Connections that ended before they were sessions.
    pub handshakes_ended: Counts<HandshakeEnd>,
    /// Exports that were asked for and not given.
    pub exports_refused: Counts<ExportRefusal>,
    /// Handshakes that led to a session.
    pub sessions_begun: u64,
    /// Sessions now.
    pub sessions: u64,
    /// Sessions that ended.
    pub sessions_ended: Counts<SessionEnd>,
    /// Sessions whose last answers could not be delivered in time.
    pub drains_cut: u64,
    /// Requests that were taken.
    pub requests: Counts<CommandKind>,
    /// Requests that were taken and whose answer has not left yet.
    pub requests_in_flight: u64,
    /// Requests that were answered by an error.
    pub errors: Counts<ErrorKind>,
    /// Payload of WRITEs that was received to be written.
    pub received_bytes: u64,
    /// Payload of replies that was sent.
    pub sent_bytes: u64,
    /// Payload memory that connections hold now, in either direction.
    pub held_bytes: u64,
}
