//! Drives the handshake: moves bytes between the socket and the core.

use bytes::BytesMut;
use nbd_server::proto::client::{ClientGoal, ClientHandshake, ClientStep, Remote};
use nbd_server::proto::{BASE_ALLOCATION, ExportName, ProtocolError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Why a handshake did not end well.
pub(super) enum HandshakeError {
    Io(std::io::Error),
    Protocol(ProtocolError),
}

impl From<std::io::Error> for HandshakeError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Negotiates the use of an export. Bytes that the server sent after it stay in `input`.
pub(super) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    name: ExportName,
    block_status: bool,
    input: &mut BytesMut,
) -> Result<Remote, HandshakeError> {
    let mut core = ClientHandshake::new(ClientGoal::Use {
        name,
        contexts: if block_status {
            vec![BASE_ALLOCATION.to_owned()]
        } else {
            Vec::new()
        },
        // No request of this client is longer than 32 bits tell.
        extended_headers: false,
    });
    loop {
        let step = core.step(input);
        // The output goes out in any case: after a refusal it holds the farewell.
        let sent = stream.write_all_buf(core.output()).await;
        match step.map_err(HandshakeError::Protocol)? {
            ClientStep::Ready(remote) => {
                sent?;
                return Ok(remote);
            }
            ClientStep::NeedBytes(_) => {
                sent?;
                if stream.read_buf(input).await? == 0 {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                }
            }
            ClientStep::Listed(_) => unreachable!("no listing was asked for"),
        }
    }
}
