use bytes::BytesMut;

use crate::proto::context::ContextId;
use crate::proto::error::ProtocolError;
use crate::proto::handshake::SERVER_MAGIC;
use crate::proto::limits::{
    MAX_BLOCK_BYTES, MAX_OPTION_REPLIES, MIN_BLOCK_BYTES, PREFERRED_BLOCK_BYTES,
};
use crate::proto::option::{
    ClientOption, Info, InfoRequest, MetaQuery, OPTION_MAGIC, OptionReply, OptionReplyHeader,
};
use crate::proto::types::{
    ClientFlags, ExportName, HandshakeFlags, HeaderStyle, InfoKind, OptionCode, TransmissionFlags,
};
use crate::proto::wire::{Reader, Writer};

/// Greeting: two magics and the flags.
const GREETING_BYTES: usize = 18;

/// What the client wants of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientGoal {
    /// Use an export.
    Use {
        /// Which export.
        name: ExportName,
        /// The contexts that block status will be asked about, by name.
        contexts: Vec<String>,
        /// Whether 64-bit lengths are asked for, before the structured replies that do as well.
        extended_headers: bool,
    },
    /// Learn the names of all exports, then leave.
    List,
}

/// What the server told about the export in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Size of the device.
    pub size_bytes: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// How requests and replies begin.
    pub style: HeaderStyle,
    /// Those of the contexts asked for that the server has, by number and name.
    pub contexts: Vec<(ContextId, String)>,
    /// Requests must be multiples of this, at multiples of it.
    pub min_block_bytes: u32,
    /// Requests should be multiples of this.
    pub preferred_block_bytes: u32,
    /// The longest payload of a READ or WRITE.
    pub max_block_bytes: u32,
}

impl Remote {
    /// The number of a context that was asked for, when the server has it.
    #[must_use]
    pub fn context(&self, name: &str) -> Option<ContextId> {
        let mut contexts = self.contexts.iter();
        contexts.find(|(_, known)| known == name).map(|(id, _)| *id)
    }
}

/// What the caller must do before the next call of [`ClientHandshake::step`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientStep {
    /// Send the output, then append at least this many bytes to the input.
    NeedBytes(usize),
    /// Send the output; requests may follow.
    Ready(Remote),
    /// The names of the exports; send the output and close.
    Listed(Vec<String>),
}

#[derive(Debug)]
enum State {
    Greeting,
    ExtendedHeaders,
    StructuredReply,
    MetaContext,
    Go {
        info: Option<(u64, TransmissionFlags)>,
    },
    List {
        names: Vec<String>,
    },
    Over,
}

/// The client's side of a handshake (NBD proto, "Handshake phase"), fixed newstyle only.
#[derive(Debug)]
pub struct ClientHandshake {
    goal: ClientGoal,
    state: State,
    output: BytesMut,
    replies_seen: u32,
    remote: Remote,
}

impl ClientHandshake {
    /// A handshake that waits for the server's greeting.
    #[must_use]
    pub fn new(goal: ClientGoal) -> Self {
        Self {
            goal,
            state: State::Greeting,
            output: BytesMut::new(),
            replies_seen: 0,
            remote: Remote {
                size_bytes: 0,
                flags: TransmissionFlags::EMPTY,
                style: HeaderStyle::Simple,
                contexts: Vec::new(),
                // What a server means that does not say (NBD proto, "Block size constraints").
                min_block_bytes: MIN_BLOCK_BYTES,
                preferred_block_bytes: PREFERRED_BLOCK_BYTES,
                max_block_bytes: MAX_BLOCK_BYTES,
            },
        }
    }

    /// Bytes for the server. The caller sends and clears them whenever it waits.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Goes on as far as `input` reaches, and takes what it understood off its front.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::Refused`] when the server does not give what the goal needs; the output then
    /// holds a polite `NBD_OPT_ABORT`. Anything else: the server broke the protocol.
    ///
    /// # Panics
    ///
    /// After the handshake is over: a bug of the caller.
    pub fn step(&mut self, input: &mut BytesMut) -> Result<ClientStep, ProtocolError> {
        loop {
            match self.state {
                State::Greeting => {
                    if input.len() < GREETING_BYTES {
                        return Ok(ClientStep::NeedBytes(GREETING_BYTES - input.len()));
                    }
                    self.greeting(&input.split_to(GREETING_BYTES))?;
                }
                State::Over => panic!("the handshake is over"),
                _ => {
                    let reply = match self.take_reply(input)? {
                        Ok(reply) => reply,
                        Err(missing) => return Ok(ClientStep::NeedBytes(missing)),
                    };
                    if let Some(step) = self.reply(reply)? {
                        self.state = State::Over;
                        return Ok(step);
                    }
                }
            }
        }
    }

    fn greeting(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        let mut reader = Reader::new("greeting", bytes);
        reader.magic_u64(SERVER_MAGIC)?;
        reader.magic_u64(OPTION_MAGIC)?;
        let offered = HandshakeFlags(reader.u16()?);
        if !offered.has(HandshakeFlags::FIXED_NEWSTYLE) {
            return Err(ProtocolError::Unexpected {
                structure: "greeting",
                field: "handshake flags",
                value: offered.0.into(),
            });
        }
        let no_zeroes = offered.has(HandshakeFlags::NO_ZEROES);
        let flags = ClientFlags::FIXED_NEWSTYLE.with_if(no_zeroes, ClientFlags::NO_ZEROES);
        Writer::new(&mut self.output).u32(flags.0);
        match self.goal {
            ClientGoal::Use {
                extended_headers: true,
                ..
            } => {
                self.send(&ClientOption::ExtendedHeaders);
                self.state = State::ExtendedHeaders;
            }
            ClientGoal::Use { .. } => self.structured_reply(),
            ClientGoal::List => {
                self.send(&ClientOption::List);
                self.state = State::List { names: Vec::new() };
            }
        }
        Ok(())
    }

    /// The next reply, or how many bytes of it are missing.
    fn take_reply(
        &self,
        input: &mut BytesMut,
    ) -> Result<Result<OptionReply, usize>, ProtocolError> {
        let Some(header) = input.get(..OptionReplyHeader::BYTES) else {
            return Ok(Err(OptionReplyHeader::BYTES - input.len()));
        };
        let header = OptionReplyHeader::parse(header)?;
        let expected = self.expected_option();
        if header.option != expected {
            return Err(ProtocolError::Unexpected {
                structure: "option reply header",
                field: "option",
                value: header.option.0.into(),
            });
        }
        let payload_bytes = usize::try_from(header.len_bytes).unwrap_or(usize::MAX);
        let whole = OptionReplyHeader::BYTES.saturating_add(payload_bytes);
        if input.len() < whole {
            return Ok(Err(whole - input.len()));
        }
        let message = input.split_to(whole);
        OptionReply::parse(header.code, &message[OptionReplyHeader::BYTES..]).map(Ok)
    }

    fn expected_option(&self) -> OptionCode {
        match self.state {
            State::ExtendedHeaders => OptionCode::EXTENDED_HEADERS,
            State::StructuredReply => OptionCode::STRUCTURED_REPLY,
            State::MetaContext => OptionCode::SET_META_CONTEXT,
            State::Go { .. } => OptionCode::GO,
            State::List { .. } => OptionCode::LIST,
            State::Greeting | State::Over => OptionCode(0),
        }
    }

    fn reply(&mut self, reply: OptionReply) -> Result<Option<ClientStep>, ProtocolError> {
        self.replies_seen += 1;
        if self.replies_seen > MAX_OPTION_REPLIES {
            return Err(ProtocolError::TooBig {
                structure: "option replies",
                value: self.replies_seen.into(),
                max: MAX_OPTION_REPLIES.into(),
            });
        }
        match &mut self.state {
            // These three are wishes: a server without them is served another way.
            State::ExtendedHeaders => {
                if reply == OptionReply::Ack {
                    self.remote.style = HeaderStyle::Extended;
                    self.after_style();
                } else {
                    self.structured_reply();
                }
                Ok(None)
            }
            State::StructuredReply => {
                if reply == OptionReply::Ack {
                    self.remote.style = HeaderStyle::Structured;
                }
                self.after_style();
                Ok(None)
            }
            State::MetaContext => {
                match reply {
                    // No more than were asked for: the server does not decide how many are kept.
                    OptionReply::MetaContext { id, name } if self.wants(&name) => {
                        self.remote.contexts.push((id, name));
                    }
                    OptionReply::Ack => self.go(),
                    OptionReply::Error { .. } => {
                        self.remote.contexts.clear();
                        self.go();
                    }
                    _ => {}
                }
                Ok(None)
            }
            State::Go { info } => match reply {
                OptionReply::Info(Info::Export { size_bytes, flags }) => {
                    *info = Some((size_bytes, flags));
                    Ok(None)
                }
                OptionReply::Info(Info::BlockSize {
                    minimum,
                    preferred,
                    maximum,
                }) => {
                    self.block_size(minimum, preferred, maximum)?;
                    Ok(None)
                }
                OptionReply::Ack => match *info {
                    Some((size_bytes, flags)) => Ok(Some(ClientStep::Ready(Remote {
                        size_bytes,
                        flags,
                        ..self.remote.clone()
                    }))),
                    None => Err(ProtocolError::Unexpected {
                        structure: "GO reply",
                        field: "export info count",
                        value: 0,
                    }),
                },
                OptionReply::Error { code, text } => {
                    self.send(&ClientOption::Abort);
                    Err(ProtocolError::Refused {
                        option: OptionCode::GO.to_string(),
                        reply: code,
                        text,
                    })
                }
                _ => Ok(None),
            },
            State::List { names } => match reply {
                OptionReply::Server { name, .. } => {
                    names.push(name);
                    Ok(None)
                }
                OptionReply::Ack => {
                    let names = std::mem::take(names);
                    self.send(&ClientOption::Abort);
                    Ok(Some(ClientStep::Listed(names)))
                }
                OptionReply::Error { code, text } => {
                    self.send(&ClientOption::Abort);
                    Err(ProtocolError::Refused {
                        option: OptionCode::LIST.to_string(),
                        reply: code,
                        text,
                    })
                }
                _ => Ok(None),
            },
            State::Greeting | State::Over => unreachable!("no reply is taken in these states"),
        }
    }

    /// Whether a context was asked for and is not known yet.
    fn wants(&self, context: &str) -> bool {
        let asked = match &self.goal {
            ClientGoal::Use { contexts, .. } => contexts.iter().any(|asked| asked == context),
            ClientGoal::List => false,
        };
        asked && self.remote.context(context).is_none()
    }

    fn structured_reply(&mut self) {
        self.send(&ClientOption::StructuredReply);
        self.state = State::StructuredReply;
    }

    fn after_style(&mut self) {
        match &self.goal {
            ClientGoal::Use { name, contexts, .. }
                if self.remote.style.has_chunks() && !contexts.is_empty() =>
            {
                let query = MetaQuery {
                    name: name.clone(),
                    queries: contexts.clone(),
                };
                self.send(&ClientOption::SetMetaContext(query));
                self.state = State::MetaContext;
            }
            _ => self.go(),
        }
    }

    fn go(&mut self) {
        if let ClientGoal::Use { name, .. } = &self.goal {
            let request = InfoRequest {
                name: name.clone(),
                kinds: vec![InfoKind::BLOCK_SIZE],
            };
            self.send(&ClientOption::Go(request));
            self.state = State::Go { info: None };
        }
    }

    fn block_size(
        &mut self,
        minimum: u32,
        preferred: u32,
        maximum: u32,
    ) -> Result<(), ProtocolError> {
        // A client divides by these; the order is part of the specification.
        if minimum == 0 || preferred < minimum || maximum < minimum {
            return Err(ProtocolError::Unexpected {
                structure: "block size info",
                field: "minimum",
                value: minimum.into(),
            });
        }
        self.remote.min_block_bytes = minimum;
        self.remote.preferred_block_bytes = preferred;
        self.remote.max_block_bytes = maximum;
        Ok(())
    }

    fn send(&mut self, option: &ClientOption) {
        option.encode(&mut self.output);
    }
}
