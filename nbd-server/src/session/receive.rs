//! The receiving half of a connection: headers, payloads, and the bounds before each.

use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::answer::{Context, length_of, short};
use super::run::Fate;
use super::write_job::WriteJob;
use super::write_replies::Slot;
use crate::proto::limits::{
    IN_FLIGHT_REQUESTS, MAX_GATHERED_BYTES, PIECE_BYTES, READ_AHEAD_BYTES, STALL_TIMEOUT,
};
use crate::proto::{
    ByteRange, Command, ErrorCode, HeaderStyle, ProtocolError, Refused, Request, RequestId, admit,
    admit_filtered,
};
use crate::statistics::{Gauge, SessionEnd};
use crate::{Export, ExportError};

/// Why no more requests are taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// The client said DISC, or closed between two requests.
    #[error("the client left")]
    Left,
    /// The client closed or vanished within a request.
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    /// The stream lost its frame.
    #[error("the client broke the protocol")]
    Protocol(#[from] ProtocolError),
    /// The rest of a header or of a piece of payload did not come.
    #[error("the client stopped within a request")]
    Stalled,
    /// The server stops, the export was withdrawn, or the session was cut.
    #[error("the session must end")]
    MustEnd,
}

impl Ended {
    /// How the statistics call it.
    pub(crate) fn kind(&self, fate: &Fate) -> SessionEnd {
        match self {
            Self::Left => SessionEnd::Left,
            Self::Broken(_) => SessionEnd::Broken,
            Self::Protocol(_) => SessionEnd::Protocol,
            Self::Stalled => SessionEnd::Stalled,
            Self::MustEnd if fate.was_cut() => SessionEnd::Cut,
            Self::MustEnd => SessionEnd::Stopped,
        }
    }
}

/// Takes requests off a socket and starts them.
#[derive(Debug)]
pub(crate) struct Receiver<R, E> {
    socket: R,
    /// What was read ahead; headers are taken from it.
    ahead: BytesMut,
    context: Arc<Context<E>>,
    slots: Arc<Semaphore>,
    /// How much to read ahead of the next header. After a long payload the next header is probably
    /// followed by another one, which belongs into its own buffer and not into `ahead`.
    read_ahead: usize,
    /// Payload of a refused or failed WRITE that is still to come.
    unwanted_bytes: u64,
    /// A request that was taken and that nobody answers yet.
    unanswered: Option<RequestId>,
    /// A reply is under way that no other may interrupt.
    streaming: bool,
}

impl<R: AsyncRead + Unpin, E: Export> Receiver<R, E> {
    pub(crate) fn new(
        socket: R,
        ahead: BytesMut,
        context: Arc<Context<E>>,
        slots: Arc<Semaphore>,
    ) -> Self {
        Self {
            socket,
            ahead,
            context,
            slots,
            read_ahead: READ_AHEAD_BYTES,
            unwanted_bytes: 0,
            unanswered: None,
            streaming: false,
        }
    }

    /// Serves requests until the session ends.
    pub(crate) async fn serve(&mut self) -> Ended {
        loop {
            if let Err(ended) = self.serve_one().await {
                return ended;
            }
        }
    }

    async fn serve_one(&mut self) -> Result<(), Ended> {
        let (request, payload_bytes) = self.header().await?;
        self.context.counters.request(request.command);
        self.unwanted_bytes = payload_bytes.into();
        let id = request.id();
        // If the session must end before somebody takes it over, it is refused like those after it.
        self.unanswered = Some(id);
        let slot = self.slot().await?;
        match self.admit(&request).await? {
            Ok(Command::Disconnect) => return Err(Ended::Left),
            Ok(Command::Write { range, fua }) => return self.write(id, range, fua, slot).await,
            Ok(Command::Read {
                range,
                dont_fragment,
            }) => {
                return self.read(id, range, dont_fragment, slot).await;
            }
            Ok(command) => self.start(id, command, slot),
            Err(refused) => return self.refuse(&request, refused, slot).await,
        }
        Ok(())
    }

    /// Decides about a request; takes the payload that is needed for that.
    async fn admit(&mut self, request: &Request) -> Result<Result<Command, Refused>, Ended> {
        match admit(request, &self.context.negotiated) {
            Ok(Command::BlockStatusFilter { payload_bytes }) => {
                let payload = self.payload(length_of_payload(payload_bytes)).await?;
                let negotiated = &self.context.negotiated;
                Ok(admit_filtered(request, &payload, negotiated))
            }
            decided => Ok(decided),
        }
    }

    /// Starts a command that needs nothing more from the socket.
    fn start(&mut self, id: RequestId, command: Command, slot: Slot) {
        self.unanswered = None;
        let context = Arc::clone(&self.context);
        self.context.spawn(async move {
            match command {
                Command::Zero { range, how, fua } => {
                    context.zero(id, range, how, fua, slot).await;
                }
                Command::Trim { range, fua } => context.trim(id, range, fua, slot).await,
                Command::Flush => context.flush(id, slot).await,
                Command::BlockStatus {
                    range,
                    only_first,
                    contexts,
                } => {
                    context
                        .block_status(id, range, only_first, contexts, slot)
                        .await;
                }
                Command::Cache => context.succeed(id, Some(slot)).await,
                Command::Read { .. }
                | Command::Write { .. }
                | Command::BlockStatusFilter { .. }
                | Command::Disconnect => {
                    unreachable!("the receiver handles these itself")
                }
            }
        });
    }

    async fn read(
        &mut self,
        id: RequestId,
        range: ByteRange,
        dont_fragment: bool,
        slot: Slot,
    ) -> Result<(), Ended> {
        let context = Arc::clone(&self.context);
        let fragments = self.style().has_chunks() && !dont_fragment;
        if fragments || range.len_bytes == 0 {
            self.unanswered = None;
            self.context
                .spawn(async move { context.read_chunks(id, range, slot).await });
            return Ok(());
        }
        if range.len_bytes <= u64::from(MAX_GATHERED_BYTES) {
            let gather = self.context.allowance.gather(short(range.len_bytes));
            if let Some(charge) = or_end(&self.context, gather).await? {
                self.unanswered = None;
                self.context.spawn(async move {
                    context.read_gathered(id, range, charge, slot).await;
                });
                return Ok(());
            }
        }
        // Everything else has left the queue before, and waits until this one has.
        drop(or_end(&self.context, self.all_slots_but(1)).await?);
        self.unanswered = None;
        self.streaming = true;
        self.context.spawn(async move {
            context.read_streamed(id, range, slot).await;
        });
        drop(or_end(&self.context, self.all_slots_but(0)).await?);
        self.streaming = false;
        Ok(())
    }

    /// Resolves when all requests but `held` are answered.
    pub(crate) fn all_slots_but(
        &self,
        held: u32,
    ) -> impl Future<Output = OwnedSemaphorePermit> + use<R, E> {
        let slots = Arc::clone(&self.slots);
        async move {
            slots
                .acquire_many_owned(IN_FLIGHT_REQUESTS - held)
                .await
                .expect("the slots are never closed")
        }
    }

    async fn write(
        &mut self,
        id: RequestId,
        range: ByteRange,
        fua: bool,
        slot: Slot,
    ) -> Result<(), Ended> {
        self.unanswered = None;
        let job = WriteJob::new(&self.context, id, range, fua, slot);
        let received = self.write_pieces(&job, range).await;
        match received {
            Ok(()) => job.received(Ok(())),
            Err(Ended::MustEnd) => {
                let message = "the session ended within the request";
                job.received(Err(ExportError::new(ErrorCode::SHUTDOWN, message)));
            }
            // Nobody is left to be told. What was received is written, the rest is not.
            Err(_) => {}
        }
        received
    }

    /// Receives the payload and hands it on in pieces; the next one is received while the last ones
    /// are written.
    async fn write_pieces(
        &mut self,
        job: &Arc<WriteJob<E>>,
        range: ByteRange,
    ) -> Result<(), Ended> {
        let mut rest = range;
        while let Some(piece) = rest.pieces(PIECE_BYTES).next() {
            if job.failed() {
                return self.skip_unwanted().await;
            }
            // Memory follows what was sent: no buffer before the first byte is there.
            self.fill(1).await?;
            let allowed = or_end(&self.context, self.context.allowance.piece(piece)).await?;
            let (piece, charge) = allowed;
            let data = self.payload(length_of(piece)).await?;
            self.context.counters.received(piece.len_bytes);
            job.write(piece.offset, data, charge);
            rest = rest.after(piece);
        }
        Ok(())
    }

    /// The next `len` bytes of the stream, read into the buffer that is handed on.
    async fn payload(&mut self, len: usize) -> Result<Bytes, Ended> {
        in_time(self.receive_payload(len)).await
    }

    async fn receive_payload(&mut self, len: usize) -> Result<Bytes, Ended> {
        let mut data = self.context.allowance.payloads().buffer(len);
        let here = len.min(self.ahead.len());
        data.put_slice(&self.ahead[..here]);
        self.ahead.advance(here);
        self.unwanted_bytes -= count(here);
        while data.len() < len {
            let left = len - data.len();
            let mut room = (&mut data).limit(left);
            let read = or_end(&self.context, self.socket.read_buf(&mut room)).await??;
            if read == 0 {
                return Err(Ended::Broken(io::ErrorKind::UnexpectedEof.into()));
            }
            self.unwanted_bytes -= count(read);
            self.read_ahead = self.style().request_bytes();
        }
        Ok(data.freeze())
    }

    async fn refuse(
        &mut self,
        request: &Request,
        refused: Refused,
        slot: Slot,
    ) -> Result<(), Ended> {
        tracing::debug!(?request, code = %refused.code, "refused: {}", refused.text);
        self.skip_unwanted().await?;
        self.unanswered = None;
        let slot = Some(slot);
        self.context
            .fail(request.id(), refused.code, refused.text, slot)
            .await;
        Ok(())
    }

    /// Reads away a payload that nobody wants, so that the next header is found.
    async fn skip_unwanted(&mut self) -> Result<(), Ended> {
        while self.unwanted_bytes > 0 {
            self.read_ahead = READ_AHEAD_BYTES;
            self.fill(1).await?;
            let here = count(self.ahead.len()).min(self.unwanted_bytes);
            self.unwanted_bytes -= here;
            self.ahead
                .advance(usize::try_from(here).expect("at most the buffer"));
        }
        Ok(())
    }

    fn style(&self) -> HeaderStyle {
        self.context.negotiated.style
    }

    /// The next request, and how many bytes of payload follow it.
    async fn header(&mut self) -> Result<(Request, u32), Ended> {
        if self.context.fate.must_end() {
            return Err(Ended::MustEnd);
        }
        if self.ahead.is_empty() && !self.fill_or_eof(1).await? {
            return Err(Ended::Left);
        }
        // A client of another style is found out before it waits for an answer that never comes.
        self.fill(Request::MAGIC_BYTES).await?;
        Request::check_magic(self.style(), &self.ahead[..Request::MAGIC_BYTES])?;
        self.fill(self.style().request_bytes()).await?;
        self.read_ahead = READ_AHEAD_BYTES;
        self.take_header()
    }

    fn take_header(&mut self) -> Result<(Request, u32), Ended> {
        let style = self.style();
        let request = Request::parse(style, &self.ahead[..style.request_bytes()])?;
        self.ahead.advance(style.request_bytes());
        let payload_bytes = request.payload_bytes(style)?;
        Ok((request, payload_bytes))
    }

    /// Reads until `need` bytes are there, within a request.
    async fn fill(&mut self, need: usize) -> Result<(), Ended> {
        if in_time(self.fill_or_eof(need)).await? {
            Ok(())
        } else {
            Err(Ended::Broken(io::ErrorKind::UnexpectedEof.into()))
        }
    }

    /// Whether the bytes came before the end of the stream.
    async fn fill_or_eof(&mut self, need: usize) -> Result<bool, Ended> {
        while self.ahead.len() < need {
            let room = self.read_ahead.max(need) - self.ahead.len();
            self.ahead.reserve(room);
            let mut room = (&mut self.ahead).limit(room);
            if or_end(&self.context, self.socket.read_buf(&mut room)).await?? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn slot(&self) -> Result<Slot, Ended> {
        let slots = Arc::clone(&self.slots);
        let slot = or_end(&self.context, slots.acquire_owned()).await?;
        Ok(Slot {
            permit: slot.expect("the slots are never closed"),
            counted: self.context.counters.count(Gauge::Requests, 1),
        })
    }

    /// After the session must end: refuses what still comes, until everything is answered that was
    /// in flight. Requests that are here already are all answered.
    pub(crate) async fn refuse_the_rest(&mut self) {
        if self.streaming {
            return;
        }
        let answered = self.all_slots_but(0);
        tokio::pin!(answered);
        loop {
            tokio::select! {
                biased;
                refused = self.refuse_next() => if refused.is_err() { return },
                _ = &mut answered => return,
            }
        }
    }

    async fn refuse_next(&mut self) -> Result<(), Ended> {
        self.skip_late().await?;
        if let Some(id) = self.unanswered.take() {
            self.refuse_late(id).await;
            return Ok(());
        }
        while self.ahead.len() < self.style().request_bytes() {
            self.read_late().await?;
        }
        let (request, payload_bytes) = self.take_header()?;
        if admit(&request, &self.context.negotiated) == Ok(Command::Disconnect) {
            return Err(Ended::Left);
        }
        self.context.counters.request(request.command);
        self.unwanted_bytes = payload_bytes.into();
        self.skip_late().await?;
        self.refuse_late(request.id()).await;
        Ok(())
    }

    async fn refuse_late(&self, id: RequestId) {
        let text = "the export is going away";
        self.context.fail(id, ErrorCode::SHUTDOWN, text, None).await;
    }

    async fn skip_late(&mut self) -> Result<(), Ended> {
        while self.unwanted_bytes > 0 {
            if self.ahead.is_empty() {
                self.read_late().await?;
            }
            let here = count(self.ahead.len()).min(self.unwanted_bytes);
            self.unwanted_bytes -= here;
            self.ahead
                .advance(usize::try_from(here).expect("at most the buffer"));
        }
        Ok(())
    }

    async fn read_late(&mut self) -> Result<(), Ended> {
        self.ahead.reserve(READ_AHEAD_BYTES);
        let mut room = (&mut self.ahead).limit(READ_AHEAD_BYTES);
        match self.socket.read_buf(&mut room).await? {
            0 => Err(Ended::Left),
            _ => Ok(()),
        }
    }
}

/// Waits for bytes of a request that has begun.
async fn in_time<T>(bytes: impl Future<Output = Result<T, Ended>>) -> Result<T, Ended> {
    timeout(STALL_TIMEOUT, bytes)
        .await
        .unwrap_or(Err(Ended::Stalled))
}

/// Waits, unless the session must end first.
async fn or_end<E: Export, T>(
    context: &Context<E>,
    wait: impl Future<Output = T>,
) -> Result<T, Ended> {
    tokio::select! {
        biased;
        value = wait => Ok(value),
        () = context.fate.ending() => Err(Ended::MustEnd),
    }
}

fn length_of_payload(payload_bytes: u32) -> usize {
    usize::try_from(payload_bytes).expect("a short payload fits in memory")
}

pub(crate) fn count(len: usize) -> u64 {
    u64::try_from(len).expect("lengths in memory fit in 64 bits")
}
