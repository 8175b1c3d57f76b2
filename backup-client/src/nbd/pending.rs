//! Requests that wait for their reply.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use nbd_server::proto::{ContextId, ErrorCode, Extent};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::NbdError;

/// The reply to a request, whole.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Data(Bytes),
    Extents(Vec<Extent>),
}

/// An error that the server reported for a request.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: ErrorCode,
    pub(super) text: String,
}

/// What a request receives, as far as it has come.
#[derive(Debug)]
pub(super) enum Expect {
    Nothing,
    Data {
        offset: u64,
        buffer: BytesMut,
        received_bytes: usize,
    },
    Status {
        context: ContextId,
        extents: Vec<Extent>,
    },
}

/// A request on the wire.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) expect: Expect,
    pub(super) refusal: Option<Refusal>,
    pub(super) answer: oneshot::Sender<Result<Result<Answer, Refusal>, NbdError>>,
    /// Held until the reply has come, even when the caller has gone.
    pub(super) _slot: OwnedSemaphorePermit,
}

impl Waiting {
    /// Hands the reply to the caller; says what is wrong with it, if the server broke the protocol.
    pub(super) fn finish(self) -> Result<(), String> {
        let answer = match (self.refusal, self.expect) {
            (Some(refusal), _) => Err(refusal),
            (None, Expect::Nothing) => Ok(Answer::Done),
            (
                None,
                Expect::Data {
                    buffer,
                    received_bytes,
                    ..
                },
            ) if received_bytes == buffer.len() => Ok(Answer::Data(buffer.freeze())),
            (None, Expect::Data { buffer, .. }) => {
                let text = format!("a read reply is incomplete asked_bytes={}", buffer.len());
                let _ = self.answer.send(Err(NbdError::closed(&text)));
                return Err(text);
            }
            (None, Expect::Status { extents, .. }) => Ok(Answer::Extents(extents)),
        };
        // A caller that has gone needs no answer.
        let _ = self.answer.send(Ok(answer));
        Ok(())
    }
}

/// All requests of a connection that wait. Closed once, with the reason, when the connection ends.
#[derive(Debug, Default)]
pub(super) struct Pending {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: HashMap<u64, Waiting>,
    next_cookie: u64,
    closed: Option<NbdError>,
}

impl Pending {
    /// Adds a request under a fresh cookie.
    pub(super) fn add(&self, waiting: Waiting) -> Result<u64, NbdError> {
        let mut inner = self.inner.lock();
        if let Some(error) = &inner.closed {
            return Err(error.clone());
        }
        let cookie = inner.next_cookie;
        inner.next_cookie = cookie.wrapping_add(1);
        inner.waiting.insert(cookie, waiting);
        Ok(cookie)
    }

    /// Takes a request out, to work on it or to finish it.
    pub(super) fn take(&self, cookie: u64) -> Option<Waiting> {
        self.inner.lock().waiting.remove(&cookie)
    }

    /// Puts a request back whose reply goes on.
    pub(super) fn put_back(&self, cookie: u64, waiting: Waiting) {
        self.inner.lock().waiting.insert(cookie, waiting);
    }

    /// Ends everything; the first reason counts.
    pub(super) fn close(&self, error: &NbdError) {
        let waiting = {
            let mut inner = self.inner.lock();
            if inner.closed.is_none() {
                inner.closed = Some(error.clone());
            }
            std::mem::take(&mut inner.waiting)
        };
        for (_, waiting) in waiting {
            let _ = waiting.answer.send(Err(error.clone()));
        }
    }

    /// Why the connection has ended.
    pub(super) fn closed(&self) -> Option<NbdError> {
        self.inner.lock().closed.clone()
    }
}
