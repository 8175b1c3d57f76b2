//! The sending half of a connection.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;

use super::payload::Charge;
use super::receive::count;
use super::run::Fate;
use crate::proto::Head;
use crate::proto::limits::UNREAD_TIMEOUT;
use crate::statistics::{Counted, Counters};

/// Replies that go out in one system call, at most.
const BATCH: usize = 32;

/// A part of a reply on its way to the socket, with the permits that are given back after it left.
#[derive(Debug)]
#[expect(dead_code, reason = "the permits are held, not read")]
pub(crate) struct Outgoing {
    /// Absent for the later parts of a payload that is streamed under one head.
    pub(crate) head: Option<Head>,
    pub(crate) payload: Bytes,
    pub(crate) charge: Option<Charge>,
    pub(crate) slot: Option<Slot>,
}

/// The place of a request among those in flight.
#[derive(Debug)]
#[expect(dead_code, reason = "the permit is held, not read")]
pub(crate) struct Slot {
    pub(crate) permit: OwnedSemaphorePermit,
    pub(crate) counted: Counted,
}

/// Sends what is queued until the queue ends or the session is cut, then shuts the socket down.
pub(crate) async fn write_replies<W: AsyncWrite + Unpin>(
    mut socket: W,
    mut queue: mpsc::Receiver<Outgoing>,
    fate: Fate,
    counters: Arc<Counters>,
) {
    let mut batch = Vec::new();
    let outcome = tokio::select! {
        biased;
        () = fate.is_cut() => Ok(()),
        outcome = send_all(&mut socket, &mut queue, &mut batch, &counters) => outcome,
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "the client stopped reading");
        fate.cut();
    }
    // Whoever still wants to reply learns at once that nobody listens.
    drop(queue);
    drop(batch);
    // The peer may be gone already; there is nobody left to tell. In TLS the end is a message like
    // others, and a client that never reads does not take it.
    tokio::select! {
        biased;
        _ = socket.shutdown() => {}
        () = fate.is_cut() => {}
    }
}

async fn send_all<W: AsyncWrite + Unpin>(
    socket: &mut W,
    queue: &mut mpsc::Receiver<Outgoing>,
    batch: &mut Vec<Outgoing>,
    counters: &Counters,
) -> io::Result<()> {
    while queue.recv_many(batch, BATCH).await > 0 {
        send(socket, batch).await?;
        let payload_len: usize = batch.iter().map(|reply| reply.payload.len()).sum();
        if payload_len > 0 {
            counters.sent(count(payload_len));
        }
        batch.clear();
    }
    Ok(())
}

async fn send<W: AsyncWrite + Unpin>(socket: &mut W, batch: &[Outgoing]) -> io::Result<()> {
    let mut slices = [IoSlice::new(&[]); 2 * BATCH];
    let mut count = 0;
    for reply in batch {
        let head = reply.head.as_ref().map_or(&[][..], |head| head.as_bytes());
        for part in [head, &reply.payload[..]] {
            if !part.is_empty() {
                slices[count] = IoSlice::new(part);
                count += 1;
            }
        }
    }
    let mut rest = &mut slices[..count];
    while !rest.is_empty() {
        let sent = timeout(UNREAD_TIMEOUT, socket.write_vectored(rest)).await??;
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, sent);
    }
    socket.flush().await
}
