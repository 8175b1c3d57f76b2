//! Memory for payloads: bounded per connection and in all, and used again.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::{length_of, short};
use crate::proto::ByteRange;
use crate::proto::limits::{IN_FLIGHT_BYTES, PIECE_BYTES, POOLED_PIECES, RESERVED_PIECE_BYTES};
use crate::statistics::{Counted, Counters, Gauge};

/// [`PIECE_BYTES`] as a length in memory.
pub(crate) const PIECE_LEN: usize = PIECE_BYTES as usize;

/// Payloads shorter than this are not worth a pooled buffer.
const POOLED_FROM_LEN: usize = PIECE_LEN / 4;

/// The payload memory of a server.
#[derive(Debug)]
pub(crate) struct Payloads {
    budget: Arc<Semaphore>,
    counters: Arc<Counters>,
    /// Free pieces; the last one given back is the warmest.
    free: Mutex<Vec<BytesMut>>,
}

impl Payloads {
    pub(crate) fn new(budget_bytes: u32, counters: Arc<Counters>) -> Self {
        let budget = usize::try_from(budget_bytes).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            budget: Arc::new(Semaphore::new(budget)),
            counters,
            free: Mutex::default(),
        }
    }

    /// An empty buffer with room for `len` bytes, at most a piece.
    pub(crate) fn buffer(&self, len: usize) -> BytesMut {
        if len < POOLED_FROM_LEN {
            return BytesMut::with_capacity(len);
        }
        let pooled = self.free.lock().pop();
        pooled.unwrap_or_else(|| BytesMut::with_capacity(PIECE_LEN))
    }

    /// Takes a buffer back, when nobody else holds it.
    pub(crate) fn give_back(&self, data: Bytes) {
        if data.len() < POOLED_FROM_LEN {
            return;
        }
        if let Ok(mut buffer) = data.try_into_mut() {
            buffer.clear();
            let mut free = self.free.lock();
            if buffer.capacity() >= PIECE_LEN && free.len() < POOLED_PIECES {
                free.push(buffer);
            }
        }
    }

    /// Frees what the pool holds.
    pub(crate) fn trim(&self) {
        let idle = std::mem::take(&mut *self.free.lock());
        drop(idle);
    }
}

/// The part of one connection in the payload memory.
#[derive(Debug)]
pub(crate) struct Allowance {
    server: Arc<Payloads>,
    in_flight: Arc<Semaphore>,
    /// One small piece that a connection may always have, whatever the others do.
    reserve: Arc<Semaphore>,
}

/// The right to hold some payload bytes; given back when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    _connection: OwnedSemaphorePermit,
    _server: OwnedSemaphorePermit,
    _counted: Counted,
}

impl Allowance {
    pub(crate) fn new(server: Arc<Payloads>) -> Self {
        let in_flight = usize::try_from(IN_FLIGHT_BYTES).unwrap_or(usize::MAX);
        Self {
            server,
            in_flight: Arc::new(Semaphore::new(in_flight)),
            reserve: Arc::new(Semaphore::new(1)),
        }
    }

    pub(crate) fn payloads(&self) -> &Arc<Payloads> {
        &self.server
    }

    /// Waits for the right to hold a part of `piece`, which is at most [`PIECE_BYTES`] long: all of
    /// it, or its beginning when the server is short of memory.
    pub(crate) async fn piece(&self, piece: ByteRange) -> (ByteRange, Charge) {
        let len_bytes = short(piece.len_bytes);
        let mut connection = acquire(&self.in_flight, len_bytes).await;
        let budget = match Arc::clone(&self.server.budget).try_acquire_many_owned(len_bytes) {
            Ok(permit) => Ok(permit),
            Err(_) => tokio::select! {
                permit = acquire(&self.server.budget, len_bytes) => Ok(permit),
                permit = acquire(&self.reserve, 1) => Err(permit),
            },
        };
        let (part, server) = match budget {
            Ok(permit) => (piece, permit),
            Err(reserved) => {
                let part = piece.pieces(RESERVED_PIECE_BYTES).next().unwrap_or(piece);
                drop(connection.split(length_of(piece) - length_of(part)));
                (part, reserved)
            }
        };
        let charge = Charge {
            _connection: connection,
            _server: server,
            _counted: self.count(short(part.len_bytes)),
        };
        (part, charge)
    }

    /// Waits for the right to hold `len_bytes` at once, which may be more than a piece; `None` when
    /// the server is short of memory.
    pub(crate) async fn gather(&self, len_bytes: u32) -> Option<Charge> {
        let connection = acquire(&self.in_flight, len_bytes).await;
        let server = Arc::clone(&self.server.budget)
            .try_acquire_many_owned(len_bytes)
            .ok()?;
        Some(Charge {
            _connection: connection,
            _server: server,
            _counted: self.count(len_bytes),
        })
    }

    fn count(&self, len_bytes: u32) -> Counted {
        let counters = &self.server.counters;
        counters.count(Gauge::HeldBytes, len_bytes.into())
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, count: u32) -> OwnedSemaphorePermit {
    Arc::clone(semaphore)
        .acquire_many_owned(count)
        .await
        .expect("these semaphores are never closed")
}
