//! The two tasks of a connection: one sends requests, one receives replies.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use nbd_server::proto::client::{Replies, ReplyEvent};
use nbd_server::proto::{Cookie, ErrorCode, Extent, HeaderStyle};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::NbdError;
use super::pending::{Expect, Pending, Refusal, Waiting};

/// A request for the wire; the payload is not copied.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) header: Bytes,
    pub(super) payload: Bytes,
}

/// Sends until the queue ends, then closes the sending half.
pub(super) async fn send_requests(
    mut socket: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Outgoing>,
    pending: Arc<Pending>,
) {
    while let Some(request) = queue.recv().await {
        let mut bytes = request.header.chain(request.payload);
        if let Err(error) = socket.write_all_buf(&mut bytes).await {
            pending.close(&NbdError::closed(format_args!("cannot send: {error}")));
            return;
        }
    }
    // The peer closes after NBD_CMD_DISC anyway.
    let _ = socket.shutdown().await;
}

/// Receives until the connection ends; then every request that still waits learns why.
pub(super) async fn receive_replies(
    style: HeaderStyle,
    socket: impl AsyncRead + Unpin,
    input: BytesMut,
    pending: Arc<Pending>,
) {
    let mut receiver = Receiver {
        replies: Replies::new(style),
        socket,
        input,
        pending: Arc::clone(&pending),
    };
    let why = loop {
        if let Err(why) = receiver.next().await {
            break why;
        }
    };
    pending.close(&NbdError::closed(why));
}

struct Receiver<R> {
    replies: Replies,
    socket: R,
    input: BytesMut,
    pending: Arc<Pending>,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    /// Handles one part of a reply; the error is the end of the connection.
    async fn next(&mut self) -> Result<(), String> {
        match self
            .replies
            .next(&mut self.input)
            .map_err(|error| error.to_string())?
        {
            ReplyEvent::NeedBytes(_) => self.read_more().await,
            ReplyEvent::Simple { cookie, error } => self.simple(cookie, error).await,
            ReplyEvent::Data {
                cookie,
                offset,
                len_bytes,
                done,
            } => {
                let mut waiting = self.waiting(cookie)?;
                self.data(&mut waiting, offset, len_bytes).await?;
                self.go_on(cookie, waiting, done)
            }
            ReplyEvent::Hole {
                cookie,
                offset,
                len_bytes,
                done,
            } => {
                let mut waiting = self.waiting(cookie)?;
                // The buffer began as zeroes.
                place(&mut waiting, offset, len_bytes)?;
                self.go_on(cookie, waiting, done)
            }
            ReplyEvent::Status {
                cookie,
                context,
                descriptors,
                done,
            } => {
                let mut waiting = self.waiting(cookie)?;
                match &mut waiting.expect {
                    Expect::Status {
                        context: wanted,
                        extents,
                    } if *wanted == context => {
                        *extents = descriptors
                            .into_iter()
                            .map(Extent::from_descriptor)
                            .collect();
                    }
                    _ => return Err("a block status was sent that nobody asked for".to_owned()),
                }
                self.go_on(cookie, waiting, done)
            }
            ReplyEvent::Error {
                cookie,
                code,
                text,
                done,
            } => {
                let mut waiting = self.waiting(cookie)?;
                waiting.refusal.get_or_insert(Refusal { code, text });
                self.go_on(cookie, waiting, done)
            }
            ReplyEvent::End { cookie } => {
                let waiting = self.waiting(cookie)?;
                self.go_on(cookie, waiting, true)
            }
        }
    }

    async fn simple(&mut self, cookie: Cookie, error: ErrorCode) -> Result<(), String> {
        let mut waiting = self.waiting(cookie)?;
        if error != ErrorCode::NONE {
            waiting.refusal = Some(Refusal {
                code: error,
                text: String::new(),
            });
        } else if let Expect::Data { offset, buffer, .. } = &waiting.expect {
            let (offset, len) = (*offset, buffer.len());
            let len = u32::try_from(len).map_err(|_| format!("read too long len={len}"))?;
            self.data(&mut waiting, offset, len).await?;
        }
        self.go_on(cookie, waiting, true)
    }

    fn waiting(&self, cookie: Cookie) -> Result<Waiting, String> {
        self.pending
            .take(cookie.0)
            .ok_or_else(|| format!("a reply to no request cookie={:#x}", cookie.0))
    }

    fn go_on(&self, cookie: Cookie, waiting: Waiting, done: bool) -> Result<(), String> {
        if done {
            waiting.finish()
        } else {
            self.pending.put_back(cookie.0, waiting);
            Ok(())
        }
    }

    /// Reads the bytes that follow straight to where they belong.
    async fn data(
        &mut self,
        waiting: &mut Waiting,
        offset: u64,
        len_bytes: u32,
    ) -> Result<(), String> {
        let into = place(waiting, offset, len_bytes)?;
        let ready = self.input.len().min(into.len());
        let (head, rest) = into.split_at_mut(ready);
        self.input.copy_to_slice(head);
        self.socket
            .read_exact(rest)
            .await
            .map(|_| ())
            .map_err(|error| format!("cannot receive: {error}"))
    }

    async fn read_more(&mut self) -> Result<(), String> {
        match self.socket.read_buf(&mut self.input).await {
            Ok(0) => Err("the server closed the connection".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("cannot receive: {error}")),
        }
    }
}

/// The part of a read buffer that a chunk is for.
fn place(waiting: &mut Waiting, offset: u64, len_bytes: u32) -> Result<&mut [u8], String> {
    let wrong = || format!("a read reply outside the request offset={offset} len={len_bytes}");
    let Expect::Data {
        offset: asked,
        buffer,
        received_bytes,
    } = &mut waiting.expect
    else {
        return Err(wrong());
    };
    let start = offset
        .checked_sub(*asked)
        .and_then(|start| usize::try_from(start).ok())
        .ok_or_else(wrong)?;
    let len = usize::try_from(len_bytes).map_err(|_| wrong())?;
    let end = start.checked_add(len).ok_or_else(wrong)?;
    *received_bytes += len;
    buffer.get_mut(start..end).ok_or_else(wrong)
}
