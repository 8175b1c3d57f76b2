//! One NBD connection that sends as fast as its window allows and times each answer.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use nbd_server::proto::client::{
    ClientGoal, ClientHandshake, ClientStep, Remote, Replies, ReplyEvent,
};
use nbd_server::proto::{CommandCode, CommandFlags, Cookie, ErrorCode, ExportName, Request};

/// Where a server listens.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What one connection asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) command: CommandCode,
    pub(crate) len_bytes: u32,
    pub(crate) in_flight: usize,
    /// On each connection.
    pub(crate) requests: usize,
}

trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

pub(crate) struct Client {
    stream: Box<dyn Stream>,
    input: BytesMut,
    remote: Remote,
    /// When the request with this cookie was sent, modulo its length.
    sent_at: Vec<Instant>,
    scratch: Vec<u8>,
}

/// Far more than may be in flight, so that a cookie finds its own moment.
const MOMENTS: usize = 1 << 12;
/// Read ahead of a reply: several of those without data, and little of one with data.
const READ_AHEAD_BYTES: usize = 4096;
/// Requests up to this length are copied together, so that a window of them is one system call.
const BATCHED_BYTES: usize = 16 << 10;
const SCRATCH_BYTES: usize = 256 << 10;
/// A server that does not answer for so long has failed.
const TIMEOUT: Duration = Duration::from_secs(60);

impl Client {
    /// Connects with structured replies, where the server has them.
    pub(crate) fn connect(address: &Address) -> io::Result<Self> {
        let mut stream: Box<dyn Stream> = match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                Box::new(stream)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                Box::new(stream)
            }
        };
        let mut handshake = ClientHandshake::new(ClientGoal::Use {
            name: ExportName::new("").expect("a name"),
            contexts: Vec::new(),
            extended_headers: false,
        });
        let mut input = BytesMut::new();
        let remote = loop {
            match handshake.step(&mut input).map_err(io::Error::other)? {
                ClientStep::NeedBytes(_) => {
                    stream.write_all(handshake.output())?;
                    handshake.output().clear();
                    more(&mut *stream, &mut input)?;
                }
                ClientStep::Ready(remote) => break remote,
                ClientStep::Listed(_) => unreachable!("no listing was asked for"),
            }
        };
        Ok(Self {
            stream,
            input,
            remote,
            sent_at: vec![Instant::now(); MOMENTS],
            scratch: vec![0x5a; SCRATCH_BYTES],
        })
    }

    /// Sends all requests of the load and waits for every answer; how long each took.
    pub(crate) fn run(&mut self, load: Load, payload: &[u8]) -> io::Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(load.requests);
        let mut sent = 0;
        while times.len() < load.requests {
            let room = load.in_flight - (sent - times.len());
            let batch = room.min(load.requests - sent);
            if batch > 0 {
                self.send(load, payload, sent, batch)?;
                sent += batch;
            }
            let cookie = self.answer(load)?;
            let place = usize::try_from(cookie.0).expect("our own") % MOMENTS;
            times.push(self.sent_at[place].elapsed());
        }
        Ok(times)
    }

    fn send(&mut self, load: Load, payload: &[u8], first: usize, count: usize) -> io::Result<()> {
        let is_write = load.command == CommandCode::WRITE;
        let payload = if is_write { payload } else { &[] };
        let blocks = self.remote.size_bytes / u64::from(load.len_bytes);
        let mut batch = BytesMut::new();
        for index in first..first + count {
            let number = u64::try_from(index).expect("a small number");
            let request = Request {
                flags: CommandFlags::EMPTY,
                command: load.command,
                cookie: Cookie(number),
                offset: number % blocks * u64::from(load.len_bytes),
                len_bytes: load.len_bytes.into(),
            };
            request
                .encode(self.remote.style, &mut batch)
                .map_err(io::Error::other)?;
            self.sent_at[index % MOMENTS] = Instant::now();
            if payload.len() <= BATCHED_BYTES {
                batch.extend_from_slice(payload);
            } else {
                self.send_long(&batch, payload)?;
                batch.clear();
            }
        }
        self.stream.write_all(&batch)
    }

    fn send_long(&mut self, head: &[u8], payload: &[u8]) -> io::Result<()> {
        let mut slices = [IoSlice::new(head), IoSlice::new(payload)];
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let sent = self.stream.write_vectored(rest)?;
            IoSlice::advance_slices(&mut rest, sent);
        }
        Ok(())
    }

    /// Takes one whole answer.
    fn answer(&mut self, load: Load) -> io::Result<Cookie> {
        let replies = Replies::new(self.remote.style);
        loop {
            let event = replies.next(&mut self.input).map_err(io::Error::other)?;
            match event {
                ReplyEvent::NeedBytes(_) => more(&mut *self.stream, &mut self.input)?,
                ReplyEvent::Simple { cookie, error } => {
                    if error != ErrorCode::NONE {
                        return Err(io::Error::other(format!("refused: {error}")));
                    }
                    if load.command == CommandCode::READ {
                        self.discard(load.len_bytes)?;
                    }
                    return Ok(cookie);
                }
                ReplyEvent::Data {
                    cookie,
                    len_bytes,
                    done,
                    ..
                } => {
                    self.discard(len_bytes)?;
                    if done {
                        return Ok(cookie);
                    }
                }
                ReplyEvent::Hole { cookie, done, .. } => {
                    if done {
                        return Ok(cookie);
                    }
                }
                ReplyEvent::End { cookie } => return Ok(cookie),
                other => return Err(io::Error::other(format!("unexpected {other:?}"))),
            }
        }
    }

    /// Takes the data of a reply.
    fn discard(&mut self, len_bytes: u32) -> io::Result<()> {
        let mut left = usize::try_from(len_bytes).expect("in memory");
        let here = left.min(self.input.len());
        self.input.advance(here);
        left -= here;
        while left > 0 {
            let part = left.min(SCRATCH_BYTES);
            self.stream.read_exact(&mut self.scratch[..part])?;
            left -= part;
        }
        Ok(())
    }
}

fn more(stream: &mut dyn Stream, input: &mut BytesMut) -> io::Result<()> {
    let mut piece = [0; READ_AHEAD_BYTES];
    match stream.read(&mut piece)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        len => {
            input.extend_from_slice(&piece[..len]);
            Ok(())
        }
    }
}
