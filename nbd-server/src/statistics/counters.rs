//! Where the parts of a server count.

use std::sync::Arc;

use super::Statistics;
use super::kinds::{CommandKind, ErrorKind, ExportRefusal, HandshakeEnd, Kind, SessionEnd, kinds};
use super::tally::Tally;
use crate::proto::{CommandCode, ErrorCode};

kinds! {
    /// What only grows and has no cases.
    Total {
        /// See [`Statistics::accepted`].
        Accepted = "accepted";
        /// See [`Statistics::accept_failures`].
        AcceptFailures = "accept_failures";
        /// See [`Statistics::sessions_begun`].
        SessionsBegun = "sessions_begun";
        /// See [`Statistics::drains_cut`].
        DrainsCut = "drains_cut";
        /// See [`Statistics::received_bytes`].
        ReceivedBytes = "received_bytes";
        /// See [`Statistics::sent_bytes`].
        SentBytes = "sent_bytes";
    }
}

kinds! {
    /// What grows and shrinks.
    pub(crate) Gauge {
        /// See [`Statistics::handshaking`].
        Handshaking = "handshaking";
        /// See [`Statistics::sessions`].
        Sessions = "sessions";
        /// See [`Statistics::requests_in_flight`].
        Requests = "requests";
        /// See [`Statistics::held_bytes`].
        HeldBytes = "held_bytes";
    }
}

/// The numbers of one gate, while they are counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    totals: Tally<Total>,
    gauges: Tally<Gauge>,
    handshakes_ended: Tally<HandshakeEnd>,
    exports_refused: Tally<ExportRefusal>,
    sessions_ended: Tally<SessionEnd>,
    requests: Tally<CommandKind>,
    errors: Tally<ErrorKind>,
}

impl Counters {
    pub(crate) fn accepted(&self) {
        self.totals.add(Total::Accepted, 1);
    }

    pub(crate) fn accept_failed(&self) {
        self.totals.add(Total::AcceptFailures, 1);
    }

    pub(crate) fn handshake_ended(&self, how: HandshakeEnd) {
        self.handshakes_ended.add(how, 1);
    }

    pub(crate) fn export_refused(&self, why: ExportRefusal) {
        self.exports_refused.add(why, 1);
    }

    pub(crate) fn session_begun(&self) {
        self.totals.add(Total::SessionsBegun, 1);
    }

    pub(crate) fn session_ended(&self, how: SessionEnd) {
        self.sessions_ended.add(how, 1);
    }

    pub(crate) fn drain_cut(&self) {
        self.totals.add(Total::DrainsCut, 1);
    }

    pub(crate) fn request(&self, command: CommandCode) {
        self.requests.add(command.into(), 1);
    }

    pub(crate) fn error(&self, code: ErrorCode) {
        self.errors.add(code.into(), 1);
    }

    pub(crate) fn received(&self, len_bytes: u64) {
        self.totals.add(Total::ReceivedBytes, len_bytes);
    }

    pub(crate) fn sent(&self, len_bytes: u64) {
        self.totals.add(Total::SentBytes, len_bytes);
    }

    /// Counts until the guard is dropped.
    pub(crate) fn count(self: &Arc<Self>, gauge: Gauge, number: u64) -> Counted {
        self.gauges.add(gauge, number);
        Counted {
            counters: Arc::clone(self),
            gauge,
            number,
        }
    }

    /// The numbers now.
    pub(crate) fn statistics(&self) -> Statistics {
        let (totals, gauges) = (self.totals.counts(), self.gauges.counts());
        Statistics {
            accepted: totals.get(Total::Accepted),
            accept_failures: totals.get(Total::AcceptFailures),
            handshaking: gauges.get(Gauge::Handshaking),
            handshakes_ended: self.handshakes_ended.counts(),
            exports_refused: self.exports_refused.counts(),
            sessions_begun: totals.get(Total::SessionsBegun),
            sessions: gauges.get(Gauge::Sessions),
            sessions_ended: self.sessions_ended.counts(),
            drains_cut: totals.get(Total::DrainsCut),
            requests: self.requests.counts(),
            requests_in_flight: gauges.get(Gauge::Requests),
            errors: self.errors.counts(),
            received_bytes: totals.get(Total::ReceivedBytes),
            sent_bytes: totals.get(Total::SentBytes),
            held_bytes: gauges.get(Gauge::HeldBytes),
        }
    }
}

/// Something that is there as long as this is.
#[derive(Debug)]
pub(crate) struct Counted {
    counters: Arc<Counters>,
    gauge: Gauge,
    number: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counters.gauges.subtract(self.gauge, self.number);
    }
}
