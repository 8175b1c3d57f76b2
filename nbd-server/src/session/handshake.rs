//! Drives the handshake: moves bytes and carries questions to the program.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::gate::{Gate, Place};
use crate::proto::{
    ExportName, ExportPurpose, Handshake, Negotiated, Offer, ProtocolError, Refusal, Step,
};
use crate::statistics::{ExportRefusal, HandshakeEnd};
use crate::{Export, Exports, OpenError, Peer};

/// Why there was no handshake.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the client broke the protocol")]
    Protocol(#[from] ProtocolError),
}

impl HandshakeError {
    /// How the statistics call it.
    pub(crate) fn end(&self) -> HandshakeEnd {
        match self {
            Self::Io(_) => HandshakeEnd::Broken,
            Self::Protocol(_) => HandshakeEnd::Protocol,
        }
    }
}

/// A device that was opened for this session, and its place among the sessions of the export.
#[derive(Debug)]
pub(crate) struct Opened<E> {
    pub(crate) export: E,
    pub(crate) place: Place,
}

/// Negotiates until an export is agreed on; `None` when the client left.
///
/// The device goes to `opened`, so that it can be closed when the handshake is given up on later.
///
/// # Cancel safety
///
/// The connection is useless afterwards; `opened` holds what must be closed.
pub(crate) async fn negotiate<R, W, X>(
    socket: (&mut R, &mut W),
    input: &mut BytesMut,
    (exports, peer, gate): (&X, &Peer, &Gate),
    opened: &mut Option<Opened<X::Export>>,
) -> Result<Option<Negotiated>, HandshakeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    X: Exports,
{
    let (reader, writer) = socket;
    let mut handshake = Handshake::new(Offer {
        extended_headers: gate.limits().extended_headers,
        ..Offer::default()
    });
    loop {
        match handshake.step(input) {
            Ok(Step::NeedBytes(_)) => {
                send(writer, handshake.output()).await?;
                if reader.read_buf(input).await? == 0 {
                    return Ok(None);
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
            Ok(Step::StartTls) => unreachable!("it was not offered"),
            Ok(Step::Negotiated(negotiated)) => {
                send(writer, handshake.output()).await?;
                return Ok(Some(negotiated));
            }
            Ok(Step::Close) => {
                send(writer, handshake.output()).await?;
                return Ok(None);
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
