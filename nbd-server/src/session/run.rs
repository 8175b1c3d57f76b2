//! A connection from its first byte to its last.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::answer::Context;
use super::gate::Gate;
use super::handshake::{Opened, Stream, negotiate};
use super::payload::Allowance;
use super::receive::{Ended, Receiver};
use super::room::Arrival;
use super::write_replies::write_replies;
use crate::proto::Negotiated;
use crate::proto::limits::{IN_FLIGHT_REQUESTS, QUEUED_REPLIES, READ_AHEAD_BYTES};
use crate::statistics::{Counted, Gauge, HandshakeEnd};
use crate::{Export, Exports, Peer, Tls};

/// How a session is told to end.
#[derive(Debug, Clone)]
pub(crate) struct Fate {
    /// Take no more requests; answer what is in flight.
    ending: CancellationToken,
    /// Nothing more can be sent.
    cut: CancellationToken,
}

impl Fate {
    fn new(stop: &CancellationToken) -> Self {
        Self {
            ending: stop.child_token(),
            cut: CancellationToken::new(),
        }
    }

    pub(crate) fn cut(&self) {
        self.cut.cancel();
        self.ending.cancel();
    }

    pub(crate) async fn is_cut(&self) {
        self.cut.cancelled().await;
    }

    pub(crate) async fn ending(&self) {
        self.ending.cancelled().await;
    }

    pub(crate) fn was_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    pub(crate) fn must_end(&self) -> bool {
        self.ending.is_cancelled()
    }
}

/// Serves one connection until the client leaves, the export is withdrawn, or `stop` is cancelled.
///
/// `reader` and `writer` are the two halves of any byte stream. [`crate::Listener`] does this for
/// every client it accepts; this function is for streams that come from elsewhere, and for tests.
/// The connection counts from this call on, not from the first poll. `tls` begins inside of it, when
/// the client asks.
///
/// # Cancel safety
///
/// Dropping the future closes the connection at once; calls of the export that have begun run to
/// their end, but [`Export::close`] is not called. Cancel `stop` instead.
pub fn serve_connection<R, W, X>(
    reader: R,
    writer: W,
    peer: Peer,
    exports: Arc<X>,
    gate: Gate,
    tls: Tls,
    stop: CancellationToken,
) -> impl Future<Output = ()>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
    X: Exports,
{
    let client = tracing::field::Empty;
    let span = tracing::info_span!("nbd", peer = %peer.address, client);
    let arrival = Arrived::at(&gate, &peer);
    let halves = (reader, writer);
    // The future is large with all its states; it lives on the heap once, not in every caller.
    Box::pin(serve(halves, peer, exports, gate, arrival, tls, stop).instrument(span))
}

/// A connection in its handshake: its place, and that it is counted.
struct Arrived {
    place: Arrival,
    _counted: Counted,
}

impl Arrived {
    fn at(gate: &Gate, peer: &Peer) -> Self {
        gate.counters().accepted();
        Self {
            place: gate.arrive(peer),
            _counted: gate.counters().count(Gauge::Handshaking, 1),
        }
    }
}

async fn serve<R, W, X>(
    halves: (R, W),
    peer: Peer,
    exports: Arc<X>,
    gate: Gate,
    arrival: Arrived,
    tls: Tls,
    stop: CancellationToken,
) where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
    X: Exports,
{
    let mut input = BytesMut::with_capacity(READ_AHEAD_BYTES);
    let mut opened = None;
    let handshake = negotiate(
        halves,
        &mut input,
        (&*exports, peer, &gate, &tls),
        &mut opened,
    );
    let negotiated = tokio::select! {
        biased;
        () = stop.cancelled() => Err(HandshakeEnd::Stopped),
        () = arrival.place.evicted() => {
            tracing::debug!("evicted for a newcomer");
            Err(HandshakeEnd::Evicted)
        }
        outcome = timeout(gate.limits().handshake_timeout, handshake) => match outcome {
            Ok(Ok(Some(negotiated))) => Ok(negotiated),
            Ok(Ok(None)) => Err(HandshakeEnd::Left),
            Ok(Err(error)) => {
                error.log();
                Err(error.end())
            }
            Err(_) => {
                tracing::debug!("no handshake in time");
                Err(HandshakeEnd::TimedOut)
            }
        },
    };
    // Nothing that was kept for the program's answers is needed from here on.
    drop(exports);
    match (opened, negotiated) {
        (Some(opened), Ok((negotiated, stream))) => {
            gate.counters().session_begun();
            let counted = gate.counters().count(Gauge::Sessions, 1);
            drop(arrival);
            match stream {
                Stream::Plain(reader, writer) => {
                    transmit(reader, writer, input, opened, negotiated, &gate, &stop).await;
                }
                Stream::Tls(reader, writer) => {
                    transmit(reader, writer, input, opened, negotiated, &gate, &stop).await;
                }
            }
            drop(counted);
        }
        (opened, negotiated) => {
            if let Err(end) = negotiated {
                gate.counters().handshake_ended(end);
            }
            if let Some(opened) = opened {
                opened.export.close().await;
            }
        }
    }
}

async fn transmit<R, W, E>(
    reader: R,
    writer: W,
    input: BytesMut,
    opened: Opened<E>,
    negotiated: Negotiated,
    gate: &Gate,
    stop: &CancellationToken,
) where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
    E: Export,
{
    let Opened { export, place } = opened;
    let name = negotiated.name.clone();
    tracing::debug!(export = name.as_str(), style = ?negotiated.style, "session begins");
    let export = Arc::new(export);
    let fate = Fate::new(stop);
    let (replies, queue) = mpsc::channel(QUEUED_REPLIES);
    let counters = Arc::clone(gate.counters());
    let sending = write_replies(writer, queue, fate.clone(), Arc::clone(&counters));
    let sender = tokio::spawn(sending);
    let context = Arc::new(Context {
        export: Arc::clone(&export),
        negotiated,
        allowance: Allowance::new(gate.payloads()),
        counters: Arc::clone(&counters),
        replies,
        fate: fate.clone(),
    });
    let in_flight = usize::try_from(IN_FLIGHT_REQUESTS).unwrap_or(usize::MAX);
    let slots = Arc::new(Semaphore::new(in_flight));
    let mut receiver = Receiver::new(reader, input, context, slots);

    let ended = receive(&mut receiver, &*export, &fate).await;
    counters.session_ended(ended.kind(&fate));
    let drain = async {
        if matches!(ended, Ended::MustEnd) {
            receiver.refuse_the_rest().await;
        }
        receiver.all_slots_but(0).await
    };
    if timeout(gate.limits().drain_timeout, drain).await.is_err() {
        tracing::warn!(
            export = name.as_str(),
            "answers could not be delivered in time"
        );
        counters.drain_cut();
        fate.cut();
        // Only calls of the export are left, and those end by themselves.
        drop(receiver.all_slots_but(0).await);
    }
    tracing::debug!(
        export = name.as_str(),
        reason = &ended as &dyn std::error::Error,
        "session ends"
    );
    // The last holder of the queue goes; what is in it is still sent.
    drop(receiver);
    if timeout(gate.limits().drain_timeout, sender).await.is_err() {
        counters.drain_cut();
        fate.cut();
    }
    export.close().await;
    drop(place);
}

/// Serves requests, and listens to the export meanwhile.
async fn receive<R: AsyncRead + Unpin, E: Export>(
    receiver: &mut Receiver<R, E>,
    export: &E,
    fate: &Fate,
) -> Ended {
    let withdrawn = export.withdrawn();
    tokio::pin!(withdrawn);
    let serve = receiver.serve();
    tokio::pin!(serve);
    tokio::select! {
        biased;
        () = &mut withdrawn => {
            fate.ending.cancel();
            serve.await
        }
        ended = &mut serve => ended,
    }
}
