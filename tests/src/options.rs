//! A client that says options word by word, and keeps what it was answered: for handshakes that no well-behaved client has.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use bytes::BytesMut;
use nbd_server::proto::client::{Replies, ReplyEvent};
use nbd_server::proto::{
    ClientOption, CommandCode, CommandFlags, Cookie, ErrorCode, HeaderStyle, Info, OptionCode,
    OptionReply, OptionReplyHeader, Request,
};

use crate::hub::DEADLINE;

/// An option as it is sent, sound or not.
#[derive(Debug, Clone)]
pub struct Word {
    code: OptionCode,
    payload: Vec<u8>,
}

impl Word {
    /// A sound option.
    #[must_use]
    pub fn of(option: &ClientOption) -> Self {
        let mut whole = BytesMut::new();
        option.encode(&mut whole);
        let payload = whole[HEADER_BYTES..].to_vec();
        let code = option.code();
        Self { code, payload }
    }

    /// Any option with any payload.
    #[must_use]
    pub fn raw(code: OptionCode, payload: &[u8]) -> Self {
        let payload = payload.to_vec();
        Self { code, payload }
    }
}

/// What a server says, as far as servers can be compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Said {
    /// A name of a listing.
    Name(String),
    /// The size of the export, by a reply or the old way.
    Size(u64),
    /// Block sizes, whatever they are.
    BlockSize,
    /// The name of the export.
    CalledName(String),
    /// Its description, whatever it is.
    Description,
    /// A metadata context.
    Context(String),
    /// The option is accepted.
    Ack,
    /// The option is refused.
    Refused(u32),
    /// Something else.
    Other(String),
    /// Transmission: a FLUSH was answered with success.
    Serves,
    /// The server closed.
    Closed,
}

/// Says these options one after the other and waits for each answer, which is in an order of its own: the
/// specification leaves the order of information open. After an option that begins transmission, it is tried.
///
/// # Panics
/// When the server does not answer in time, or what it answers is no NBD.
#[must_use]
pub fn converse(socket: &Path, flags: u32, words: &[Word]) -> Vec<Said> {
    let stream = UnixStream::connect(socket).expect("the server listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    let mut talk = Talk {
        stream,
        style: HeaderStyle::Simple,
        padded: flags & 2 == 0,
        said: Vec::new(),
    };
    let greeted = talk.read(GREETING_BYTES).is_some() && talk.send(&flags.to_be_bytes());
    if !greeted || !words.iter().all(|word| talk.say(word)) {
        talk.said.push(Said::Closed);
    }
    talk.said
}

struct Talk {
    stream: UnixStream,
    style: HeaderStyle,
    padded: bool,
    said: Vec<Said>,
}

impl Talk {
    /// Whether the connection still lives afterwards.
    fn say(&mut self, word: &Word) -> bool {
        let mut header = b"IHAVEOPT".to_vec();
        header.extend(word.code.0.to_be_bytes());
        let len = u32::try_from(word.payload.len()).expect("a short payload");
        header.extend(len.to_be_bytes());
        if !(self.send(&header) && self.send(&word.payload)) {
            return false;
        }
        if word.code == OptionCode::EXPORT_NAME {
            return self.old_answer() && self.try_it();
        }
        let from = self.said.len();
        let Some(done) = self.replies() else {
            return false;
        };
        self.said[from..].sort();
        self.said.push(done.clone());
        if done != Said::Ack {
            return true;
        }
        match word.code {
            OptionCode::GO => return self.try_it(),
            OptionCode::STRUCTURED_REPLY => self.style = HeaderStyle::Structured,
            OptionCode::EXTENDED_HEADERS => self.style = HeaderStyle::Extended,
            _ => {}
        }
        true
    }

    /// Keeps what comes before the last reply to an option, and returns that one.
    fn replies(&mut self) -> Option<Said> {
        loop {
            let header = self.read(OptionReplyHeader::BYTES)?;
            let header = OptionReplyHeader::parse(&header).expect("an option reply");
            let payload = self.read(usize::try_from(header.len_bytes).expect("bounded"))?;
            let reply = OptionReply::parse(header.code, &payload).expect("an option reply");
            self.said.push(match reply {
                OptionReply::Ack => return Some(Said::Ack),
                OptionReply::Error { code, .. } => return Some(Said::Refused(code.0)),
                OptionReply::Server { name, .. } => Said::Name(name),
                OptionReply::MetaContext { name, .. } => Said::Context(name),
                OptionReply::Info(Info::Export { size_bytes, .. }) => Said::Size(size_bytes),
                OptionReply::Info(Info::BlockSize { .. }) => Said::BlockSize,
                OptionReply::Info(Info::Name(name)) => Said::CalledName(name),
                OptionReply::Info(Info::Description(_)) => Said::Description,
                other => Said::Other(format!("{other:?}")),
            });
        }
    }

    /// Size, flags and zeroes: the answer to EXPORT_NAME, which knows no error.
    fn old_answer(&mut self) -> bool {
        let padding = if self.padded { PADDING_BYTES } else { 0 };
        let Some(answer) = self.read(SIZE_AND_FLAGS_BYTES + padding) else {
            return false;
        };
        let (size, rest) = answer.split_at(8);
        let size = u64::from_be_bytes(size.try_into().expect("eight bytes"));
        assert!(rest[2..].iter().all(|byte| *byte == 0), "zeroes");
        self.said.push(Said::Size(size));
        true
    }

    /// A request at the right place of the stream is answered.
    fn try_it(&mut self) -> bool {
        let request = Request {
            flags: CommandFlags::EMPTY,
            command: CommandCode::FLUSH,
            cookie: Cookie(4711),
            offset: 0,
            len_bytes: 0,
        };
        let mut header = BytesMut::new();
        request.encode(self.style, &mut header).expect("a header");
        if !self.send(&header) {
            return false;
        }
        let mut input = BytesMut::new();
        loop {
            match Replies::new(self.style).next(&mut input).expect("a reply") {
                ReplyEvent::NeedBytes(need) => match self.read(need) {
                    Some(bytes) => input.extend_from_slice(&bytes),
                    None => return false,
                },
                ReplyEvent::Simple {
                    cookie: Cookie(4711),
                    error: ErrorCode::NONE,
                }
                | ReplyEvent::End {
                    cookie: Cookie(4711),
                } => break,
                other => panic!("no answer to a flush: {other:?}"),
            }
        }
        self.said.push(Said::Serves);
        true
    }

    /// Exactly so many bytes, unless the server closes.
    fn read(&mut self, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        match self.stream.read_exact(&mut bytes) {
            Ok(()) => Some(bytes),
            Err(error) if is_end(error.kind()) => None,
            Err(error) => panic!("no answer: {error}"),
        }
    }

    /// Whether the server still listens, as far as that can be known.
    fn send(&mut self, bytes: &[u8]) -> bool {
        match self.stream.write_all(bytes) {
            Ok(()) => true,
            Err(error) if is_end(error.kind()) => false,
            Err(error) => panic!("the server stopped reading: {error}"),
        }
    }
}

fn is_end(kind: ErrorKind) -> bool {
    use ErrorKind as K;
    [K::UnexpectedEof, K::ConnectionReset, K::BrokenPipe].contains(&kind)
}

/// Magic, code and length of an option.
const HEADER_BYTES: usize = 16;
/// Two magics and the server's flags.
const GREETING_BYTES: usize = 18;
const SIZE_AND_FLAGS_BYTES: usize = 10;
/// What follows unless the client said NO_ZEROES.
const PADDING_BYTES: usize = 124;
