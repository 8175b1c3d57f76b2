//! What the peers of the catalogue are made of.

use std::cell::RefCell;
use std::time::Duration;

use nbd_server::Statistics;
use nbd_server::proto::{CommandCode, CommandFlags, Cookie, HeaderStyle, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

use crate::peer::Server;

/// Client flags: fixed newstyle, no zeroes.
pub(crate) const FLAGS: &[u8] = b"\0\0\0\x03";
/// `NBD_OPT_EXPORT_NAME` for the device.
pub(crate) const CHOOSE: &[u8] = b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk";
/// Where peers write: away from the well-behaved client.
pub(crate) const ELSEWHERE: u64 = 64 << 20;

/// Connections to a server, whose sessions are waited for in the end.
pub(crate) struct Peers<'a> {
    server: &'a Server,
    sessions: RefCell<Vec<JoinHandle<()>>>,
}

impl<'a> Peers<'a> {
    pub(crate) fn new(server: &'a Server) -> Self {
        Self {
            server,
            sessions: RefCell::default(),
        }
    }

    /// A connection that has said nothing.
    pub(crate) fn connect(&self) -> DuplexStream {
        let (socket, session) = self.server.pipe();
        self.sessions.borrow_mut().push(session);
        socket
    }

    /// A connection past its handshake, with simple replies.
    pub(crate) async fn enter(&self) -> DuplexStream {
        let mut socket = self.connect();
        socket.write_all(FLAGS).await.unwrap();
        socket.write_all(CHOOSE).await.unwrap();
        socket.read_exact(&mut [0; 18 + 10]).await.unwrap();
        socket
    }

    pub(crate) fn statistics(&self) -> Statistics {
        self.server.gate.statistics()
    }

    pub(crate) async fn all_sessions_end(&self) {
        let sessions = std::mem::take(&mut *self.sessions.borrow_mut());
        for session in sessions {
            session.await.unwrap();
        }
    }
}

/// The header of a request.
pub(crate) fn request(command: CommandCode, offset: u64, len_bytes: u64) -> Vec<u8> {
    let request = Request {
        flags: CommandFlags::EMPTY,
        command,
        cookie: Cookie(offset),
        offset,
        len_bytes,
    };
    let mut header = bytes::BytesMut::new();
    request.encode(HeaderStyle::Simple, &mut header).unwrap();
    header.to_vec()
}

/// An option with a length that need not be that of its payload.
pub(crate) fn option(code: u32, len: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(code.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// GO or INFO about an export of this name, without wishes.
pub(crate) fn about(code: u32, name: &[u8]) -> Vec<u8> {
    let mut payload = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    payload.extend(name);
    payload.extend([0, 0]);
    option(code, u32::try_from(payload.len()).unwrap(), &payload)
}

/// Reads until the server closes.
pub(crate) async fn read_all(socket: &mut DuplexStream) -> Vec<u8> {
    let mut all = Vec::new();
    // A reset is an end, too.
    let _ = socket.read_to_end(&mut all).await;
    all
}

/// Sends a byte, waits, and so on, until the server closes or everything is sent.
pub(crate) async fn drip(socket: &mut DuplexStream, bytes: &[u8], pause: Duration) {
    for byte in bytes {
        if socket.write_all(&[*byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Bytes without sense, other ones for each seed.
pub(crate) fn garbage(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
