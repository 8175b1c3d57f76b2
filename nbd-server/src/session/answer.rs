//! Requests carried out on the export and answered.

use std::future::Future;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::payload::{Allowance, Charge};
use super::run::Fate;
use super::write_replies::{Outgoing, Slot};
use crate::proto::limits::{MAX_DESCRIPTORS, PIECE_BYTES, ZERO_PIECE_BYTES};
use crate::proto::{
    ByteRange, ChunkKind, ContextId, Cookie, ErrorCode, Head, Negotiated, Zero,
    block_status_payload, error_payload,
};
use crate::{Export, ExportError};

/// What the tasks of one session share.
#[derive(Debug)]
pub(crate) struct Context<E> {
    pub(crate) export: Arc<E>,
    pub(crate) negotiated: Negotiated,
    pub(crate) allowance: Allowance,
    pub(crate) replies: mpsc::Sender<Outgoing>,
    pub(crate) fate: Fate,
}

/// Ends the session when its task panics: an export that broke once is not asked again.
struct PanicGuard(Fate);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the export panicked; its session ends");
            self.0.cut();
        }
    }
}

impl<E: Export> Context<E> {
    /// Runs a call of the export to its end, whatever becomes of the client.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let guard = PanicGuard(self.fate.clone());
        tokio::spawn(async move {
            let _guard = guard;
            work.await;
        });
    }

    pub(crate) fn log_failure(&self, what: &str, offset: u64, len_bytes: u64, error: &ExportError) {
        let export = self.negotiated.name.as_str();
        tracing::warn!(export, offset, len_bytes, code = %error.code, %error, "{what} failed");
    }

    /// Queues a part of a reply. Returns whether somebody still listens; if not, the session is over
    /// and the part with its permits is gone.
    async fn send(&self, reply: Outgoing) -> bool {
        self.replies.send(reply).await.is_ok()
    }

    /// Answers with success and no data.
    pub(crate) async fn succeed(&self, cookie: Cookie, slot: Option<Slot>) {
        let head = Some(Head::simple(cookie, ErrorCode::NONE));
        self.send(Outgoing {
            head,
            payload: Bytes::new(),
            charge: None,
            slot,
        })
        .await;
    }

    /// Answers with an error; the text goes along where the client can take it.
    pub(crate) async fn fail(
        &self,
        cookie: Cookie,
        code: ErrorCode,
        text: &str,
        slot: Option<Slot>,
    ) {
        // A number that means "no error" must never come out of an error.
        let code = if code == ErrorCode::NONE {
            ErrorCode::IO
        } else {
            code
        };
        let reply = if self.negotiated.structured_replies {
            let payload = error_payload(code, text);
            let head = Head::chunk(ChunkKind::ERROR, cookie, length(&payload), true);
            Outgoing {
                head: Some(head),
                payload,
                charge: None,
                slot,
            }
        } else {
            let head = Some(Head::simple(cookie, code));
            Outgoing {
                head,
                payload: Bytes::new(),
                charge: None,
                slot,
            }
        };
        self.send(reply).await;
    }

    /// Answers a READ in as many chunks as it has pieces.
    pub(crate) async fn read_chunks(&self, cookie: Cookie, range: ByteRange, slot: Slot) {
        if range.len_bytes == 0 {
            return self.read_nothing(cookie, slot).await;
        }
        let mut slot = Some(slot);
        for piece in range.pieces(PIECE_BYTES) {
            let len_bytes = short(piece.len_bytes);
            let charge = self.allowance.piece(len_bytes).await;
            let payload = match self.read_piece(piece).await {
                Ok(payload) => payload,
                Err(error) => return self.fail(cookie, error.code, "read failed", slot).await,
            };
            let done = piece.end() == range.end();
            let head = Some(Head::data(cookie, piece.offset, len_bytes, done));
            let slot = if done { slot.take() } else { None };
            if !self
                .send(Outgoing {
                    head,
                    payload,
                    charge: Some(charge),
                    slot,
                })
                .await
            {
                return;
            }
        }
    }

    async fn read_nothing(&self, cookie: Cookie, slot: Slot) {
        let head = if self.negotiated.structured_replies {
            Head::chunk(ChunkKind::NONE, cookie, 0, true)
        } else {
            Head::simple(cookie, ErrorCode::NONE)
        };
        let slot = Some(slot);
        self.send(Outgoing {
            head: Some(head),
            payload: Bytes::new(),
            charge: None,
            slot,
        })
        .await;
    }

    /// Answers a READ whose reply must be contiguous, from memory: an error can still be told.
    pub(crate) async fn read_gathered(
        &self,
        cookie: Cookie,
        range: ByteRange,
        charge: Charge,
        slot: Slot,
    ) {
        let mut pieces = range.pieces(PIECE_BYTES);
        let payload = if range.len_bytes <= u64::from(PIECE_BYTES) {
            self.read_piece(range).await
        } else {
            let mut whole = BytesMut::with_capacity(length_of(range));
            loop {
                let Some(piece) = pieces.next() else {
                    break Ok(whole.freeze());
                };
                match self.read_piece(piece).await {
                    Ok(data) => whole.extend_from_slice(&data),
                    Err(error) => break Err(error),
                }
            }
        };
        match payload {
            Ok(payload) => {
                let head = Some(self.contiguous_head(cookie, range, true));
                let (charge, slot) = (Some(charge), Some(slot));
                self.send(Outgoing {
                    head,
                    payload,
                    charge,
                    slot,
                })
                .await;
            }
            Err(error) => {
                self.fail(cookie, error.code, "read failed", Some(slot))
                    .await;
            }
        }
    }

    /// Answers a READ whose reply must be contiguous, piece by piece. Nothing else of this connection
    /// may be answered meanwhile.
    ///
    /// Once the head has left, a chunk can only be padded, and a simple reply only be cut off (NBD
    /// proto, `NBD_CMD_READ`).
    pub(crate) async fn read_streamed(&self, cookie: Cookie, range: ByteRange, slot: Slot) {
        let mut head = Some(self.contiguous_head(cookie, range, false));
        let mut slot = Some(slot);
        let mut failure: Option<ErrorCode> = None;
        for piece in range.pieces(PIECE_BYTES) {
            let charge = self.allowance.piece(short(piece.len_bytes)).await;
            let payload = match failure {
                None => self.read_piece(piece).await,
                Some(_) => Ok(zeroes(piece)),
            };
            let payload = match payload {
                Ok(payload) => payload,
                Err(error) if head.is_some() => {
                    return self.fail(cookie, error.code, "read failed", slot).await;
                }
                Err(_) if !self.negotiated.structured_replies => return self.fate.cut(),
                Err(error) => {
                    failure = Some(error.code);
                    zeroes(piece)
                }
            };
            let last = piece.end() == range.end() && !self.negotiated.structured_replies;
            let slot = if last { slot.take() } else { None };
            let head = head.take();
            if !self
                .send(Outgoing {
                    head,
                    payload,
                    charge: Some(charge),
                    slot,
                })
                .await
            {
                return;
            }
        }
        match failure {
            Some(code) => self.fail(cookie, code, "read failed", slot).await,
            None if self.negotiated.structured_replies => {
                let head = Some(Head::chunk(ChunkKind::NONE, cookie, 0, true));
                self.send(Outgoing {
                    head,
                    payload: Bytes::new(),
                    charge: None,
                    slot,
                })
                .await;
            }
            None => {}
        }
    }

    /// The head of a reply that carries the whole range; a chunk is `done` when no error can follow.
    fn contiguous_head(&self, cookie: Cookie, range: ByteRange, done: bool) -> Head {
        if self.negotiated.structured_replies {
            Head::data(cookie, range.offset, short(range.len_bytes), done)
        } else {
            Head::simple(cookie, ErrorCode::NONE)
        }
    }

    async fn read_piece(&self, piece: ByteRange) -> Result<Bytes, ExportError> {
        let outcome = self.export.read(piece).await.and_then(|data| {
            if data.len() == length_of(piece) {
                return Ok(data);
            }
            let message = format!(
                "read of another length len={} expected={}",
                data.len(),
                piece.len_bytes
            );
            Err(ExportError::new(ErrorCode::IO, message))
        });
        if let Err(error) = &outcome {
            self.log_failure("read", piece.offset, piece.len_bytes, error);
        }
        outcome
    }

    /// Zeroes in bounded steps, so that other requests find their turn.
    pub(crate) async fn zero(
        &self,
        cookie: Cookie,
        range: ByteRange,
        how: Zero,
        fua: bool,
        slot: Slot,
    ) {
        let mut outcome = Ok(());
        for piece in range.pieces(ZERO_PIECE_BYTES) {
            outcome = self.export.zero(piece, how).await;
            if outcome.is_err() {
                break;
            }
        }
        self.finish_change(("zero", cookie, range), outcome, fua, slot)
            .await;
    }

    /// Trims in bounded steps.
    pub(crate) async fn trim(&self, cookie: Cookie, range: ByteRange, fua: bool, slot: Slot) {
        let mut outcome = Ok(());
        for piece in range.pieces(ZERO_PIECE_BYTES) {
            outcome = self.export.trim(piece).await;
            if outcome.is_err() {
                break;
            }
        }
        self.finish_change(("trim", cookie, range), outcome, fua, slot)
            .await;
    }

    /// Makes everything durable that completed before.
    pub(crate) async fn flush(&self, cookie: Cookie, slot: Slot) {
        let whole = ByteRange {
            offset: 0,
            len_bytes: self.negotiated.info.size_bytes,
        };
        self.finish_change(("flush", cookie, whole), Ok(()), true, slot)
            .await;
    }

    async fn finish_change(
        &self,
        (what, cookie, range): (&'static str, Cookie, ByteRange),
        mut outcome: Result<(), ExportError>,
        flush: bool,
        slot: Slot,
    ) {
        if outcome.is_ok() && flush {
            outcome = self.export.flush().await;
        }
        match outcome {
            Ok(()) => self.succeed(cookie, Some(slot)).await,
            Err(error) => {
                self.log_failure(what, range.offset, range.len_bytes, &error);
                self.fail(cookie, error.code, &format!("{what} failed"), Some(slot))
                    .await;
            }
        }
    }

    /// Tells which parts of the range are allocated.
    pub(crate) async fn block_status(
        &self,
        cookie: Cookie,
        range: ByteRange,
        only_first: bool,
        context: ContextId,
        slot: Slot,
    ) {
        let max_descriptors = if only_first { 1 } else { MAX_DESCRIPTORS };
        let outcome = self.export.extents(range).await.and_then(|extents| {
            block_status_payload(context, &extents, short(range.len_bytes), max_descriptors)
                .ok_or_else(|| ExportError::new(ErrorCode::IO, "no extent covers the first byte"))
        });
        match outcome {
            Ok(payload) => {
                let head = Head::chunk(ChunkKind::BLOCK_STATUS, cookie, length(&payload), true);
                let (head, slot) = (Some(head), Some(slot));
                self.send(Outgoing {
                    head,
                    payload,
                    charge: None,
                    slot,
                })
                .await;
            }
            Err(error) => {
                self.log_failure("block status", range.offset, range.len_bytes, &error);
                self.fail(cookie, error.code, "block status failed", Some(slot))
                    .await;
            }
        }
    }
}

fn zeroes(piece: ByteRange) -> Bytes {
    Bytes::from(vec![0; length_of(piece)])
}

/// The length of a payload that a limit has bounded.
fn length(payload: &Bytes) -> u32 {
    u32::try_from(payload.len()).expect("bounded by the limits of a reply")
}

/// The length of a range that came from a 32-bit field.
pub(crate) fn short(len_bytes: u64) -> u32 {
    u32::try_from(len_bytes).expect("requests have 32-bit lengths")
}

/// The length of a range that is held in memory.
pub(crate) fn length_of(range: ByteRange) -> usize {
    usize::try_from(range.len_bytes).expect("bounded by the largest payload")
}
