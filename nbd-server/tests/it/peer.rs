//! A client over a pipe, and an export that misbehaves on request.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use nbd_server::exports::MemoryExport;
use nbd_server::proto::client::{
    ClientGoal, ClientHandshake, ClientStep, Remote, Replies, ReplyEvent,
};
use nbd_server::proto::{BASE_ALLOCATION, CommandCode, CommandFlags, Cookie, HeaderStyle, Request};
use nbd_server::{
    ByteRange, Content, ErrorCode, Export, ExportError, ExportInfo, ExportName, Exports, Extent,
    Gate, MetaContext, OpenError, Peer, ServerLimits, Tls, Zero, serve_connection,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const SIZE: u64 = 128 << 20;
/// An offset where every call fails, unless it is `u64::MAX`.
pub(crate) const NOWHERE: u64 = u64::MAX;

/// What every server says first, and how long the client's flags are.
pub(crate) const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";
const FLAGS_BYTES: usize = 4;

/// A device in memory whose owner can break it, hold it and count it.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    pub(crate) memory: MemoryExport,
    pub(crate) script: Arc<Script>,
}

#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) fail_at: AtomicU64,
    pub(crate) panic_at: AtomicU64,
    /// Writes take a permit before they do anything.
    pub(crate) writes: Semaphore,
    /// So do all other calls, with permits of their own.
    pub(crate) turns: Semaphore,
    pub(crate) withdrawn: CancellationToken,
    /// Zeroes are told of, not sent.
    pub(crate) tells_zeroes: AtomicBool,
    pub(crate) opened: AtomicUsize,
    pub(crate) closed: AtomicUsize,
    pub(crate) calls: AtomicUsize,
    pub(crate) flushes: AtomicUsize,
    /// The name of the last peer that opened it.
    pub(crate) name: parking_lot::Mutex<Option<String>>,
    /// Bytes that reads have handed out.
    pub(crate) read: AtomicUsize,
    /// Those that nobody dropped, now and at most.
    pub(crate) held: AtomicUsize,
    pub(crate) held_most: AtomicUsize,
    /// The same for writes.
    pub(crate) writing: AtomicUsize,
    pub(crate) writing_most: AtomicUsize,
}

impl Script {
    /// Devices that were opened, for a session or only to ask, and not closed.
    pub(crate) fn still_open(&self) -> usize {
        let (opened, closed) = (self.opened.load(SeqCst), self.closed.load(SeqCst));
        opened.checked_sub(closed).expect("each is closed once")
    }
}

impl Probe {
    pub(crate) fn new() -> Self {
        let script = Script {
            fail_at: AtomicU64::new(NOWHERE),
            panic_at: AtomicU64::new(NOWHERE),
            writes: Semaphore::new(Semaphore::MAX_PERMITS),
            turns: Semaphore::new(Semaphore::MAX_PERMITS),
            withdrawn: CancellationToken::new(),
            tells_zeroes: AtomicBool::new(false),
            opened: AtomicUsize::new(0),
            closed: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            flushes: AtomicUsize::new(0),
            name: parking_lot::Mutex::default(),
            read: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            held_most: AtomicUsize::new(0),
            writing: AtomicUsize::new(0),
            writing_most: AtomicUsize::new(0),
        };
        Self {
            memory: MemoryExport::new(SIZE),
            script: Arc::new(script),
        }
    }

    async fn turn(&self) {
        self.script.turns.acquire().await.unwrap().forget();
    }

    fn call(&self, offset: u64, len_bytes: u64) -> Result<Call<'_>, ExportError> {
        self.script.calls.fetch_add(1, SeqCst);
        let call = Call(&self.script);
        let hits = |at: &AtomicU64| (offset..offset + len_bytes).contains(&at.load(SeqCst));
        assert!(!hits(&self.script.panic_at), "the export breaks, as told");
        if hits(&self.script.fail_at) {
            return Err(ExportError::new(
                ErrorCode::NOSPC,
                "the export fails, as told",
            ));
        }
        Ok(call)
    }
}

/// A call that is under way.
struct Call<'a>(&'a Script);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, SeqCst);
    }
}

/// Bytes that count themselves.
struct Held(Bytes, Arc<Script>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.1.held.fetch_sub(self.0.len(), SeqCst);
    }
}

impl Export for Probe {
    fn info(&self) -> ExportInfo {
        let bitmap = "since".to_owned();
        ExportInfo {
            contexts: vec![
                MetaContext::Allocation,
                MetaContext::AllocationDepth,
                MetaContext::Changes { bitmap, layers: 1 },
            ],
            ..self.memory.info()
        }
    }

    async fn read(&self, range: ByteRange) -> Result<Content, ExportError> {
        let _call = self.call(range.offset, range.len_bytes)?;
        self.turn().await;
        let data = match self.memory.read(range).await? {
            Content::Zeroes if self.script.tells_zeroes.load(SeqCst) => return Ok(Content::Zeroes),
            Content::Zeroes => Bytes::from(vec![0; usize::try_from(range.len_bytes).unwrap()]),
            Content::Data(data) => data,
        };
        self.script.read.fetch_add(data.len(), SeqCst);
        let now = self.script.held.fetch_add(data.len(), SeqCst) + data.len();
        self.script.held_most.fetch_max(now, SeqCst);
        let held = Bytes::from_owner(Held(data, Arc::clone(&self.script)));
        Ok(Content::Data(held))
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        let len_bytes = data.len() as u64;
        assert!(len_bytes > 0 && len_bytes <= 256 << 10, "a piece");
        assert_eq!(
            offset >> 18,
            (offset + len_bytes - 1) >> 18,
            "within a multiple of 256 KiB"
        );
        let now = self.script.writing.fetch_add(data.len(), SeqCst) + data.len();
        self.script.writing_most.fetch_max(now, SeqCst);
        let outcome = match self.call(offset, len_bytes) {
            Ok(_call) => {
                self.script.writes.acquire().await.unwrap().forget();
                self.memory.write(offset, data.clone()).await
            }
            Err(error) => Err(error),
        };
        self.script.writing.fetch_sub(data.len(), SeqCst);
        outcome
    }

    async fn zero(&self, range: ByteRange, how: Zero) -> Result<(), ExportError> {
        let _call = self.call(range.offset, range.len_bytes)?;
        assert!(
            range.len_bytes > 0 && range.len_bytes <= 32 << 20,
            "a bounded piece"
        );
        self.turn().await;
        self.memory.zero(range, how).await
    }

    async fn trim(&self, range: ByteRange) -> Result<(), ExportError> {
        let _call = self.call(range.offset, range.len_bytes)?;
        self.turn().await;
        self.memory.trim(range).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.turn().await;
        self.script.flushes.fetch_add(1, SeqCst);
        Ok(())
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, ExportError> {
        let _call = self.call(range.offset, range.len_bytes)?;
        self.turn().await;
        self.memory.extents(range).await
    }

    async fn withdrawn(&self) {
        self.script.withdrawn.cancelled().await;
    }

    async fn close(&self) {
        assert_eq!(self.script.calls.load(SeqCst), 0, "every call has returned");
        self.script.closed.fetch_add(1, SeqCst);
    }
}

impl Exports for Probe {
    type Export = Probe;

    async fn open(&self, name: &ExportName, peer: &Peer) -> Result<Probe, OpenError> {
        match name.as_str() {
            "disk" => {
                *self.script.name.lock() = peer.name.clone();
                self.script.opened.fetch_add(1, SeqCst);
                Ok(self.clone())
            }
            "never" => pending().await,
            _ => Err(OpenError::Unknown),
        }
    }

    async fn list(&self, _peer: &Peer) -> Vec<String> {
        vec!["disk".to_owned()]
    }
}

/// A server with one probe.
pub(crate) struct Server {
    pub(crate) probe: Probe,
    pub(crate) gate: Gate,
    pub(crate) tls: Tls,
    pub(crate) stop: CancellationToken,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self::with_limits(ServerLimits::default())
    }

    pub(crate) fn with_limits(limits: ServerLimits) -> Self {
        Self {
            probe: Probe::new(),
            gate: Gate::new(limits),
            tls: Tls::Off,
            stop: CancellationToken::new(),
        }
    }

    pub(crate) fn script(&self) -> &Script {
        &self.probe.script
    }

    /// A raw connection and its session.
    pub(crate) fn pipe(&self) -> (DuplexStream, JoinHandle<()>) {
        self.pipe_from(Peer {
            address: "a test".to_owned(),
            name: None,
        })
    }

    /// The same from somewhere.
    pub(crate) fn pipe_from(&self, peer: Peer) -> (DuplexStream, JoinHandle<()>) {
        let (here, there) = tokio::io::duplex(64 << 10);
        let (reader, writer) = tokio::io::split(there);
        let session = tokio::spawn(serve_connection(
            reader,
            writer,
            peer,
            Arc::new(self.probe.clone()),
            self.gate.clone(),
            self.tls.clone(),
            self.stop.clone(),
        ));
        (here, session)
    }

    /// A client in transmission.
    pub(crate) async fn connect(&self) -> Client {
        let (socket, session) = self.pipe();
        let mut client = Client::over(socket, session);
        client.handshake("disk").await.unwrap();
        client
    }

    /// A client with extended headers and these contexts.
    pub(crate) async fn connect_extended(&self, contexts: &[&str]) -> Client {
        let (socket, session) = self.pipe();
        let mut client = Client::over(socket, session);
        let handshake = client.handshake_with("disk", contexts, true);
        handshake.await.unwrap();
        assert_eq!(client.style, HeaderStyle::Extended);
        client
    }

    /// A client that did not ask for structured replies.
    pub(crate) async fn connect_plain(&self) -> Client {
        let (mut socket, session) = self.pipe();
        socket.write_all(&[0, 0, 0, 3]).await.unwrap();
        socket
            .write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk")
            .await
            .unwrap();
        let mut answer = [0; 18 + 10];
        socket.read_exact(&mut answer).await.unwrap();
        Client::over(socket, session)
    }
}

/// Whole reply of a request that has no data, or its data.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    Done,
    Failed(ErrorCode),
    Status(Vec<(u64, u64)>),
}

pub(crate) struct Client<S = DuplexStream> {
    pub(crate) socket: S,
    pub(crate) session: JoinHandle<()>,
    pub(crate) input: BytesMut,
    pub(crate) remote: Option<Remote>,
    pub(crate) style: HeaderStyle,
    cookie: u64,
    in_tls: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) fn over(socket: S, session: JoinHandle<()>) -> Self {
        Self {
            socket,
            session,
            input: BytesMut::new(),
            remote: None,
            style: HeaderStyle::Simple,
            cookie: 0,
            in_tls: false,
        }
    }

    /// As [`Client::over`], in TLS that has just begun: greeting and flags were before it.
    pub(crate) fn in_tls(socket: S, session: JoinHandle<()>) -> Self {
        let mut client = Self::over(socket, session);
        client.input.extend_from_slice(GREETING);
        client.in_tls = true;
        client
    }

    pub(crate) async fn handshake(&mut self, export: &str) -> Result<(), String> {
        self.handshake_with(export, &[BASE_ALLOCATION], false).await
    }

    pub(crate) async fn handshake_with(
        &mut self,
        export: &str,
        contexts: &[&str],
        extended_headers: bool,
    ) -> Result<(), String> {
        let name = ExportName::new(export).unwrap();
        let contexts = contexts.iter().map(|&context| context.to_owned()).collect();
        let mut handshake = ClientHandshake::new(ClientGoal::Use {
            name,
            contexts,
            extended_headers,
        });
        loop {
            match handshake
                .step(&mut self.input)
                .map_err(|error| error.to_string())?
            {
                ClientStep::NeedBytes(_) => {
                    if std::mem::take(&mut self.in_tls) {
                        handshake.output().advance(FLAGS_BYTES);
                    }
                    let sent = self.socket.write_all(handshake.output()).await;
                    sent.map_err(|error| error.to_string())?;
                    handshake.output().clear();
                    let read = self.socket.read_buf(&mut self.input).await;
                    if read.map_err(|error| error.to_string())? == 0 {
                        return Err("closed".to_owned());
                    }
                }
                ClientStep::Ready(remote) => {
                    self.style = remote.style;
                    self.remote = Some(remote);
                    return Ok(());
                }
                ClientStep::Listed(_) => unreachable!(),
            }
        }
    }

    /// Sends a header; returns its cookie.
    pub(crate) async fn send(
        &mut self,
        command: CommandCode,
        flags: CommandFlags,
        offset: u64,
        len_bytes: u64,
    ) -> Cookie {
        self.cookie += 1;
        let is_write = command == CommandCode::WRITE && self.style == HeaderStyle::Extended;
        let flags = flags.with_if(is_write, CommandFlags::PAYLOAD_LEN);
        let cookie = Cookie(self.cookie);
        let request = Request {
            flags,
            command,
            cookie,
            offset,
            len_bytes,
        };
        let mut header = BytesMut::new();
        request.encode(self.style, &mut header).unwrap();
        self.socket.write_all(&header).await.unwrap();
        cookie
    }

    /// The next event; `None` when the server closed.
    pub(crate) async fn event(&mut self) -> Option<ReplyEvent> {
        loop {
            match Replies::new(self.style).next(&mut self.input).unwrap() {
                ReplyEvent::NeedBytes(_) => {
                    if self.socket.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                        assert!(self.input.is_empty(), "cut within a reply");
                        return None;
                    }
                }
                event => return Some(event),
            }
        }
    }

    /// The data that an event announced.
    pub(crate) async fn data(&mut self, len: usize) -> Bytes {
        while self.input.len() < len {
            let read = self.socket.read_buf(&mut self.input).await.unwrap();
            assert!(read > 0, "cut within data");
        }
        self.input.split_to(len).freeze()
    }

    /// The answer to a request without data, whichever comes next.
    pub(crate) async fn answer(&mut self) -> (Cookie, Answer) {
        match self.event().await.expect("an answer") {
            ReplyEvent::Simple {
                cookie,
                error: ErrorCode::NONE,
            }
            | ReplyEvent::End { cookie } => (cookie, Answer::Done),
            ReplyEvent::Simple { cookie, error } => (cookie, Answer::Failed(error)),
            ReplyEvent::Error {
                cookie,
                code,
                done: true,
                ..
            } => (cookie, Answer::Failed(code)),
            ReplyEvent::Status {
                cookie,
                descriptors,
                ..
            } => {
                let runs = descriptors
                    .iter()
                    .map(|d| (d.len_bytes, d.status))
                    .collect();
                (cookie, Answer::Status(runs))
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Sends a request without payload and takes its answer.
    pub(crate) async fn ask(
        &mut self,
        command: CommandCode,
        offset: u64,
        len_bytes: u64,
    ) -> Answer {
        self.ask_with(command, CommandFlags::EMPTY, offset, len_bytes)
            .await
    }

    pub(crate) async fn ask_with(
        &mut self,
        command: CommandCode,
        flags: CommandFlags,
        offset: u64,
        len_bytes: u64,
    ) -> Answer {
        let cookie = self.send(command, flags, offset, len_bytes).await;
        let (answered, answer) = self.answer().await;
        assert_eq!(answered, cookie);
        answer
    }

    pub(crate) async fn write(&mut self, offset: u64, data: &[u8]) -> Answer {
        let len_bytes = u64::try_from(data.len()).unwrap();
        let cookie = self
            .send(CommandCode::WRITE, CommandFlags::EMPTY, offset, len_bytes)
            .await;
        self.socket.write_all(data).await.unwrap();
        let (answered, answer) = self.answer().await;
        assert_eq!(answered, cookie);
        answer
    }

    /// A READ in chunks; the error, when there is one.
    pub(crate) async fn read(&mut self, offset: u64, len_bytes: u32) -> Result<Vec<u8>, ErrorCode> {
        self.send(
            CommandCode::READ,
            CommandFlags::EMPTY,
            offset,
            len_bytes.into(),
        )
        .await;
        let mut data = vec![0xEE; len_bytes as usize];
        loop {
            match self.event().await.expect("an answer") {
                ReplyEvent::Data {
                    offset: at,
                    len_bytes,
                    done,
                    ..
                } => {
                    let part = self.data(len_bytes as usize).await;
                    let start = usize::try_from(at - offset).unwrap();
                    data[start..start + part.len()].copy_from_slice(&part);
                    if done {
                        return Ok(data);
                    }
                }
                ReplyEvent::Hole {
                    offset: at,
                    len_bytes,
                    done,
                    ..
                } => {
                    let start = usize::try_from(at - offset).unwrap();
                    data[start..start + len_bytes as usize].fill(0);
                    if done {
                        return Ok(data);
                    }
                }
                ReplyEvent::End { .. } => return Ok(data),
                ReplyEvent::Error {
                    code, done: true, ..
                } => return Err(code),
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// The connection works as if nothing had happened.
    pub(crate) async fn assert_good(&mut self) {
        assert_eq!(self.write(SIZE - 512, &[7; 512]).await, Answer::Done);
        assert_eq!(self.read(SIZE - 512, 512).await, Ok(vec![7; 512]));
    }

    /// The server closed, and the session is over.
    pub(crate) async fn assert_closed(mut self) {
        assert_eq!(self.event().await, None);
        self.session.await.unwrap();
    }

    pub(crate) async fn hang_up(self) {
        drop(self.socket);
        self.session.await.unwrap();
    }
}

/// Under the paused clock of the tests this returns when no task can go on.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Data that differs everywhere; the seed is printed with a failing comparison by its offset.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut data = Vec::with_capacity(len + 8);
    while data.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(len);
    data
}
