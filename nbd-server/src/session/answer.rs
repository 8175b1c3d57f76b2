//! Requests carried out on the export and answered.

use std::future::Future;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::payload::{Allowance, Charge};
use super::run::Fate;
use super::write_replies::{Outgoing, Slot};
use crate::proto::limits::{
    EXTENTS_PIECE_BYTES, MAX_DESCRIPTORS, MAX_EXTENTS_CALLS, PIECE_BYTES, ZERO_PIECE_BYTES,
};
use crate::proto::{
    ByteRange, ChunkKind, ContextId, ErrorCode, Extent, Head, HeaderStyle, Negotiated, RequestId,
    SelectedContext, Zero, block_status_payload, error_payload,
};
use crate::statistics::Counters;
use crate::{Content, Export, ExportError};

/// What the tasks of one session share.
#[derive(Debug)]
pub(crate) struct Context<E> {
    pub(crate) export: Arc<E>,
    pub(crate) negotiated: Negotiated,
    pub(crate) allowance: Allowance,
    pub(crate) counters: Arc<Counters>,
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
    pub(crate) async fn succeed(&self, id: RequestId, slot: Option<Slot>) {
        let head = Some(Head::success(self.style(), id));
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
        id: RequestId,
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
        self.counters.error(code);
        let style = self.style();
        let reply = if style.has_chunks() {
            let payload = error_payload(code, text);
            let head = Head::chunk(style, ChunkKind::ERROR, id, length(&payload), true);
            Outgoing {
                head: Some(head),
                payload,
                charge: None,
                slot,
            }
        } else {
            let head = Some(Head::simple(id.cookie, code));
            Outgoing {
                head,
                payload: Bytes::new(),
                charge: None,
                slot,
            }
        };
        self.send(reply).await;
    }

    fn style(&self) -> HeaderStyle {
        self.negotiated.style
    }

    /// Answers a READ in as many chunks as it has pieces.
    pub(crate) async fn read_chunks(&self, id: RequestId, range: ByteRange, slot: Slot) {
        if range.len_bytes == 0 {
            return self.read_nothing(id, slot).await;
        }
        let mut slot = Some(slot);
        let mut rest = range;
        while let Some(piece) = rest.pieces(PIECE_BYTES).next() {
            let (piece, charge) = self.allowance.piece(piece).await;
            rest = rest.after(piece);
            let len_bytes = short(piece.len_bytes);
            let content = match self.read_content(piece).await {
                Ok(content) => content,
                Err(error) => return self.fail(id, error.code, "read failed", slot).await,
            };
            let done = piece.end() == range.end();
            let (style, offset) = (self.style(), piece.offset);
            let (head, payload, charge) = match content {
                Content::Data(data) => {
                    let head = Head::data(style, id, offset, len_bytes, done);
                    (head, data, Some(charge))
                }
                Content::Zeroes => {
                    let head = Head::hole(style, id, offset, len_bytes, done);
                    (head, Bytes::new(), None)
                }
            };
            let slot = if done { slot.take() } else { None };
            if !self
                .send(Outgoing {
                    head: Some(head),
                    payload,
                    charge,
                    slot,
                })
                .await
            {
                return;
            }
        }
    }

    async fn read_nothing(&self, id: RequestId, slot: Slot) {
        let style = self.style();
        // A READ is answered in chunks where there are chunks, also when there is nothing to say.
        let head = if style.has_chunks() {
            Head::chunk(style, ChunkKind::NONE, id, 0, true)
        } else {
            Head::success(style, id)
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
        id: RequestId,
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
                let head = Some(self.contiguous_head(id, range, true));
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
                self.fail(id, error.code, "read failed", Some(slot)).await;
            }
        }
    }

    /// Answers a READ whose reply must be contiguous, piece by piece. Nothing else of this connection
    /// may be answered meanwhile.
    ///
    /// Once the head has left, a chunk can only be padded, and a simple reply only be cut off (NBD
    /// proto, `NBD_CMD_READ`).
    pub(crate) async fn read_streamed(&self, id: RequestId, range: ByteRange, slot: Slot) {
        let mut head = Some(self.contiguous_head(id, range, false));
        let mut slot = Some(slot);
        let mut failure: Option<ErrorCode> = None;
        let mut rest = range;
        while let Some(piece) = rest.pieces(PIECE_BYTES).next() {
            let (piece, charge) = self.allowance.piece(piece).await;
            rest = rest.after(piece);
            let payload = match failure {
                None => self.read_piece(piece).await,
                Some(_) => Ok(zeroes(piece)),
            };
            let payload = match payload {
                Ok(payload) => payload,
                Err(error) if head.is_some() => {
                    return self.fail(id, error.code, "read failed", slot).await;
                }
                Err(_) if !self.style().has_chunks() => return self.fate.cut(),
                Err(error) => {
                    failure = Some(error.code);
                    zeroes(piece)
                }
            };
            let last = piece.end() == range.end() && !self.style().has_chunks();
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
            Some(code) => self.fail(id, code, "read failed", slot).await,
            None if self.style().has_chunks() => {
                let head = Some(Head::chunk(self.style(), ChunkKind::NONE, id, 0, true));
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
    fn contiguous_head(&self, id: RequestId, range: ByteRange, done: bool) -> Head {
        if self.style().has_chunks() {
            Head::data(self.style(), id, range.offset, short(range.len_bytes), done)
        } else {
            Head::success(self.style(), id)
        }
    }

    /// The bytes of a piece, whatever it holds.
    async fn read_piece(&self, piece: ByteRange) -> Result<Bytes, ExportError> {
        Ok(match self.read_content(piece).await? {
            Content::Data(data) => data,
            Content::Zeroes => zeroes(piece),
        })
    }

    async fn read_content(&self, piece: ByteRange) -> Result<Content, ExportError> {
        let outcome = self
            .export
            .read(piece)
            .await
            .and_then(|content| match &content {
                Content::Data(data) if data.len() != length_of(piece) => {
                    let message = format!(
                        "read of another length len={} expected={}",
                        data.len(),
                        piece.len_bytes
                    );
                    Err(ExportError::new(ErrorCode::IO, message))
                }
                _ => Ok(content),
            });
        if let Err(error) = &outcome {
            self.log_failure("read", piece.offset, piece.len_bytes, error);
        }
        outcome
    }

    /// Zeroes in bounded steps, so that other requests find their turn.
    pub(crate) async fn zero(
        &self,
        id: RequestId,
        range: ByteRange,
        how: Zero,
        fua: bool,
        slot: Slot,
    ) {
        let outcome = self.in_steps(range, |piece| self.export.zero(piece, how));
        let outcome = outcome.await;
        self.finish_change(("zero", id, range), outcome, fua, slot)
            .await;
    }

    /// Changes a range, which may be the whole of a huge device, step by step; ends early when nobody
    /// can be answered any more.
    async fn in_steps<F>(
        &self,
        range: ByteRange,
        step: impl Fn(ByteRange) -> F,
    ) -> Result<(), ExportError>
    where
        F: Future<Output = Result<(), ExportError>>,
    {
        for piece in range.pieces(ZERO_PIECE_BYTES) {
            if self.fate.was_cut() {
                let message = "the session ended within the request";
                return Err(ExportError::new(ErrorCode::SHUTDOWN, message));
            }
            step(piece).await?;
            // An export that never waits must not keep a thread from other requests.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Trims in bounded steps.
    pub(crate) async fn trim(&self, id: RequestId, range: ByteRange, fua: bool, slot: Slot) {
        let outcome = self.in_steps(range, |piece| self.export.trim(piece));
        let outcome = outcome.await;
        self.finish_change(("trim", id, range), outcome, fua, slot)
            .await;
    }

    /// Makes everything durable that completed before.
    pub(crate) async fn flush(&self, id: RequestId, slot: Slot) {
        let whole = ByteRange {
            offset: 0,
            len_bytes: self.negotiated.info.size_bytes,
        };
        self.finish_change(("flush", id, whole), Ok(()), true, slot)
            .await;
    }

    async fn finish_change(
        &self,
        (what, id, range): (&'static str, RequestId, ByteRange),
        mut outcome: Result<(), ExportError>,
        flush: bool,
        slot: Slot,
    ) {
        if outcome.is_ok() && flush {
            outcome = self.export.flush().await;
        }
        match outcome {
            Ok(()) => self.succeed(id, Some(slot)).await,
            Err(error) => {
                self.log_failure(what, range.offset, range.len_bytes, &error);
                self.fail(id, error.code, &format!("{what} failed"), Some(slot))
                    .await;
            }
        }
    }

    /// Tells the state of a prefix of the range, one chunk for each context.
    pub(crate) async fn block_status(
        &self,
        id: RequestId,
        range: ByteRange,
        only_first: bool,
        contexts: Vec<ContextId>,
        slot: Slot,
    ) {
        // The answers of one request take about a piece of memory.
        let about = ByteRange {
            offset: 0,
            len_bytes: PIECE_BYTES.into(),
        };
        let (_, charge) = self.allowance.piece(about).await;
        let payloads = self.extents(range, only_first).await.and_then(|extents| {
            let max_descriptors = if only_first { 1 } else { MAX_DESCRIPTORS };
            let mut payloads = Vec::with_capacity(contexts.len());
            for selected in self.selected(&contexts) {
                let (style, max_bytes) = (self.style(), range.len_bytes);
                payloads.push(
                    block_status_payload(style, selected, &extents, max_bytes, max_descriptors)
                        .ok_or_else(|| {
                            ExportError::new(ErrorCode::IO, "no extent covers the first byte")
                        })?,
                );
            }
            Ok(payloads)
        });
        let payloads = match payloads {
            Ok(payloads) => payloads,
            Err(error) => {
                self.log_failure("block status", range.offset, range.len_bytes, &error);
                return self
                    .fail(id, error.code, "block status failed", Some(slot))
                    .await;
            }
        };
        let (mut charge, mut slot) = (Some(charge), Some(slot));
        let last = payloads.len().saturating_sub(1);
        for (place, payload) in payloads.into_iter().enumerate() {
            let done = place == last;
            let kind = ChunkKind::block_status(self.style());
            let head = Head::chunk(self.style(), kind, id, length(&payload), done);
            let chunk = Outgoing {
                head: Some(head),
                payload,
                charge: if done { charge.take() } else { None },
                slot: if done { slot.take() } else { None },
            };
            if !self.send(chunk).await {
                return;
            }
        }
    }

    /// Those of the selected contexts that a request is about.
    fn selected(&self, ids: &[ContextId]) -> impl Iterator<Item = &SelectedContext> {
        let all = self.negotiated.contexts.iter();
        all.filter(move |selected| ids.contains(&selected.id))
    }

    /// The state of a prefix of the range, in as many calls as that is worth.
    async fn extents(
        &self,
        range: ByteRange,
        only_first: bool,
    ) -> Result<Vec<Extent>, ExportError> {
        let mut extents = Vec::new();
        let mut at = range.offset;
        for _ in 0..MAX_EXTENTS_CALLS {
            let part = ByteRange {
                offset: at,
                len_bytes: (range.end() - at).min(EXTENTS_PIECE_BYTES),
            };
            let found = match self.export.extents(part).await {
                Ok(found) => found,
                // What is known is told; the client asks again for the rest, and learns the error then.
                Err(_) if !extents.is_empty() => break,
                Err(error) => return Err(error),
            };
            let covered_bytes = append(&mut extents, found, part.len_bytes);
            at += covered_bytes;
            let enough = extents.len() > if only_first { 1 } else { MAX_DESCRIPTORS };
            if covered_bytes == 0 || at == range.end() || enough {
                break;
            }
            tokio::task::yield_now().await;
        }
        Ok(extents)
    }
}

/// Appends runs, at most `max_bytes` of them, joined to what they continue; returns how many bytes.
fn append(extents: &mut Vec<Extent>, found: Vec<Extent>, max_bytes: u64) -> u64 {
    let mut left = max_bytes;
    for extent in found {
        let len_bytes = extent.len_bytes.min(left);
        if len_bytes == 0 {
            continue;
        }
        left -= len_bytes;
        match extents.last_mut() {
            Some(last) if last.is_like(&extent) => last.len_bytes += len_bytes,
            _ => extents.push(Extent {
                len_bytes,
                ..extent
            }),
        }
    }
    max_bytes - left
}

fn zeroes(piece: ByteRange) -> Bytes {
    Bytes::from(vec![0; length_of(piece)])
}

/// The length of a payload that a limit has bounded.
fn length(payload: &Bytes) -> u32 {
    u32::try_from(payload.len()).expect("bounded by the limits of a reply")
}

/// The length of a payload, or of a piece of one.
pub(crate) fn short(len_bytes: u64) -> u32 {
    u32::try_from(len_bytes).expect("bounded by the largest payload")
}

/// The length of a range that is held in memory.
pub(crate) fn length_of(range: ByteRange) -> usize {
    usize::try_from(range.len_bytes).expect("bounded by the largest payload")
}
