//! Drives the handshake: moves bytes, begins TLS, and carries questions to the program.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::gate::{Gate, Place};
use crate::proto::{
    ExportName, ExportPurpose, Handshake, Negotiated, Offer, ProtocolError, Refusal, Step,
};
use crate::statistics::{ExportRefusal, HandshakeEnd};
use crate::tls::{Secured, TlsReader, TlsWriter};
use crate::{Export, Exports, OpenError, Peer, Tls};

/// Why there was no handshake.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the client broke the protocol")]
    Protocol(#[from] ProtocolError),
    #[error("no tls with this client")]
    Tls(#[source] io::Error),
}

impl HandshakeError {
    /// Tells why. A client without TLS is one that somebody must mend: a certificate has expired, an
    /// authority is the wrong one. The others are port scanners, mostly.
    pub(crate) fn log(&self) {
        match self {
            Self::Tls(why) => tracing::info!(error = %why, "no tls with this client"),
            Self::Io(_) | Self::Protocol(_) => {
                tracing::debug!(error = self as &dyn std::error::Error, "no handshake");
            }
        }
    }

    /// How the statistics call it.
    pub(crate) fn end(&self) -> HandshakeEnd {
        match self {
            Self::Io(_) => HandshakeEnd::Broken,
            Self::Protocol(_) => HandshakeEnd::Protocol,
            Self::Tls(_) => HandshakeEnd::Tls,
        }
    }
}

/// A device that was opened for this session, and its place among the sessions of the export.
#[derive(Debug)]
pub(crate) struct Opened<E> {
    pub(crate) export: E,
    pub(crate) place: Place,
}

/// The connection after its handshake: two types, so that the plain one pays nothing for the other.
pub(crate) enum Stream<R, W> {
    Plain(R, W),
    Tls(TlsReader<R, W>, TlsWriter<R, W>),
}

/// Negotiates until an export is agreed on; `None` when the client left.
///
/// The device goes to `opened`, so that it can be closed when the handshake is given up on later.
///
/// # Cancel safety
///
/// The connection is gone afterwards; `opened` holds what must be closed.
pub(crate) async fn negotiate<R, W, X>(
    (mut reader, mut writer): (R, W),
    input: &mut BytesMut,
    (exports, mut peer, gate, tls): (&X, Peer, &Gate, &Tls),
    opened: &mut Option<Opened<X::Export>>,
) -> Result<Option<(Negotiated, Stream<R, W>)>, HandshakeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    X: Exports,
{
    let mut handshake = Handshake::new(Offer {
        extended_headers: gate.limits().extended_headers,
        tls: tls.policy(),
    });
    let halves = (&mut reader, &mut writer);
    match converse(
        &mut handshake,
        halves,
        input,
        (exports, &peer, gate),
        opened,
    )
    .await?
    {
        Outcome::Left => return Ok(None),
        Outcome::Agreed(negotiated) => {
            return Ok(Some((negotiated, Stream::Plain(reader, writer))));
        }
        Outcome::StartTls => {}
    }
    let server = tls.server().expect("tls is offered where there is some");
    let secured = server.accept(reader, writer).await;
    let Secured {
        mut reader,
        mut writer,
        client_name,
    } = secured.map_err(HandshakeError::Tls)?;
    if let Some(name) = &client_name {
        tracing::Span::current().record("client", name);
    }
    peer.name = client_name;
    handshake.tls_started();
    let halves = (&mut reader, &mut writer);
    let outcome = converse(
        &mut handshake,
        halves,
        input,
        (exports, &peer, gate),
        opened,
    )
    .await?;
    match outcome {
        Outcome::Agreed(negotiated) => Ok(Some((negotiated, Stream::Tls(reader, writer)))),
        Outcome::Left => Ok(None),
        Outcome::StartTls => unreachable!("there is no tls in tls"),
    }
}

/// Where a conversation leads.
enum Outcome {
    Agreed(Negotiated),
    StartTls,
    Left,
}

/// Talks to the client over one kind of stream.
async fn converse<R, W, X>(
    handshake: &mut Handshake,
    (reader, writer): (&mut R, &mut W),
    input: &mut BytesMut,
    (exports, peer, gate): (&X, &Peer, &Gate),
    opened: &mut Option<Opened<X::Export>>,
) -> Result<Outcome, HandshakeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    X: Exports,
{
    loop {
        match handshake.step(input) {
            Ok(Step::NeedBytes(_)) => {
                send(writer, handshake.output()).await?;
                if reader.read_buf(input).await? == 0 {
                    return Ok(Outcome::Left);
                }
            }
            Ok(Step::FindExport(name, purpose)) => {
                match open(exports, peer, gate, &name, purpose, opened).await {
                    Ok(info) => handshake.export_found(info),
                    Err(refusal) => handshake.export_refused(&refusal),
                }
                send(writer, handshake.output()).await?;
            }
            Ok(Step::ListExports) => {
                handshake.exports_listed(exports.list(peer).await);
                // A listing is long: those of many options are never kept at once.
                send(writer, handshake.output()).await?;
            }
            Ok(Step::StartTls) => {
                send(writer, handshake.output()).await?;
                return Ok(Outcome::StartTls);
            }
            Ok(Step::Negotiated(negotiated)) => {
                send(writer, handshake.output()).await?;
                return Ok(Outcome::Agreed(negotiated));
            }
            Ok(Step::Close) => {
                send(writer, handshake.output()).await?;
                // In TLS the end is said, too: else it could be anybody's. A client that does not wait
                // for it has left all the same.
                let _ = writer.shutdown().await;
                return Ok(Outcome::Left);
            }
            Err(error) => {
                // Answers to earlier options are still owed.
                send(writer, handshake.output()).await?;
                return Err(error.into());
            }
        }
    }
}

async fn send<W: AsyncWrite + Unpin>(writer: &mut W, output: &mut BytesMut) -> io::Result<()> {
    if !output.is_empty() {
        writer.write_all(output).await?;
        writer.flush().await?;
        output.clear();
    }
    Ok(())
}

async fn open<X: Exports>(
    exports: &X,
    peer: &Peer,
    gate: &Gate,
    name: &ExportName,
    purpose: ExportPurpose,
    opened: &mut Option<Opened<X::Export>>,
) -> Result<crate::ExportInfo, Refusal> {
    let refused = |why| gate.counters().export_refused(why);
    let place = gate.enter(name).map_err(|full| {
        refused(full);
        let text = match full {
            ExportRefusal::ServerFull => "too many connections to this server",
            _ => "too many connections to this export",
        };
        Refusal::Policy(text.to_owned())
    })?;
    let export = exports
        .open(name, peer)
        .await
        .map_err(|error| match error {
            OpenError::Unknown => {
                refused(ExportRefusal::Unknown);
                Refusal::Unknown
            }
            OpenError::Policy(text) => {
                refused(ExportRefusal::Policy);
                Refusal::Policy(text)
            }
            OpenError::ShuttingDown => {
                refused(ExportRefusal::ShuttingDown);
                Refusal::ShuttingDown
            }
        })?;
    let held = opened.insert(Opened { export, place });
    let info = held.export.info();
    if purpose == ExportPurpose::Inspect
        && let Some(held) = opened.take()
    {
        held.export.close().await;
    }
    Ok(info)
}
