//! One connection to one export.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nbd_server::proto::client::Remote;
use nbd_server::proto::{
    BASE_ALLOCATION, CommandCode, CommandFlags, ContextId, Cookie, ExportName, Extent, HeaderStyle,
    Request, TransmissionFlags,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::driver::{Outgoing, receive_replies, send_requests};
use super::handshake::{HandshakeError, handshake};
use super::pending::{Answer, Expect, Pending, Waiting};
use super::uri::Address;
use super::{NbdError, NbdUri};
use crate::limits::{
    CONNECT_TIMEOUT, FLUSH_TIMEOUT, HANDSHAKE_TIMEOUT, MAX_IN_FLIGHT, MAX_READ_BYTES, REPLY_TIMEOUT,
};

/// What a connection should negotiate beside the export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Ask for `base:allocation`, so that [`Connection::block_status`] works.
    pub block_status: bool,
}

/// What the server said about the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteInfo {
    /// Size of the device.
    pub size_bytes: u64,
    /// Writing is refused.
    pub read_only: bool,
    /// A flush on one connection covers the completed writes of all.
    pub multi_conn: bool,
    /// FLUSH is understood.
    pub can_flush: bool,
    /// TRIM is understood.
    pub can_trim: bool,
    /// `WRITE_ZEROES` is understood.
    pub can_write_zeroes: bool,
    /// `base:allocation` was negotiated.
    pub can_block_status: bool,
    /// Offsets and lengths are multiples of it.
    pub minimum_block_bytes: u32,
    /// The longest payload of a request.
    pub maximum_payload_bytes: u32,
}

impl RemoteInfo {
    fn new(remote: &Remote) -> Self {
        let has = |flag| remote.flags.has(flag);
        Self {
            size_bytes: remote.size_bytes,
            read_only: has(TransmissionFlags::READ_ONLY),
            multi_conn: has(TransmissionFlags::CAN_MULTI_CONN),
            can_flush: has(TransmissionFlags::SEND_FLUSH),
            can_trim: has(TransmissionFlags::SEND_TRIM),
            can_write_zeroes: has(TransmissionFlags::SEND_WRITE_ZEROES),
            can_block_status: remote.context(BASE_ALLOCATION).is_some(),
            minimum_block_bytes: remote.min_block_bytes,
            maximum_payload_bytes: remote.max_block_bytes,
        }
    }
}

/// One connection in transmission. Requests take `&self` and may be made concurrently; replies come in any order.
///
/// # Cancel safety
/// A request whose future is dropped may or may not take effect; the connection stays usable. Dropping the
/// connection cuts it without a farewell; [`Connection::disconnect`] says one.
#[derive(Debug)]
pub struct Connection {
    info: RemoteInfo,
    style: HeaderStyle,
    base_allocation: Option<ContextId>,
    pending: Arc<Pending>,
    slots: Arc<Semaphore>,
    queue: mpsc::Sender<Outgoing>,
    tasks: Tasks,
}

/// The tasks of a connection; they end with it.
#[derive(Debug)]
struct Tasks {
    sender: JoinHandle<()>,
    receiver: JoinHandle<()>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.sender.abort();
        self.receiver.abort();
    }
}

/// The range and the kind of a request, for its error.
#[derive(Debug, Clone, Copy)]
struct Ask {
    command: CommandCode,
    flags: CommandFlags,
    offset: u64,
    len_bytes: u32,
}

impl Connection {
    /// Connects to a server and opens an export.
    ///
    /// # Errors
    /// `Connect` when nobody answers, `Handshake` when the export is refused, `Closed` when the
    /// connection ends or the time is over before it is done.
    pub async fn connect(uri: &NbdUri, options: ConnectOptions) -> Result<Self, NbdError> {
        let address = uri.address.to_string();
        let failed = |why: String| NbdError::Connect {
            address: address.clone(),
            why,
        };
        match &uri.address {
            Address::Tcp(host, port) => {
                let connecting = TcpStream::connect((host.as_str(), *port));
                let mut stream = timeout(CONNECT_TIMEOUT, connecting)
                    .await
                    .map_err(|_| failed("timed out".to_owned()))?
                    .map_err(|error| failed(error.to_string()))?;
                // Requests are written whole; waiting for more bytes only delays them.
                stream
                    .set_nodelay(true)
                    .map_err(|error| failed(error.to_string()))?;
                let agreed = negotiate(&mut stream, &address, &uri.export, options).await?;
                let (read_half, write_half) = stream.into_split();
                Ok(Self::start(agreed, read_half, write_half))
            }
            Address::Unix(path) => {
                let mut stream = timeout(CONNECT_TIMEOUT, UnixStream::connect(path))
                    .await
                    .map_err(|_| failed("timed out".to_owned()))?
                    .map_err(|error| failed(error.to_string()))?;
                let agreed = negotiate(&mut stream, &address, &uri.export, options).await?;
                let (read_half, write_half) = stream.into_split();
                Ok(Self::start(agreed, read_half, write_half))
            }
        }
    }

    /// Opens an export over a stream that is connected already; `address` is for messages.
    ///
    /// # Errors
    /// As [`Connection::connect`].
    pub async fn over<S>(
        mut stream: S,
        address: &str,
        export: &str,
        options: ConnectOptions,
    ) -> Result<Self, NbdError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let agreed = negotiate(&mut stream, address, export, options).await?;
        let (read_half, write_half) = tokio::io::split(stream);
        Ok(Self::start(agreed, read_half, write_half))
    }

    fn start(
        (remote, input): (Remote, BytesMut),
        read_half: impl AsyncRead + Send + Unpin + 'static,
        write_half: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        let pending = Arc::new(Pending::default());
        let (queue, requests) = mpsc::channel(MAX_IN_FLIGHT);
        let sender = send_requests(write_half, requests, Arc::clone(&pending));
        let receiver = receive_replies(remote.style, read_half, input, Arc::clone(&pending));
        Self {
            info: RemoteInfo::new(&remote),
            style: remote.style,
            base_allocation: remote.context(BASE_ALLOCATION),
            pending,
            slots: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            queue,
            tasks: Tasks {
                sender: tokio::spawn(sender),
                receiver: tokio::spawn(receiver),
            },
        }
    }

    /// What the server said about the export.
    #[must_use]
    pub fn info(&self) -> RemoteInfo {
        self.info
    }

    /// Reads `len_bytes` at `offset`, at most the server's longest payload and 32 MiB.
    ///
    /// # Errors
    /// `Server` for an error of the medium, `Invalid` for a range outside the export, `Closed` and `Timeout`.
    pub async fn read(&self, offset: u64, len_bytes: u32) -> Result<Bytes, NbdError> {
        let ask = self.ask(CommandCode::READ, offset, len_bytes)?;
        let limit = MAX_READ_BYTES.min(self.info.maximum_payload_bytes);
        if len_bytes > limit {
            return Err(NbdError::invalid(format_args!(
                "read too long len={len_bytes} limit={limit}"
            )));
        }
        let len = usize::try_from(len_bytes).map_err(NbdError::invalid)?;
        let expect = Expect::Data {
            offset,
            buffer: BytesMut::zeroed(len),
            received_bytes: 0,
        };
        match self.request(ask, expect, Bytes::new()).await? {
            Answer::Data(data) => Ok(data),
            _ => Err(NbdError::closed("a reply of another kind")),
        }
    }

    /// Writes `data` at `offset`, at most the server's longest payload.
    ///
    /// # Errors
    /// As [`Connection::read`].
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), NbdError> {
        let len_bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if len_bytes > self.info.maximum_payload_bytes {
            return Err(NbdError::invalid(format_args!(
                "write too long len={} limit={}",
                data.len(),
                self.info.maximum_payload_bytes
            )));
        }
        let ask = self.ask(CommandCode::WRITE, offset, len_bytes)?;
        self.request(ask, Expect::Nothing, data).await.map(|_| ())
    }

    /// Makes a range read as zero; with `keep_allocation` it takes space nevertheless.
    ///
    /// # Errors
    /// As [`Connection::read`]; `Invalid` when the server does not know the command.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        len_bytes: u32,
        keep_allocation: bool,
    ) -> Result<(), NbdError> {
        self.must(self.info.can_write_zeroes, "WRITE_ZEROES")?;
        let mut ask = self.ask(CommandCode::WRITE_ZEROES, offset, len_bytes)?;
        ask.flags = ask.flags.with_if(keep_allocation, CommandFlags::NO_HOLE);
        self.request(ask, Expect::Nothing, Bytes::new())
            .await
            .map(|_| ())
    }

    /// Gives a range back.
    ///
    /// # Errors
    /// As [`Connection::write_zeroes`].
    pub async fn trim(&self, offset: u64, len_bytes: u32) -> Result<(), NbdError> {
        self.must(self.info.can_trim, "TRIM")?;
        let ask = self.ask(CommandCode::TRIM, offset, len_bytes)?;
        self.request(ask, Expect::Nothing, Bytes::new())
            .await
            .map(|_| ())
    }

    /// Returns when everything that was completed before the call is durable; of all connections to the export,
    /// where the server says [`RemoteInfo::multi_conn`].
    ///
    /// # Errors
    /// As [`Connection::write_zeroes`].
    pub async fn flush(&self) -> Result<(), NbdError> {
        self.must(self.info.can_flush, "FLUSH")?;
        let ask = self.ask(CommandCode::FLUSH, 0, 0)?;
        self.request(ask, Expect::Nothing, Bytes::new())
            .await
            .map(|_| ())
    }

    /// Holes and zeroes from `offset` on. The server may tell less than was asked for, or a little more.
    ///
    /// # Errors
    /// As [`Connection::read`]; `Invalid` unless it was negotiated ([`ConnectOptions::block_status`]).
    pub async fn block_status(&self, offset: u64, len_bytes: u32) -> Result<Vec<Extent>, NbdError> {
        let context = self
            .base_allocation
            .ok_or_else(|| NbdError::invalid("base:allocation was not negotiated"))?;
        let ask = self.ask(CommandCode::BLOCK_STATUS, offset, len_bytes)?;
        let expect = Expect::Status {
            context,
            extents: Vec::new(),
        };
        match self.request(ask, expect, Bytes::new()).await? {
            Answer::Extents(extents) if !extents.is_empty() => Ok(extents),
            _ => Err(NbdError::closed("a block status reply without extents")),
        }
    }

    /// Says farewell and waits until the server has closed, for a moment at most. Requests under way are lost.
    pub async fn disconnect(self) {
        const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);
        let farewell = async {
            if let Ok(place) = self.queue.reserve().await {
                let request = Request {
                    flags: CommandFlags::EMPTY,
                    command: CommandCode::DISC,
                    cookie: Cookie(u64::MAX),
                    offset: 0,
                    len_bytes: 0,
                };
                place.send(outgoing(self.style, &request, Bytes::new()));
            }
        };
        let _ = timeout(FAREWELL_TIMEOUT, farewell).await;
        let Self {
            queue, mut tasks, ..
        } = self;
        // The sender ends with its queue, and the server closes.
        drop(queue);
        let _ = timeout(FAREWELL_TIMEOUT, &mut tasks.receiver).await;
    }

    /// A request inside the export.
    fn ask(&self, command: CommandCode, offset: u64, len_bytes: u32) -> Result<Ask, NbdError> {
        let inside = offset
            .checked_add(len_bytes.into())
            .is_some_and(|end| end <= self.info.size_bytes);
        if !inside {
            return Err(NbdError::invalid(format_args!(
                "{command} outside the export offset={offset} len={len_bytes} size={}",
                self.info.size_bytes
            )));
        }
        Ok(Ask {
            command,
            flags: CommandFlags::EMPTY,
            offset,
            len_bytes,
        })
    }

    fn must(&self, can: bool, command: &str) -> Result<(), NbdError> {
        if can {
            Ok(())
        } else {
            Err(NbdError::invalid(format_args!(
                "the server does not offer {command}"
            )))
        }
    }

    /// Sends a request and waits for its reply.
    async fn request(&self, ask: Ask, expect: Expect, payload: Bytes) -> Result<Answer, NbdError> {
        let lost = || {
            self.pending
                .closed()
                .unwrap_or_else(|| NbdError::closed("no reason known"))
        };
        let slot = Arc::clone(&self.slots)
            .acquire_owned()
            .await
            .map_err(|_| lost())?;
        // The place in the queue comes first: from `add` on there is no await before the request is on its way.
        let place = self.queue.reserve().await.map_err(|_| lost())?;
        let (answer, reply) = oneshot::channel();
        let cookie = self.pending.add(Waiting {
            expect,
            refusal: None,
            answer,
            _slot: slot,
        })?;
        let request = Request {
            flags: ask.flags,
            command: ask.command,
            cookie: Cookie(cookie),
            offset: ask.offset,
            len_bytes: ask.len_bytes.into(),
        };
        place.send(outgoing(self.style, &request, payload));

        let limit = if ask.command == CommandCode::FLUSH {
            FLUSH_TIMEOUT
        } else {
            REPLY_TIMEOUT
        };
        let reply = timeout(limit, reply).await.map_err(|_| NbdError::Timeout {
            command: ask.command,
            offset: ask.offset,
            len_bytes: ask.len_bytes.into(),
            seconds: limit.as_secs(),
        })?;
        reply
            .map_err(|_| lost())??
            .map_err(|refusal| NbdError::Server {
                command: ask.command,
                offset: ask.offset,
                len_bytes: ask.len_bytes.into(),
                code: refusal.code,
                text: refusal.text,
            })
    }
}

fn outgoing(style: HeaderStyle, request: &Request, payload: Bytes) -> Outgoing {
    let mut header = BytesMut::with_capacity(style.request_bytes());
    request
        .encode(style, &mut header)
        .expect("lengths of this client have 32 bits, which every header holds");
    Outgoing {
        header: header.freeze(),
        payload,
    }
}

async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    address: &str,
    export: &str,
    options: ConnectOptions,
) -> Result<(Remote, BytesMut), NbdError> {
    let failed = |source| NbdError::Handshake {
        address: address.to_owned(),
        export: export.to_owned(),
        source,
    };
    let name = ExportName::new(export).map_err(|error| failed(error.into()))?;
    let mut input = BytesMut::new();
    let shaking = handshake(stream, name, options.block_status, &mut input);
    match timeout(HANDSHAKE_TIMEOUT, shaking).await {
        Ok(Ok(remote)) => Ok((remote, input)),
        Ok(Err(HandshakeError::Protocol(error))) => Err(failed(error)),
        Ok(Err(HandshakeError::Io(error))) => Err(NbdError::closed(format_args!(
            "in the handshake with {address}: {error}"
        ))),
        Err(_) => Err(NbdError::closed(format_args!(
            "the handshake with {address} took too long limit_s={}",
            HANDSHAKE_TIMEOUT.as_secs()
        ))),
    }
}
