//! Fixed newstyle negotiation as a machine that asks.

use bytes::{Buf, BytesMut};

use super::context::{ContextId, MetaContext, SelectedContext};
use super::error::ProtocolError;
use super::limits::{
    MAX_BLOCK_BYTES, MAX_OPTION_BYTES, MAX_OPTIONS, MAX_SKIPPED_OPTION_BYTES, MIN_BLOCK_BYTES,
    PREFERRED_BLOCK_BYTES,
};
use super::negotiated::{Negotiated, transmission_flags};
use super::option::{ClientOption, Info, InfoRequest, MetaQuery, OptionHeader, OptionReply};
use super::types::{
    ClientFlags, ExportInfo, ExportName, HandshakeFlags, HeaderStyle, InfoKind, OptionCode,
    ReplyCode, TransmissionFlags,
};
use super::wire::{Reader, Writer};

/// `NBDMAGIC`.
pub(crate) const SERVER_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// What the server offers in its greeting.
const OFFERED: HandshakeFlags = HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES);
/// The reserved bytes after `NBD_OPT_EXPORT_NAME`.
const EXPORT_NAME_PADDING: usize = 124;

/// Whether a connection goes on in TLS (NBD proto, "TLS support": the modes NOTLS, SELECTIVETLS and
/// FORCEDTLS of a server).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// Never; a client that asks for it is told.
    #[default]
    Off,
    /// When the client asks for it.
    On,
    /// Always: before it nothing is told, looked up or agreed on.
    Require,
}

/// What a server is willing to negotiate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// 64-bit lengths, for clients that ask for them; else the option is not known.
    pub extended_headers: bool,
    /// Whether the connection goes on in TLS.
    pub tls: TlsPolicy,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            extended_headers: true,
            tls: TlsPolicy::Off,
        }
    }
}

/// What an export is looked up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportPurpose {
    /// Transmission begins next.
    Use,
    /// The client only asks; the export is not held open.
    Inspect,
}

/// What the caller must do before the next call of [`Handshake::step`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send the output, then append at least this many bytes to the input.
    NeedBytes(usize),
    /// Find the export, then call [`Handshake::export_found`] or [`Handshake::export_refused`].
    FindExport(ExportName, ExportPurpose),
    /// Gather the names, then call [`Handshake::exports_listed`].
    ListExports,
    /// Send the output, begin TLS, then call [`Handshake::tls_started`] and go on with what comes
    /// inside of it. The input is empty.
    StartTls,
    /// Send the output; requests follow. What is left in the input belongs to the first of them.
    Negotiated(Negotiated),
    /// Send the output and close.
    Close,
}

/// Why an export is refused, as the client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is none of that name.
    Unknown,
    /// It exists, but not for this client now.
    Policy(String),
    /// The server is going down.
    ShuttingDown,
}

#[derive(Debug)]
enum State {
    ClientFlags,
    OptionHeader,
    OptionPayload(OptionHeader),
    /// A payload that is too long to keep is read away before the answer goes out.
    SkipPayload {
        code: OptionCode,
        left: u32,
    },
    AwaitExport {
        code: OptionCode,
        about: About,
    },
    AwaitList,
    AwaitTls,
    /// Both sides agree; the caller learns it with the next step.
    Agreed(Box<Negotiated>),
    /// The connection ends; the caller learns it with the next step.
    Closing,
    /// `Negotiated` or `Close` was returned.
    Over,
}

/// Why an export was asked for.
#[derive(Debug)]
enum About {
    /// INFO, GO and `EXPORT_NAME`.
    Export(InfoRequest),
    /// `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
    Contexts(MetaQuery),
}

/// The server's side of a handshake (NBD proto, "Handshake phase").
///
/// ```text
///  client flags ──▶ option header ──▶ payload ──▶ answer ──▶ (next option)
///                         │              │
///                         └─▶ skip ──────┴─▶ FindExport · ListExports · StartTls ──▶ Negotiated · Close
/// ```
///
/// Whoever sits on the line can say anything before TLS begins. So nothing that was agreed on before
/// counts afterwards but the client flags, which are never sent again, and bytes that follow
/// `NBD_OPT_STARTTLS` without waiting for its answer end the connection (the class of CVE-2021-3716).
#[derive(Debug)]
pub struct Handshake {
    state: State,
    output: BytesMut,
    offer: Offer,
    options_seen: u32,
    no_zeroes: bool,
    in_tls: bool,
    style: HeaderStyle,
    /// The contexts that were set, and the export for which: they count for that name only.
    contexts: Option<(ExportName, Vec<SelectedContext>)>,
}

impl Default for Handshake {
    fn default() -> Self {
        Self::new(Offer::default())
    }
}

impl Handshake {
    /// A handshake whose greeting waits in the output.
    #[must_use]
    pub fn new(offer: Offer) -> Self {
        let mut output = BytesMut::new();
        Writer::new(&mut output)
            .u64(SERVER_MAGIC)
            .u64(super::option::OPTION_MAGIC)
            .u16(OFFERED.0);
        Self {
            state: State::ClientFlags,
            output,
            offer,
            options_seen: 0,
            no_zeroes: false,
            in_tls: false,
            style: HeaderStyle::Simple,
            contexts: None,
        }
    }

    /// Bytes for the client. The caller sends and clears them whenever it waits.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Goes on as far as `input` reaches, and takes what it understood off its front.
    ///
    /// # Errors
    ///
    /// The client broke the frame of the protocol or a bound; nothing can be told, close.
    ///
    /// # Panics
    ///
    /// When a question of the last step was not answered: a bug of the caller.
    pub fn step(&mut self, input: &mut BytesMut) -> Result<Step, ProtocolError> {
        loop {
            match &mut self.state {
                State::ClientFlags => {
                    if input.len() < 4 {
                        return Ok(Step::NeedBytes(4 - input.len()));
                    }
                    self.client_flags(&input.split_to(4))?;
                }
                State::OptionHeader => {
                    if input.len() < OptionHeader::BYTES {
                        return Ok(Step::NeedBytes(OptionHeader::BYTES - input.len()));
                    }
                    self.option_header(&input.split_to(OptionHeader::BYTES))?;
                }
                State::SkipPayload { code, left } => {
                    let here = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(input.len());
                    input.advance(here);
                    *left -= u32::try_from(here).expect("at most `left`");
                    if *left > 0 {
                        return Ok(Step::NeedBytes(1));
                    }
                    let code = *code;
                    if self.is_too_early(code) {
                        self.refuse_before_tls(code);
                    } else {
                        self.refuse(code, ReplyCode::ERR_TOO_BIG, "option payload too long");
                    }
                }
                State::OptionPayload(header) => {
                    let need = usize::try_from(header.len_bytes).unwrap_or(usize::MAX);
                    if input.len() < need {
                        return Ok(Step::NeedBytes(need - input.len()));
                    }
                    let code = header.code;
                    let payload = input.split_to(need);
                    if let Some(step) = self.option(code, &payload, input.len())? {
                        return Ok(step);
                    }
                }
                State::AwaitExport { .. } | State::AwaitList | State::AwaitTls => {
                    panic!("the question of the last step was not answered")
                }
                State::Agreed(_) => {
                    if let State::Agreed(negotiated) =
                        std::mem::replace(&mut self.state, State::Over)
                    {
                        return Ok(Step::Negotiated(*negotiated));
                    }
                }
                State::Closing => {
                    self.state = State::Over;
                    return Ok(Step::Close);
                }
                State::Over => panic!("the handshake is over"),
            }
        }
    }

    fn client_flags(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        let flags = ClientFlags(Reader::new("client flags", bytes).u32()?);
        let known = ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES);
        if !flags.without(known).is_empty() {
            return Err(ProtocolError::ClientFlags { flags: flags.0 });
        }
        self.no_zeroes = flags.has(ClientFlags::NO_ZEROES);
        self.state = State::OptionHeader;
        Ok(())
    }

    fn option_header(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        let header = OptionHeader::parse(bytes)?;
        self.options_seen += 1;
        if self.options_seen > MAX_OPTIONS {
            return Err(ProtocolError::TooManyOptions { max: MAX_OPTIONS });
        }
        if header.code == OptionCode::SET_META_CONTEXT {
            // Also when it will be refused: the last query counts, not the last that was accepted.
            self.contexts = None;
        }
        if header.code == OptionCode::EXPORT_NAME && self.is_too_early(header.code) {
            // There is no error to tell, whatever it names.
            self.state = State::Closing;
            return Ok(());
        }
        // EXPORT_NAME has no way to tell an error, so that its excess ends the connection, too.
        let max = if header.code == OptionCode::EXPORT_NAME {
            MAX_OPTION_BYTES
        } else {
            MAX_SKIPPED_OPTION_BYTES
        };
        if header.len_bytes > max {
            return Err(ProtocolError::TooBig {
                structure: "option payload",
                value: header.len_bytes.into(),
                max: max.into(),
            });
        }
        self.state = if header.len_bytes > MAX_OPTION_BYTES {
            State::SkipPayload {
                code: header.code,
                left: header.len_bytes,
            }
        } else {
            State::OptionPayload(header)
        };
        Ok(())
    }

    /// Answers an option, behind which `ahead` more bytes are there already.
    fn option(
        &mut self,
        code: OptionCode,
        payload: &[u8],
        ahead: usize,
    ) -> Result<Option<Step>, ProtocolError> {
        if self.is_too_early(code) {
            self.refuse_before_tls(code);
            return Ok(None);
        }
        if code == OptionCode::EXTENDED_HEADERS && !self.offer.extended_headers {
            self.refuse_unknown(code);
            return Ok(None);
        }
        let option = match ClientOption::parse(code, payload) {
            Ok(option) => option,
            Err(error) if code == OptionCode::EXPORT_NAME => return Err(error),
            Err(error) => {
                self.refuse(code, ReplyCode::ERR_INVALID, &error.to_string());
                return Ok(None);
            }
        };
        self.state = State::OptionHeader;
        Ok(match option {
            // The client must not ask this way any more, and there is no error to tell.
            ClientOption::ExportName(_) if self.style == HeaderStyle::Extended => {
                self.state = State::Closing;
                None
            }
            ClientOption::ExportName(name) => {
                let kinds = Vec::new();
                let request = InfoRequest { name, kinds };
                Some(self.find(code, About::Export(request)))
            }
            ClientOption::Go(request) | ClientOption::Info(request) => {
                Some(self.find(code, About::Export(request)))
            }
            ClientOption::List => {
                self.state = State::AwaitList;
                Some(Step::ListExports)
            }
            ClientOption::Abort => {
                self.reply(code, &OptionReply::Ack);
                self.state = State::Closing;
                None
            }
            ClientOption::StartTls => self.start_tls(code, ahead)?,
            ClientOption::StructuredReply => {
                self.structured_replies(code);
                None
            }
            ClientOption::ExtendedHeaders => {
                self.style = HeaderStyle::Extended;
                self.reply(code, &OptionReply::Ack);
                None
            }
            ClientOption::ListMetaContext(query) | ClientOption::SetMetaContext(query) => {
                if self.style.has_chunks() {
                    Some(self.find(code, About::Contexts(query)))
                } else {
                    let text = "structured replies come first";
                    self.refuse(code, ReplyCode::ERR_INVALID, text);
                    None
                }
            }
            ClientOption::Unsupported(code) => {
                self.refuse_unknown(code);
                None
            }
        })
    }

    /// Whether an option must wait for TLS (NBD proto, "FORCEDTLS mode").
    fn is_too_early(&self, code: OptionCode) -> bool {
        let allowed = code == OptionCode::STARTTLS || code == OptionCode::ABORT;
        self.offer.tls == TlsPolicy::Require && !self.in_tls && !allowed
    }

    fn refuse_before_tls(&mut self, code: OptionCode) {
        let text = "this server serves in tls only";
        self.refuse(code, ReplyCode::ERR_TLS_REQD, text);
    }

    fn start_tls(&mut self, code: OptionCode, ahead: usize) -> Result<Option<Step>, ProtocolError> {
        if self.in_tls {
            self.refuse(code, ReplyCode::ERR_INVALID, "tls has begun already");
            return Ok(None);
        }
        if self.offer.tls == TlsPolicy::Off {
            self.refuse(code, ReplyCode::ERR_POLICY, "tls is not configured");
            return Ok(None);
        }
        if ahead > 0 {
            return Err(ProtocolError::PlaintextAfterStartTls { count: ahead });
        }
        self.reply(code, &OptionReply::Ack);
        self.style = HeaderStyle::Simple;
        self.contexts = None;
        self.state = State::AwaitTls;
        Ok(Some(Step::StartTls))
    }

    /// Answers [`Step::StartTls`]: what comes from now on came through TLS.
    ///
    /// # Panics
    ///
    /// When TLS was not asked for, or the output has not been sent before it: a bug of the caller.
    pub fn tls_started(&mut self) {
        assert!(
            matches!(self.state, State::AwaitTls),
            "tls was not asked for"
        );
        assert!(
            self.output.is_empty(),
            "what was said in plaintext is sent in plaintext"
        );
        self.in_tls = true;
        self.state = State::OptionHeader;
    }

    fn structured_replies(&mut self, code: OptionCode) {
        if self.style == HeaderStyle::Extended {
            let text = "extended headers are agreed already";
            self.refuse(code, ReplyCode::ERR_EXT_HEADER_REQD, text);
        } else {
            self.style = HeaderStyle::Structured;
            self.reply(code, &OptionReply::Ack);
        }
    }

    fn refuse_unknown(&mut self, code: OptionCode) {
        self.refuse(code, ReplyCode::ERR_UNSUP, "option not supported");
    }

    fn find(&mut self, code: OptionCode, about: About) -> Step {
        let purpose = match code {
            OptionCode::GO | OptionCode::EXPORT_NAME => ExportPurpose::Use,
            _ => ExportPurpose::Inspect,
        };
        let name = match &about {
            About::Export(request) => request.name.clone(),
            About::Contexts(query) => query.name.clone(),
        };
        self.state = State::AwaitExport { code, about };
        Step::FindExport(name, purpose)
    }

    /// Answers a query about the contexts of an export.
    fn meta_contexts(&mut self, code: OptionCode, query: MetaQuery, contexts: Vec<MetaContext>) {
        let listing = code == OptionCode::LIST_META_CONTEXT;
        let all = listing && query.queries.is_empty();
        let mut selected = Vec::new();
        for (id, context) in (0..).map(ContextId).zip(contexts) {
            let mut queries = query.queries.iter();
            if all || queries.any(|query| context.is_meant_by(query, listing)) {
                selected.push(SelectedContext { id, context });
            }
        }
        for SelectedContext { id, context } in &selected {
            // In a listing the number is reserved (NBD proto, `NBD_OPT_LIST_META_CONTEXT`).
            let id = if listing { ContextId(0) } else { *id };
            let name = context.name();
            self.reply(code, &OptionReply::MetaContext { id, name });
        }
        self.reply(code, &OptionReply::Ack);
        if !listing {
            self.contexts = Some((query.name, selected));
        }
    }

    /// The contexts that were set for this export.
    fn contexts_for(&self, name: &ExportName) -> Vec<SelectedContext> {
        match &self.contexts {
            Some((set_for, contexts)) if set_for == name => contexts.clone(),
            _ => Vec::new(),
        }
    }

    /// Answers [`Step::FindExport`]: it exists.
    ///
    /// # Panics
    ///
    /// When no export was asked for: a bug of the caller.
    pub fn export_found(&mut self, info: ExportInfo) {
        let State::AwaitExport { code, about } =
            std::mem::replace(&mut self.state, State::OptionHeader)
        else {
            panic!("no export was asked for")
        };
        let request = match about {
            About::Export(request) => request,
            About::Contexts(query) => return self.meta_contexts(code, query, info.contexts),
        };
        let contexts = self.contexts_for(&request.name);
        let flags = transmission_flags(&info, self.style, !contexts.is_empty());
        if code == OptionCode::EXPORT_NAME {
            let padding = if self.no_zeroes {
                0
            } else {
                EXPORT_NAME_PADDING
            };
            Writer::new(&mut self.output)
                .u64(info.size_bytes)
                .u16(flags.0)
                .zeroes(padding);
        } else {
            self.export_info(code, &request, &info, flags);
        }
        if code == OptionCode::INFO {
            return;
        }
        self.state = State::Agreed(Box::new(Negotiated {
            name: request.name,
            info,
            flags,
            style: self.style,
            contexts,
        }));
    }

    fn export_info(
        &mut self,
        code: OptionCode,
        request: &InfoRequest,
        info: &ExportInfo,
        flags: TransmissionFlags,
    ) {
        let wants = |kind| request.kinds.contains(&kind);
        if wants(InfoKind::BLOCK_SIZE) {
            let sizes = Info::BlockSize {
                minimum: MIN_BLOCK_BYTES,
                preferred: PREFERRED_BLOCK_BYTES,
                maximum: MAX_BLOCK_BYTES,
            };
            self.reply(code, &OptionReply::Info(sizes));
        }
        let export = Info::Export {
            size_bytes: info.size_bytes,
            flags,
        };
        self.reply(code, &OptionReply::Info(export));
        // The empty name means an export whose own name is another one.
        if wants(InfoKind::NAME) && !request.name.as_str().is_empty() {
            let name = Info::Name(request.name.as_str().to_owned());
            self.reply(code, &OptionReply::Info(name));
        }
        if wants(InfoKind::DESCRIPTION) && !info.description.is_empty() {
            let text = super::option::clip(&info.description).to_owned();
            self.reply(code, &OptionReply::Info(Info::Description(text)));
        }
        self.reply(code, &OptionReply::Ack);
    }

    /// Answers [`Step::FindExport`]: it cannot be had. The connection ends when the client asked in a
    /// way that has no error (NBD proto, `NBD_OPT_EXPORT_NAME`).
    ///
    /// # Panics
    ///
    /// When no export was asked for: a bug of the caller.
    pub fn export_refused(&mut self, why: &Refusal) {
        let State::AwaitExport { code, about } =
            std::mem::replace(&mut self.state, State::OptionHeader)
        else {
            panic!("no export was asked for")
        };
        let (About::Export(InfoRequest { name, .. }) | About::Contexts(MetaQuery { name, .. })) =
            about;
        if code == OptionCode::EXPORT_NAME {
            self.state = State::Closing;
            return;
        }
        match why {
            Refusal::Unknown => {
                let text = format!("unknown export name={:?}", name.as_str());
                self.refuse(code, ReplyCode::ERR_UNKNOWN, &text);
            }
            Refusal::Policy(text) => self.refuse(code, ReplyCode::ERR_POLICY, text),
            Refusal::ShuttingDown => {
                self.refuse(code, ReplyCode::ERR_SHUTDOWN, "the server is shutting down");
            }
        }
    }

    /// Answers [`Step::ListExports`]. Names that are no export names are left out.
    ///
    /// # Panics
    ///
    /// When no listing was asked for: a bug of the caller.
    pub fn exports_listed(&mut self, names: Vec<String>) {
        assert!(
            matches!(self.state, State::AwaitList),
            "no listing was asked for"
        );
        for name in names {
            if ExportName::new(name.as_str()).is_ok() {
                let details = String::new();
                self.reply(OptionCode::LIST, &OptionReply::Server { name, details });
            }
        }
        self.reply(OptionCode::LIST, &OptionReply::Ack);
        self.state = State::OptionHeader;
    }

    fn refuse(&mut self, option: OptionCode, code: ReplyCode, text: &str) {
        self.reply(
            option,
            &OptionReply::Error {
                code,
                text: text.to_owned(),
            },
        );
        self.state = State::OptionHeader;
    }

    fn reply(&mut self, option: OptionCode, reply: &OptionReply) {
        reply.encode(option, &mut self.output);
    }
}
