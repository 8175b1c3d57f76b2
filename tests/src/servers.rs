//! NBD servers, ours and those of others, each on a unix socket, and one client that asks them all the same.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use nbd_server::proto::client::{
    ClientGoal, ClientHandshake, ClientStep, Remote, Replies, ReplyEvent,
};
use nbd_server::proto::{
    CommandCode, CommandFlags, Cookie, ErrorCode, ExportName, HeaderStyle, Request,
};
use nbd_server::{Exports, ListenAddress, Listener};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::hub::DEADLINE;

/// A server that ends with this value.
#[derive(Debug)]
pub struct Served {
    /// Who it is.
    pub name: &'static str,
    socket: PathBuf,
    running: Running,
}

#[derive(Debug)]
enum Running {
    Here {
        runtime: Runtime,
        stop: CancellationToken,
        serving: Option<JoinHandle<()>>,
    },
    Process(Child),
}

impl Served {
    /// Our server in this process, on a socket in `dir`.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn ours<X: Exports>(dir: &Path, exports: X) -> Self {
        let socket = dir.join("ours.sock");
        let runtime = Runtime::new().expect("a runtime");
        let address = ListenAddress::Unix(socket.clone());
        let listener = runtime
            .block_on(Listener::bind(&address))
            .expect("a listener");
        let stop = CancellationToken::new();
        let serving = runtime.spawn(listener.serve(Arc::new(exports), stop.clone()));
        let running = Running::Here {
            runtime,
            stop,
            serving: Some(serving),
        };
        Self {
            name: "ours",
            socket,
            running,
        }
    }

    /// A program that listens on `socket` when told `args`.
    ///
    /// # Panics
    /// When it does not start, or does not listen in time.
    #[must_use]
    pub fn program(name: &'static str, socket: &Path, args: &[&str]) -> Self {
        let mut process = Command::new(name)
            .args(args)
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} did not start: {error}"));
        let begin = Instant::now();
        while UnixStream::connect(socket).is_err() {
            let ended = process.try_wait().expect("a process");
            assert!(ended.is_none(), "{name} {args:?} ended: {ended:?}");
            assert!(begin.elapsed() < DEADLINE, "{name} does not listen");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Self {
            name,
            socket: socket.to_owned(),
            running: Running::Process(process),
        }
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The URI of an export.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// A client that wants this style and these contexts, and takes what it is given.
    ///
    /// # Panics
    /// When the server refuses, or does not answer in time.
    #[must_use]
    pub fn connect(&self, export: &str, style: HeaderStyle, contexts: &[&str]) -> Client {
        Client::connect(&self.socket, export, style, contexts)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        match &mut self.running {
            Running::Here {
                runtime,
                stop,
                serving,
            } => {
                stop.cancel();
                if let Some(serving) = serving.take() {
                    let ended = runtime.block_on(serving);
                    assert!(ended.is_ok() || std::thread::panicking(), "{ended:?}");
                }
            }
            Running::Process(process) => {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded, with these bytes if it was a READ.
    Done(Vec<u8>),
    /// Block status: context number and runs.
    Status(Vec<(u32, Vec<(u64, u64)>)>),
    /// It failed, and the connection goes on.
    Failed(ErrorCode),
    /// The server closed the connection.
    Closed,
}

/// A client that waits for each answer, whatever it asked.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    input: BytesMut,
    remote: Remote,
    cookie: u64,
}

impl Client {
    /// A client of whoever listens on `socket`, as of [`Served::connect`].
    ///
    /// # Panics
    /// When the server refuses, or does not answer in time.
    #[must_use]
    pub fn connect(socket: &Path, export: &str, style: HeaderStyle, contexts: &[&str]) -> Self {
        let mut stream = UnixStream::connect(socket).expect("the server listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        let mut input = BytesMut::new();
        if style == HeaderStyle::Simple {
            let remote = old_handshake(&mut stream, export);
            return Self::new(stream, input, remote);
        }
        let mut handshake = ClientHandshake::new(ClientGoal::Use {
            name: ExportName::new(export).expect("a name"),
            contexts: contexts.iter().map(|&context| context.to_owned()).collect(),
            extended_headers: style == HeaderStyle::Extended,
        });
        loop {
            match handshake.step(&mut input).expect("a handshake") {
                ClientStep::NeedBytes(_) => {
                    stream.write_all(handshake.output()).expect("it listens");
                    handshake.output().clear();
                    assert!(more(&mut stream, &mut input), "closed in the handshake");
                }
                ClientStep::Ready(remote) => return Self::new(stream, input, remote),
                ClientStep::Listed(_) => unreachable!("no listing was asked for"),
            }
        }
    }

    fn new(stream: UnixStream, input: BytesMut, remote: Remote) -> Self {
        Self {
            stream,
            input,
            remote,
            cookie: 0,
        }
    }

    /// What the server said.
    #[must_use]
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Sends a request and waits for its answer. `len_bytes` is what the header says; with extended headers a
    /// WRITE gets its flag.
    ///
    /// # Panics
    /// When the server breaks the protocol, or does not answer in time.
    pub fn ask(
        &mut self,
        command: CommandCode,
        flags: CommandFlags,
        (offset, len_bytes): (u64, u64),
        payload: &[u8],
    ) -> Outcome {
        self.cookie += 1;
        let style = self.remote.style;
        let is_write = command == CommandCode::WRITE && style == HeaderStyle::Extended;
        let request = Request {
            flags: flags.with_if(is_write, CommandFlags::PAYLOAD_LEN),
            command,
            cookie: Cookie(self.cookie),
            offset,
            len_bytes,
        };
        let mut header = BytesMut::new();
        request.encode(style, &mut header).expect("a header");
        let sent = self.stream.write_all(&header);
        // A server may refuse before it has read everything, and close.
        let _ = sent.and_then(|()| self.stream.write_all(payload));
        self.answer(&request)
    }

    fn answer(&mut self, request: &Request) -> Outcome {
        let mut data = if request.command == CommandCode::READ {
            vec![0; usize::try_from(request.len_bytes.min(1 << 30)).expect("in memory")]
        } else {
            Vec::new()
        };
        let mut status = Vec::new();
        let mut failure = None;
        let replies = Replies::new(self.remote.style);
        loop {
            let event = match replies.next(&mut self.input).expect("a reply") {
                ReplyEvent::NeedBytes(_) => {
                    if more(&mut self.stream, &mut self.input) {
                        continue;
                    }
                    return Outcome::Closed;
                }
                event => event,
            };
            let done = match event {
                ReplyEvent::NeedBytes(_) => unreachable!("handled above"),
                ReplyEvent::Simple { error, .. } => {
                    if error == ErrorCode::NONE {
                        self.take(&mut data);
                    } else {
                        failure = Some(error);
                    }
                    true
                }
                ReplyEvent::Data {
                    offset,
                    len_bytes,
                    done,
                    ..
                } => {
                    let from = usize::try_from(offset - request.offset).expect("inside");
                    let len = usize::try_from(len_bytes).expect("inside");
                    self.take(&mut data[from..from + len]);
                    done
                }
                ReplyEvent::Hole { done, .. } => done,
                ReplyEvent::Status {
                    context,
                    descriptors,
                    done,
                    ..
                } => {
                    let runs = descriptors.iter().map(|d| (d.len_bytes, d.status));
                    status.push((context.0, runs.collect()));
                    done
                }
                ReplyEvent::Error { code, done, .. } => {
                    failure = Some(code);
                    done
                }
                ReplyEvent::End { .. } => true,
            };
            if done {
                return match failure {
                    Some(code) => Outcome::Failed(code),
                    None if status.is_empty() => Outcome::Done(data),
                    None => Outcome::Status(status),
                };
            }
        }
    }

    fn take(&mut self, into: &mut [u8]) {
        let ready = self.input.len().min(into.len());
        let (head, rest) = into.split_at_mut(ready);
        self.input.copy_to_slice(head);
        self.stream.read_exact(rest).expect("the data of a reply");
    }
}

/// Whether more came before the end of the stream.
fn more(stream: &mut UnixStream, input: &mut BytesMut) -> bool {
    let mut piece = [0; 16 << 10];
    match stream.read(&mut piece) {
        Ok(0) => false,
        Ok(len) => {
            input.extend_from_slice(&piece[..len]);
            true
        }
        Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
        Err(error) => panic!("no answer: {error}"),
    }
}

/// `NBD_OPT_EXPORT_NAME` with NO_ZEROES: then replies are simple.
fn old_handshake(stream: &mut UnixStream, export: &str) -> Remote {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("a greeting");
    let mut hello = b"\0\0\0\x03IHAVEOPT\0\0\0\x01".to_vec();
    let len = u32::try_from(export.len()).expect("a short name");
    hello.extend(len.to_be_bytes());
    hello.extend(export.as_bytes());
    stream.write_all(&hello).expect("the server listens");
    let mut told = [0; 10];
    stream.read_exact(&mut told).expect("the export is known");
    let (size, flags) = told.split_at(8);
    Remote {
        size_bytes: u64::from_be_bytes(size.try_into().expect("eight bytes")),
        flags: nbd_server::proto::TransmissionFlags(u16::from_be_bytes(
            flags.try_into().expect("two bytes"),
        )),
        style: HeaderStyle::Simple,
        contexts: Vec::new(),
        min_block_bytes: 1,
        preferred_block_bytes: 1 << 16,
        max_block_bytes: 32 << 20,
    }
}
