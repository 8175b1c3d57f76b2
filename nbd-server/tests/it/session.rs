//! Sessions over a pipe, on a paused clock: peers that misbehave, and bounds that hold.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use nbd_server::ServerLimits;
use nbd_server::proto::client::ReplyEvent;
use nbd_server::proto::limits::{IN_FLIGHT_BYTES, MAX_PAYLOAD_BYTES, RESERVED_PIECE_BYTES};
use nbd_server::proto::{CommandCode, CommandFlags, ErrorCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::peer::{Answer, NOWHERE, SIZE, Server, pattern, settle};

const NONE: CommandFlags = CommandFlags::EMPTY;

#[tokio::test(start_paused = true)]
async fn a_large_write_comes_in_pieces_and_reads_back() {
    let server = Server::new();
    let mut client = server.connect().await;
    let data = pattern((32 << 20) - 1);
    assert_eq!(client.write(12_345, &data).await, Answer::Done);
    let read = client
        .read(12_345, u32::try_from(data.len()).unwrap())
        .await
        .unwrap();
    assert!(read == data, "the same bytes");
    let most = server.script().writing_most.load(SeqCst);
    assert!(most <= IN_FLIGHT_BYTES as usize, "most={most}");
    client.hang_up().await;
    assert_eq!(server.script().still_open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_vanishes_within_a_large_write() {
    let server = Server::new();
    let mut client = server.connect().await;
    client.send(CommandCode::WRITE, NONE, 0, 32 << 20).await;
    client.socket.write_all(&pattern(5 << 20)).await.unwrap();
    client.hang_up().await;
    assert_eq!(server.script().still_open(), 0);
    assert_eq!(server.script().calls.load(SeqCst), 0);
    server.connect().await.assert_good().await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_announces_and_sends_nothing_holds_nothing() {
    let server = Server::new();
    let mut client = server.connect().await;
    client.send(CommandCode::WRITE, NONE, 0, 32 << 20).await;
    settle().await;
    assert_eq!(server.script().writing_most.load(SeqCst), 0);
    client.hang_up().await;
}

#[tokio::test(start_paused = true)]
async fn writes_that_are_refused_are_drained() {
    let server = Server::new();
    let mut client = server.connect().await;
    let mega = vec![1; 1 << 20];
    assert_eq!(
        client.write(SIZE, &mega).await,
        Answer::Failed(ErrorCode::NOSPC)
    );
    assert_eq!(
        client.write(SIZE - 1, &mega).await,
        Answer::Failed(ErrorCode::NOSPC)
    );
    let oversize = vec![1; MAX_PAYLOAD_BYTES as usize + 1];
    assert_eq!(
        client.write(0, &oversize).await,
        Answer::Failed(ErrorCode::INVAL)
    );
    let largest = &oversize[1..];
    assert_eq!(client.write(0, largest).await, Answer::Done);
    client.assert_good().await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_in_the_middle_is_answered_once() {
    let server = Server::new();
    let mut client = server.connect().await;
    for at in [0, 5 << 20, (8 << 20) - 1] {
        server.script().fail_at.store(at, SeqCst);
        let answer = client.write(0, &pattern(8 << 20)).await;
        assert_eq!(answer, Answer::Failed(ErrorCode::NOSPC), "at={at}");
        server.script().fail_at.store(NOWHERE, SeqCst);
        client.assert_good().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_magic_ends_the_connection_after_the_answers() {
    let server = Server::new();
    let mut client = server.connect().await;
    let cookie = client.send(CommandCode::FLUSH, NONE, 0, 0).await;
    client.socket.write_all(&[0x25; 28]).await.unwrap();
    assert_eq!(client.answer().await, (cookie, Answer::Done));
    client.assert_closed().await;
    assert_eq!(server.script().still_open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_reads_has_bounded_memory() {
    let server = Server::new();
    let mut client = server.connect().await;
    let mut requests = bytes::BytesMut::new();
    for cookie in 0..1000_u64 {
        let request = nbd_server::proto::Request {
            flags: NONE,
            command: CommandCode::READ,
            cookie: nbd_server::proto::Cookie(cookie),
            offset: cookie * 4096,
            len_bytes: 1 << 20,
        };
        request.encode(client.style, &mut requests).unwrap();
    }
    client.socket.write_all(&requests).await.unwrap();
    settle().await;
    let held = server.script().held_most.load(SeqCst);
    assert!(held <= IN_FLIGHT_BYTES as usize, "held={held}");
    assert!(
        held > IN_FLIGHT_BYTES as usize / 2,
        "the bound is what stopped it, held={held}"
    );

    // Now that it reads, everything comes.
    let mut answered = 0;
    while answered < 1000 {
        match client.event().await.expect("an answer") {
            ReplyEvent::Data {
                len_bytes, done, ..
            } => {
                client.data(len_bytes as usize).await;
                answered += usize::from(done);
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    client.assert_good().await;
}

#[tokio::test(start_paused = true)]
async fn one_starved_server_still_serves_everybody() {
    let limits = ServerLimits {
        payload_budget_bytes: 1,
        ..ServerLimits::default()
    };
    let server = Server::with_limits(limits);
    let (mut a, mut b) = (server.connect().await, server.connect().await);
    let data = pattern(3 << 20);
    // `a` holds its only piece; `b` goes on.
    a.send(CommandCode::READ, NONE, 0, 32 << 20).await;
    settle().await;
    assert_eq!(b.write(0, &data).await, Answer::Done);
    assert!(b.read(0, 3 << 20).await.unwrap() == data);
    a.hang_up().await;
    b.hang_up().await;
}

/// Past the budget a connection has one small piece, not one large one.
#[tokio::test(start_paused = true)]
async fn many_that_stop_within_a_payload_hold_little() {
    let limits = ServerLimits {
        payload_budget_bytes: 1 << 20,
        ..ServerLimits::default()
    };
    let server = Server::with_limits(limits);
    let data = pattern(300 << 10);
    let mut stopped = Vec::new();
    for number in 0..40 {
        let mut client = server.connect().await;
        let (offset, len_bytes) = (number << 20, data.len() as u64);
        let cookie = client
            .send(CommandCode::WRITE, NONE, offset, len_bytes)
            .await;
        client.socket.write_all(&data[..20 << 10]).await.unwrap();
        stopped.push((client, cookie, offset));
    }
    settle().await;
    let held = server.gate.statistics().held_bytes;
    let most = (1 << 20) + 40 * u64::from(RESERVED_PIECE_BYTES);
    assert!(held <= most, "held={held}");
    assert!(held > 1 << 20, "the budget is used up, held={held}");
    for (client, cookie, offset) in &mut stopped {
        client.socket.write_all(&data[20 << 10..]).await.unwrap();
        assert_eq!(client.answer().await, (*cookie, Answer::Done));
        let len = u32::try_from(data.len()).unwrap();
        assert!(client.read(*offset, len).await.unwrap() == data);
    }
    assert_eq!(server.gate.statistics().held_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn replies_come_out_of_order() {
    let server = Server::new();
    let mut client = server.connect().await;
    server.script().writes.forget_permits(usize::MAX);
    let slow = client.send(CommandCode::WRITE, NONE, 0, 512).await;
    client.socket.write_all(&[1; 512]).await.unwrap();
    assert_eq!(
        client.ask(CommandCode::WRITE_ZEROES, 4096, 512).await,
        Answer::Done
    );
    server.script().writes.add_permits(100);
    assert_eq!(client.answer().await, (slow, Answer::Done));
}

#[tokio::test(start_paused = true)]
async fn an_empty_request_is_answered() {
    let server = Server::new();
    let mut client = server.connect().await;
    for command in [
        CommandCode::READ,
        CommandCode::WRITE_ZEROES,
        CommandCode::TRIM,
    ] {
        for offset in [0, SIZE] {
            assert_eq!(
                client.ask(command, offset, 0).await,
                Answer::Done,
                "{command}"
            );
        }
    }
    assert_eq!(client.write(0, &[]).await, Answer::Done);
    assert_eq!(client.ask(CommandCode::CACHE, 0, 0).await, Answer::Done);
    let invalid = Answer::Failed(ErrorCode::INVAL);
    assert_eq!(client.ask(CommandCode::BLOCK_STATUS, 0, 0).await, invalid);
    let mut plain = server.connect_plain().await;
    assert_eq!(plain.ask(CommandCode::READ, 0, 0).await, Answer::Done);
}

#[tokio::test(start_paused = true)]
async fn zeroes_status_and_fua() {
    let server = Server::new();
    let mut client = server.connect().await;
    assert_eq!(client.write(0, &pattern(1 << 20)).await, Answer::Done);
    let no_hole = CommandFlags::NO_HOLE.with(CommandFlags::FUA);
    assert_eq!(
        client
            .ask_with(CommandCode::WRITE_ZEROES, no_hole, 0, 65536)
            .await,
        Answer::Done
    );
    assert_eq!(server.script().flushes.load(SeqCst), 1, "FUA flushes");
    let whole = SIZE;
    assert_eq!(
        client
            .ask(CommandCode::TRIM, 512 << 10, whole - (512 << 10))
            .await,
        Answer::Done
    );
    assert_eq!(
        client.ask(CommandCode::BLOCK_STATUS, 0, whole).await,
        Answer::Status(vec![(512 << 10, 0), (whole - (512 << 10), 3)])
    );
    let one = CommandFlags::REQ_ONE;
    assert_eq!(
        client
            .ask_with(CommandCode::BLOCK_STATUS, one, 0, whole)
            .await,
        Answer::Status(vec![(512 << 10, 0)])
    );
    let mut data = pattern(1 << 20);
    data[..65536].fill(0);
    data[512 << 10..].fill(0);
    assert!(client.read(0, 1 << 20).await.unwrap() == data);
    let fast_and_allocated = CommandFlags::NO_HOLE.with(CommandFlags::FAST_ZERO);
    assert_eq!(
        client
            .ask_with(CommandCode::WRITE_ZEROES, fast_and_allocated, 0, 1)
            .await,
        Answer::Failed(ErrorCode::NOTSUP)
    );
    assert_eq!(client.ask(CommandCode::FLUSH, 0, 0).await, Answer::Done);
    assert_eq!(server.script().flushes.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_fails_leaves_the_connection_good() {
    let server = Server::new();
    let mut client = server.connect().await;
    server.script().fail_at.store(3 << 20, SeqCst);
    assert_eq!(client.read(0, 8 << 20).await, Err(ErrorCode::NOSPC));
    client.assert_good().await;

    // One chunk only: it is filled with zeroes, then the error follows.
    client
        .send(CommandCode::READ, CommandFlags::DF, 0, 8 << 20)
        .await;
    let event = client.event().await;
    assert!(
        matches!(event, Some(ReplyEvent::Data { len_bytes, done: false, .. }) if len_bytes == 8 << 20),
        "{event:?}"
    );
    client.data(8 << 20).await;
    assert_eq!(client.answer().await.1, Answer::Failed(ErrorCode::NOSPC));
    client.assert_good().await;

    client
        .send(CommandCode::READ, CommandFlags::DF, 0, 2 << 20)
        .await;
    let event = client.event().await;
    assert!(
        matches!(event, Some(ReplyEvent::Data { done: true, .. })),
        "{event:?}"
    );
    client.data(2 << 20).await;
    client.assert_good().await;
}

#[tokio::test(start_paused = true)]
async fn simple_replies_tell_an_error_or_cut() {
    let server = Server::new();
    let mut client = server.connect_plain().await;
    let data = pattern(9 << 20);
    assert_eq!(client.write(0, &data).await, Answer::Done);
    for len in [1 << 20, 9_u32 << 20] {
        client.send(CommandCode::READ, NONE, 0, len.into()).await;
        assert_eq!(client.answer().await.1, Answer::Done);
        assert!(client.data(len as usize).await == data[..len as usize]);
    }
    // Small enough to know before the head leaves.
    server.script().fail_at.store(1 << 20, SeqCst);
    let failed = Answer::Failed(ErrorCode::NOSPC);
    assert_eq!(client.ask(CommandCode::READ, 0, 2 << 20).await, failed);
    // The first piece of a long one, too.
    assert_eq!(
        client.ask(CommandCode::READ, 1 << 20, 8 << 20).await,
        failed
    );
    // Later there is no way to tell.
    client.send(CommandCode::READ, NONE, 0, 8 << 20).await;
    let mut rest = Vec::new();
    client.socket.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() < 8 << 20, "len={}", rest.len());
    client.session.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_export_ends_its_session_only() {
    let server = Server::new();
    let mut other = server.connect().await;
    for write in [false, true] {
        let mut client = server.connect().await;
        server.script().panic_at.store(1 << 20, SeqCst);
        if write {
            client.send(CommandCode::WRITE, NONE, 0, 2 << 20).await;
            // The session may close before it took everything.
            let _ = client.socket.write_all(&[1; 2 << 20]).await;
        } else {
            client.send(CommandCode::READ, NONE, 0, 2 << 20).await;
        }
        let session = client.session;
        tokio::io::copy(&mut client.socket, &mut tokio::io::sink())
            .await
            .unwrap();
        session.await.unwrap();
        server.script().panic_at.store(NOWHERE, SeqCst);
        other.assert_good().await;
    }
    assert_eq!(server.script().still_open(), 1, "the other one");
}

#[tokio::test(start_paused = true)]
async fn idle_clients_are_kept_and_silent_ones_are_not() {
    let server = Server::new();
    let mut idle = server.connect().await;
    let (mut silent, session) = server.pipe();
    let begin = tokio::time::Instant::now();
    let mut greeting = Vec::new();
    silent.read_to_end(&mut greeting).await.unwrap();
    session.await.unwrap();
    assert_eq!(greeting.len(), 18);
    let waited = begin.elapsed();
    assert!(
        waited >= Duration::from_secs(15) && waited < Duration::from_secs(16),
        "{waited:?}"
    );
    tokio::time::sleep(Duration::from_secs(36_000)).await;
    idle.assert_good().await;
}

#[tokio::test(start_paused = true)]
async fn an_open_that_hangs_is_given_up_with_the_handshake() {
    let server = Server::new();
    let (mut socket, session) = server.pipe();
    socket
        .write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x05never")
        .await
        .unwrap();
    session.await.unwrap();
    assert_eq!(server.script().opened.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn one_connection_too_many_is_refused_with_a_reason() {
    let limits = ServerLimits {
        connections_per_export: 2,
        ..ServerLimits::default()
    };
    let server = Server::with_limits(limits);
    let (first, mut second) = (server.connect().await, server.connect().await);
    let (socket, session) = server.pipe();
    let mut third = crate::peer::Client::over(socket, session);
    let refused = third.handshake("disk").await.unwrap_err();
    assert!(refused.contains("too many connections"), "{refused}");
    first.hang_up().await;
    server.connect().await.assert_good().await;
    second.assert_good().await;
}

#[tokio::test(start_paused = true)]
async fn asking_for_information_closes_what_it_opened() {
    let server = Server::new();
    let (mut socket, session) = server.pipe();
    socket
        .write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x06\0\0\0\x0a\0\0\0\x04disk\0\0")
        .await
        .unwrap();
    // It leaves once it has heard everything.
    socket.shutdown().await.unwrap();
    let mut answers = Vec::new();
    socket.read_to_end(&mut answers).await.unwrap();
    session.await.unwrap();
    let script = server.script();
    assert_eq!(script.opened.load(SeqCst), 1);
    assert_eq!(script.still_open(), 0);
}

#[tokio::test(start_paused = true)]
async fn leaving_politely_still_answers_what_is_in_flight() {
    let server = Server::new();
    let mut client = server.connect().await;
    let cookie = client.send(CommandCode::FLUSH, NONE, 0, 0).await;
    client.send(CommandCode::DISC, NONE, 0, 0).await;
    assert_eq!(client.answer().await, (cookie, Answer::Done));
    client.assert_closed().await;
}

#[tokio::test(start_paused = true)]
async fn zeroes_are_told_and_not_sent() {
    let server = Server::new();
    server.script().tells_zeroes.store(true, SeqCst);
    let mut client = server.connect().await;
    let data = pattern(256 << 10);
    assert_eq!(client.write(1 << 20, &data).await, Answer::Done);
    client
        .send(CommandCode::READ, NONE, 512 << 10, 1 << 20)
        .await;
    let mut parts = Vec::new();
    let ended = loop {
        match client.event().await.expect("an answer") {
            ReplyEvent::Hole {
                offset,
                len_bytes,
                done,
                ..
            } => {
                parts.push((offset >> 10, len_bytes >> 10, "hole"));
                if done {
                    break offset + u64::from(len_bytes);
                }
            }
            ReplyEvent::Data {
                offset, len_bytes, ..
            } => {
                assert!(client.data(len_bytes as usize).await == data);
                parts.push((offset >> 10, len_bytes >> 10, "data"));
            }
            other => panic!("unexpected {other:?}"),
        }
    };
    assert_eq!(ended, 1536 << 10);
    let expected = [
        (512, 256, "hole"),
        (768, 256, "hole"),
        (1024, 256, "data"),
        (1280, 256, "hole"),
    ];
    assert_eq!(parts, expected);
    // What must be one piece has its zeroes in it.
    for len in [512_u64 << 10, 4 << 20] {
        client
            .send(CommandCode::READ, CommandFlags::DF, 0, len)
            .await;
        let event = client.event().await;
        assert!(
            matches!(event, Some(ReplyEvent::Data { len_bytes, .. }) if u64::from(len_bytes) == len),
            "{event:?}"
        );
        let read = client.data(usize::try_from(len).unwrap()).await;
        assert!(read[..512 << 10].iter().all(|byte| *byte == 0));
        if matches!(event, Some(ReplyEvent::Data { done: false, .. })) {
            assert_eq!(client.answer().await.1, Answer::Done);
        }
    }
    let mut plain = server.connect_plain().await;
    plain.send(CommandCode::READ, NONE, 0, 4096).await;
    assert_eq!(plain.answer().await.1, Answer::Done);
    assert!(plain.data(4096).await.iter().all(|byte| *byte == 0));
}
