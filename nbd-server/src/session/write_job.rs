//! A WRITE that comes in pieces and is answered once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::answer::Context;
use super::payload::Charge;
use super::write_replies::Slot;
use crate::proto::{ByteRange, ErrorCode, RequestId};
use crate::{Export, ExportError};

/// One WRITE. It is answered by whoever finishes last: the receiver or the writer of a piece.
#[derive(Debug)]
pub(crate) struct WriteJob<E> {
    context: Arc<Context<E>>,
    id: RequestId,
    range: ByteRange,
    fua: bool,
    slot: Mutex<Option<Slot>>,
    error: Mutex<Option<ErrorCode>>,
    /// Pieces that are being written, and one for the receiver.
    parts: AtomicUsize,
}

impl<E: Export> WriteJob<E> {
    pub(crate) fn new(
        context: &Arc<Context<E>>,
        id: RequestId,
        range: ByteRange,
        fua: bool,
        slot: Slot,
    ) -> Arc<Self> {
        Arc::new(Self {
            context: Arc::clone(context),
            id,
            range,
            fua,
            slot: Mutex::new(Some(slot)),
            error: Mutex::new(None),
            parts: AtomicUsize::new(1),
        })
    }

    /// Whether more pieces are pointless.
    pub(crate) fn failed(&self) -> bool {
        self.error.lock().is_some()
    }

    /// Writes a piece in the background.
    pub(crate) fn write(self: &Arc<Self>, offset: u64, data: Bytes, charge: Charge) {
        self.parts.fetch_add(1, Ordering::Relaxed);
        let job = Arc::clone(self);
        self.context.spawn(async move {
            let outcome = job.context.export.write(offset, data.clone()).await;
            job.context.allowance.payloads().give_back(data);
            drop(charge);
            if job.part_done(outcome) {
                job.finish().await;
            }
        });
    }

    /// Every byte of the payload was received, or is not coming.
    pub(crate) fn received(self: Arc<Self>, outcome: Result<(), ExportError>) {
        if self.part_done(outcome) {
            // A flush must not keep the receiver from other requests.
            let context = Arc::clone(&self.context);
            context.spawn(async move { self.finish().await });
        }
    }

    /// Whether that was the last part.
    fn part_done(&self, outcome: Result<(), ExportError>) -> bool {
        if let Err(error) = outcome {
            self.fail(&error);
        }
        // AcqRel: the last part sees the errors of the others.
        self.parts.fetch_sub(1, Ordering::AcqRel) == 1
    }

    async fn finish(&self) {
        let mut error = *self.error.lock();
        if error.is_none()
            && self.fua
            && let Err(flush_error) = self.context.export.flush().await
        {
            self.fail(&flush_error);
            error = Some(flush_error.code);
        }
        let slot = self.slot.lock().take();
        match error {
            None => self.context.succeed(self.id, slot).await,
            Some(code) => {
                self.context.fail(self.id, code, "write failed", slot).await;
            }
        }
    }

    fn fail(&self, error: &ExportError) {
        let mut told = self.error.lock();
        if is_the_reason(error.code, *told) {
            *told = Some(error.code);
            let ByteRange { offset, len_bytes } = self.range;
            self.context.log_failure("write", offset, len_bytes, error);
        }
    }
}

/// Whether a piece's error is what the client is told, after another one was noted: the first, but not that nothing more
/// is taken. That follows from the failure of another piece, and may overtake it.
fn is_the_reason(code: ErrorCode, noted: Option<ErrorCode>) -> bool {
    match noted {
        None => true,
        Some(noted) => noted == ErrorCode::SHUTDOWN && code != ErrorCode::SHUTDOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_that_follows_a_failure_does_not_hide_it() {
        use ErrorCode as E;
        for (codes, told) in [
            (vec![E::NOSPC], E::NOSPC),
            (vec![E::SHUTDOWN], E::SHUTDOWN),
            (vec![E::SHUTDOWN, E::NOSPC, E::SHUTDOWN], E::NOSPC),
            (vec![E::NOSPC, E::IO, E::SHUTDOWN], E::NOSPC),
            (vec![E::SHUTDOWN, E::SHUTDOWN], E::SHUTDOWN),
        ] {
            let noted = codes.iter().fold(None, |noted, &code| {
                if is_the_reason(code, noted) {
                    Some(code)
                } else {
                    noted
                }
            });
            assert_eq!(noted, Some(told), "{codes:?}");
        }
    }
}
