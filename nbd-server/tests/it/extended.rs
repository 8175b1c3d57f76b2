//! Sessions with extended headers, and with several metadata contexts.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::BytesMut;
use nbd_server::exports::{DiscardExport, SingleExport};
use nbd_server::proto::client::ReplyEvent;
use nbd_server::proto::{
    CommandCode, CommandFlags, ContextId, Cookie, ErrorCode, HeaderStyle, Request,
};
use nbd_server::{Gate, Peer, ServerLimits, Tls, serve_connection};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use crate::peer::{Answer, Client, NOWHERE, SIZE, Server, pattern, settle};

const NONE: CommandFlags = CommandFlags::EMPTY;
const ALL: [&str; 3] = [
    "base:allocation",
    "qemu:allocation-depth",
    "qemu:dirty-bitmap:since",
];

/// The runs of one context: length and state.
type Runs = Vec<(u64, u64)>;

/// The chunks of a block status reply, in their order.
async fn statuses(client: &mut Client) -> Result<Vec<(ContextId, Runs)>, ErrorCode> {
    let mut chunks = Vec::new();
    loop {
        match client.event().await.expect("an answer") {
            ReplyEvent::Status {
                context,
                descriptors,
                done,
                ..
            } => {
                let runs = descriptors.iter().map(|d| (d.len_bytes, d.status));
                chunks.push((context, runs.collect()));
                if done {
                    return Ok(chunks);
                }
            }
            ReplyEvent::Error {
                code, done: true, ..
            } => return Err(code),
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_command_works_with_extended_headers() {
    let server = Server::new();
    let mut client = server.connect_extended(&[ALL[0]]).await;
    let data = pattern(5 << 20);
    assert_eq!(client.write(100, &data).await, Answer::Done);
    assert!(client.read(100, 5 << 20).await.unwrap() == data);
    let done = Answer::Done;
    assert_eq!(client.ask(CommandCode::TRIM, 0, 1 << 20).await, done);
    let whole_tail = SIZE - (2 << 20);
    assert_eq!(
        client
            .ask(CommandCode::WRITE_ZEROES, 2 << 20, whole_tail)
            .await,
        done
    );
    assert_eq!(client.ask(CommandCode::CACHE, 0, SIZE).await, done);
    assert_eq!(client.ask(CommandCode::FLUSH, 0, 0).await, done);
    assert_eq!(server.script().flushes.load(SeqCst), 1);
    assert_eq!(
        client.ask(CommandCode::BLOCK_STATUS, 0, SIZE).await,
        Answer::Status(vec![(1 << 20, 3), (1 << 20, 0), (whole_tail, 3)])
    );
    // Errors, and what has no data, come in chunks as well.
    let beyond = client.ask(CommandCode::WRITE_ZEROES, 1, SIZE).await;
    assert_eq!(beyond, Answer::Failed(ErrorCode::NOSPC));
    let endless = client.ask(CommandCode::TRIM, 1, u64::MAX).await;
    assert_eq!(endless, Answer::Failed(ErrorCode::INVAL));
    assert_eq!(client.ask(CommandCode::READ, 0, 0).await, done);
    client
        .send(CommandCode::READ, CommandFlags::DF, 0, 8 << 20)
        .await;
    let event = client.event().await;
    assert!(
        matches!(event, Some(ReplyEvent::Data { len_bytes, done: false, .. }) if len_bytes == 8 << 20),
        "{event:?}"
    );
    client.data(8 << 20).await;
    assert_eq!(client.answer().await.1, done);
    server.script().fail_at.store(3 << 20, SeqCst);
    assert_eq!(client.read(0, 8 << 20).await, Err(ErrorCode::NOSPC));
    server.script().fail_at.store(NOWHERE, SeqCst);
    client.assert_good().await;
    let cookie = client.send(CommandCode::FLUSH, NONE, 0, 0).await;
    client.send(CommandCode::DISC, NONE, 0, 0).await;
    assert_eq!(client.answer().await, (cookie, done));
    client.assert_closed().await;
}

#[tokio::test(start_paused = true)]
async fn each_context_has_its_chunk_and_some_can_be_picked() {
    for extended in [false, true] {
        let server = Server::new();
        let mut client = if extended {
            server.connect_extended(&ALL).await
        } else {
            let (socket, session) = server.pipe();
            let mut client = Client::over(socket, session);
            client.handshake_with("disk", &ALL, false).await.unwrap();
            client
        };
        assert_eq!(client.write(0, &[1; 65536]).await, Answer::Done);
        let [allocation, depth, changes] = [0, 1, 2].map(ContextId);
        let tail = SIZE - 65536;
        let told = vec![
            (allocation, vec![(65536, 0), (tail, 3)]),
            (depth, vec![(65536, 1), (tail, 0)]),
            (changes, vec![(65536, 1), (tail, 0)]),
        ];
        client.send(CommandCode::BLOCK_STATUS, NONE, 0, SIZE).await;
        assert_eq!(statuses(&mut client).await, Ok(told.clone()));
        let one = CommandFlags::REQ_ONE;
        client.send(CommandCode::BLOCK_STATUS, one, 65535, 2).await;
        let first = |id, status| (id, vec![(1, status)]);
        let expected = [first(allocation, 0), first(depth, 1), first(changes, 1)];
        assert_eq!(statuses(&mut client).await, Ok(expected.to_vec()));

        let pick = |ids: &[u32]| {
            let mut payload = SIZE.to_be_bytes().to_vec();
            payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
            payload
        };
        for (ids, expected) in [
            (&[1_u32][..], Ok(vec![told[1].clone()])),
            (&[2, 0], Ok(vec![told[0].clone(), told[2].clone()])),
            (&[3], Err(ErrorCode::INVAL)),
            (&[0, 0], Err(ErrorCode::INVAL)),
            (&[0, 1, 2, 0], Err(ErrorCode::INVAL)),
            (&[], Err(ErrorCode::INVAL)),
        ] {
            if !extended {
                continue;
            }
            let payload = pick(ids);
            let len_bytes = u64::try_from(payload.len()).unwrap();
            let flags = CommandFlags::PAYLOAD_LEN;
            let command = CommandCode::BLOCK_STATUS;
            client.send(command, flags, 0, len_bytes).await;
            client.socket.write_all(&payload).await.unwrap();
            assert_eq!(statuses(&mut client).await, expected, "{ids:?}");
        }
        client.assert_good().await;
        client.hang_up().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_nobody_wants_is_skipped() {
    let server = Server::new();
    let mut client = server.connect_extended(&[]).await;
    for command in [
        CommandCode::READ,
        CommandCode::TRIM,
        CommandCode::WRITE_ZEROES,
        CommandCode::CACHE,
        CommandCode::FLUSH,
        CommandCode::BLOCK_STATUS,
        CommandCode(77),
    ] {
        let flags = CommandFlags::PAYLOAD_LEN;
        let cookie = client.send(command, flags, 0, 1 << 20).await;
        client.socket.write_all(&pattern(1 << 20)).await.unwrap();
        let refused = Answer::Failed(ErrorCode::INVAL);
        assert_eq!(client.answer().await, (cookie, refused), "{command}");
        client.assert_good().await;
    }
}

/// As QEMU writes: without the flag that says so.
#[tokio::test(start_paused = true)]
async fn a_write_has_a_payload_with_or_without_its_flag() {
    let server = Server::new();
    let mut client = server.connect_extended(&[]).await;
    for flags in [NONE, CommandFlags::PAYLOAD_LEN] {
        let request = Request {
            flags,
            command: CommandCode::WRITE,
            cookie: Cookie(99),
            offset: 0,
            len_bytes: 4096,
        };
        let mut bytes = BytesMut::new();
        request.encode(client.style, &mut bytes).unwrap();
        bytes.extend_from_slice(&[u8::try_from(flags.0).unwrap(); 4096]);
        client.socket.write_all(&bytes).await.unwrap();
        assert_eq!(client.answer().await, (Cookie(99), Answer::Done));
        let read = client.read(0, 4096).await.unwrap();
        assert!(read.iter().all(|byte| u16::from(*byte) == flags.0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_loses_the_frame_ends_the_connection() {
    let server = Server::new();
    let request = |command, flags, len_bytes| Request {
        flags,
        command,
        cookie: Cookie(1),
        offset: 0,
        len_bytes,
    };
    let payload = CommandFlags::PAYLOAD_LEN;
    let bytes = |style, request: Request| {
        let mut out = BytesMut::new();
        request.encode(style, &mut out).unwrap();
        out.to_vec()
    };
    let long = HeaderStyle::Extended;
    for (what, extended, bytes) in [
        (
            "compact magic where headers are extended, and nothing more",
            true,
            bytes(
                HeaderStyle::Structured,
                request(CommandCode::FLUSH, NONE, 0),
            )[..4]
                .to_vec(),
        ),
        (
            "extended magic where headers are compact",
            false,
            bytes(long, request(CommandCode::FLUSH, NONE, 0)),
        ),
        (
            "a payload that nobody accepts",
            true,
            bytes(long, request(CommandCode::WRITE, payload, (64 << 20) + 1)),
        ),
        (
            "an endless payload",
            true,
            bytes(long, request(CommandCode::READ, payload, u64::MAX)),
        ),
    ] {
        let mut client = if extended {
            server.connect_extended(&[]).await
        } else {
            server.connect().await
        };
        client.socket.write_all(&bytes).await.unwrap();
        let closed = tokio::time::timeout(Duration::from_secs(60), client.assert_closed());
        assert!(closed.await.is_ok(), "{what}");
    }
    server.connect().await.assert_good().await;
}

#[tokio::test(start_paused = true)]
async fn extended_headers_can_be_switched_off() {
    let limits = ServerLimits {
        extended_headers: false,
        ..ServerLimits::default()
    };
    let server = Server::with_limits(limits);
    let (socket, session) = server.pipe();
    let mut client = Client::over(socket, session);
    client
        .handshake_with("disk", &[ALL[0]], true)
        .await
        .unwrap();
    assert_eq!(client.style, HeaderStyle::Structured);
    client.assert_good().await;
}

/// Zeroing 2^62 bytes takes as long as it takes: others find their turn, and a client that is gone
/// is not worked for.
#[tokio::test]
async fn a_huge_request_keeps_nobody_waiting() {
    let gate = Gate::new(ServerLimits {
        drain_timeout: Duration::from_millis(20),
        ..ServerLimits::default()
    });
    let (here, there) = tokio::io::duplex(64 << 10);
    let (reader, writer) = tokio::io::split(there);
    let peer = Peer {
        address: "a test".to_owned(),
        name: None,
    };
    let exports = Arc::new(SingleExport::new("disk", DiscardExport::new(1 << 62)));
    let stop = CancellationToken::new();
    let serve = serve_connection(reader, writer, peer, exports, gate, Tls::Off, stop);
    let session = tokio::spawn(serve);
    let mut client = Client::over(here, session);
    client
        .handshake_with("disk", &[ALL[0]], true)
        .await
        .unwrap();
    for command in [CommandCode::WRITE_ZEROES, CommandCode::TRIM] {
        client.send(command, NONE, 0, 1 << 62).await;
        assert_eq!(client.ask(CommandCode::FLUSH, 0, 0).await, Answer::Done);
    }
    // A status is about a prefix, and longer than 32 bits can tell.
    let Answer::Status(runs) = client.ask(CommandCode::BLOCK_STATUS, 0, 1 << 62).await else {
        panic!("a status")
    };
    assert_eq!(runs.len(), 1);
    assert!(runs[0].0 > u64::from(u32::MAX), "{runs:?}");
    client.hang_up().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_of_many_runs_is_told_in_a_second_answer() {
    let server = Server::new();
    let mut client = server.connect_extended(&ALL).await;
    // Every second page: 1024 runs for each context, and an error after them.
    for page in (0..1024).step_by(2) {
        assert_eq!(client.write(page << 16, &[1; 512]).await, Answer::Done);
    }
    client
        .send(CommandCode::BLOCK_STATUS, NONE, 0, 64 << 20)
        .await;
    let chunks = statuses(&mut client).await.unwrap();
    for (context, runs) in chunks {
        assert_eq!(runs.len(), 1024, "{context:?}");
        assert_eq!(runs.iter().map(|run| run.0).sum::<u64>(), 64 << 20);
    }
    settle().await;
    client.assert_good().await;
}

/// Requests of every kind, with payloads that are wanted and others; the client leaves at the end.
fn conversation(style: HeaderStyle) -> Vec<u8> {
    let mut out = BytesMut::new();
    let mut cookie = 0;
    let mut say = |command, flags: CommandFlags, offset, len_bytes, payload: &[u8]| {
        cookie += 1;
        let request = Request {
            flags,
            command,
            cookie: Cookie(cookie),
            offset,
            len_bytes,
        };
        request.encode(style, &mut out).unwrap();
        out.extend_from_slice(payload);
    };
    let extended = style == HeaderStyle::Extended;
    let payload = NONE.with_if(extended, CommandFlags::PAYLOAD_LEN);
    say(CommandCode::WRITE, payload, 4096, 40, &[1; 40]);
    say(CommandCode::WRITE, payload, SIZE, 30, &[2; 30]);
    say(CommandCode::READ, NONE, 65536, 16, &[]);
    say(CommandCode(99), NONE, 0, 0, &[]);
    say(CommandCode::TRIM, NONE, 1 << 20, 1 << 20, &[]);
    if extended {
        let mut pick = 65536_u64.to_be_bytes().to_vec();
        pick.extend(1_u32.to_be_bytes());
        say(CommandCode::BLOCK_STATUS, payload, 1 << 20, 12, &pick);
        say(CommandCode::READ, payload, 0, 20, &[3; 20]);
    }
    say(CommandCode::BLOCK_STATUS, NONE, 1 << 20, 1 << 20, &[]);
    say(CommandCode::FLUSH, NONE, 0, 0, &[]);
    say(CommandCode::DISC, NONE, 0, 0, &[]);
    out.to_vec()
}

/// What a client is told when it sends the conversation in these parts, request by request.
async fn told(style: HeaderStyle, parts: &[&[u8]]) -> Vec<(u64, String)> {
    let server = Server::new();
    let (socket, session) = server.pipe();
    let mut client = Client::over(socket, session);
    let extended = style == HeaderStyle::Extended;
    client.handshake_with("disk", &ALL, extended).await.unwrap();
    for part in parts {
        client.socket.write_all(part).await.unwrap();
        settle().await;
    }
    let mut answers = Vec::new();
    while let Some(event) = client.event().await {
        if let ReplyEvent::Data { len_bytes, .. } = event {
            client.data(len_bytes as usize).await;
        }
        let text = format!("{event:?}");
        let cookie = match event {
            ReplyEvent::Simple { cookie, .. }
            | ReplyEvent::Data { cookie, .. }
            | ReplyEvent::Hole { cookie, .. }
            | ReplyEvent::Status { cookie, .. }
            | ReplyEvent::Error { cookie, .. }
            | ReplyEvent::End { cookie } => cookie.0,
            ReplyEvent::NeedBytes(_) => unreachable!("the client reads on"),
        };
        answers.push((cookie, text));
    }
    client.session.await.unwrap();
    // Replies may overtake each other; chunks of one request do not.
    answers.sort_by_key(|(cookie, _)| *cookie);
    answers
}

#[tokio::test(start_paused = true)]
async fn cutting_the_requests_at_every_byte_gives_the_same_answers() {
    for style in [HeaderStyle::Structured, HeaderStyle::Extended] {
        let bytes = conversation(style);
        let whole = told(style, &[&bytes]).await;
        let extended = style == HeaderStyle::Extended;
        assert_eq!(whole.len(), if extended { 11 } else { 9 }, "{whole:?}");
        for cut in 1..bytes.len() {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(told(style, &[first, second]).await, whole, "cut={cut}");
        }
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(told(style, &single).await, whole, "byte by byte");
    }
}
