//! `sendense_nbd_…`: the NBD server, over all its listeners.

use std::fmt;

use engine::{Counts, Kind, NbdStatistics};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::family::Families;

/// The family, of this snapshot.
#[derive(Debug)]
pub(super) struct Nbd(pub(super) NbdStatistics);

impl Collector for Nbd {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(nbd) = self;
        let mut families = Families(encoder);
        connections(nbd, &mut families)?;
        requests(nbd, &mut families)
    }
}

fn connections(nbd: &NbdStatistics, families: &mut Families<'_>) -> fmt::Result {
    families.counter(
        "nbd_connections_accepted",
        "Connections that were accepted",
        nbd.accepted,
    )?;
    families.counter(
        "nbd_accept_failures",
        "Times the system refused to accept a connection",
        nbd.accept_failures,
    )?;
    families.gauge(
        "nbd_handshakes",
        "Connections in their handshake",
        nbd.handshaking,
    )?;
    families.counters(
        "nbd_handshakes_ended",
        "Connections that ended before they were sessions",
        "reason",
        cases(&nbd.handshakes_ended),
    )?;
    families.counters(
        "nbd_exports_refused",
        "Exports that were asked for and not given",
        "reason",
        cases(&nbd.exports_refused),
    )?;
    families.gauge(
        "nbd_sessions",
        "Connections past their handshake",
        nbd.sessions,
    )?;
    families.counter(
        "nbd_sessions_begun",
        "Handshakes that led to a session",
        nbd.sessions_begun,
    )?;
    families.counters(
        "nbd_sessions_ended",
        "Sessions that ended",
        "reason",
        cases(&nbd.sessions_ended),
    )?;
    families.counter(
        "nbd_drains_cut",
        "Sessions whose last answers could not be delivered in time",
        nbd.drains_cut,
    )
}

fn requests(nbd: &NbdStatistics, families: &mut Families<'_>) -> fmt::Result {
    families.counters(
        "nbd_requests",
        "Requests that were taken",
        "command",
        cases(&nbd.requests),
    )?;
    families.gauge(
        "nbd_requests_in_flight",
        "Requests whose answer has not left yet",
        nbd.requests_in_flight,
    )?;
    families.counters(
        "nbd_errors",
        "Requests that were answered by an error",
        "code",
        cases(&nbd.errors),
    )?;
    families.bytes(
        "nbd_payload",
        "Payload of requests and replies",
        "direction",
        [("received", nbd.received_bytes), ("sent", nbd.sent_bytes)],
    )?;
    families.gauge_bytes(
        "nbd_payload_held",
        "Payload memory that connections hold",
        nbd.held_bytes,
    )
}

fn cases<K: Kind>(counts: &Counts<K>) -> impl Iterator<Item = (&'static str, u64)> {
    counts.iter().map(|(kind, number)| (kind.name(), number))
}
