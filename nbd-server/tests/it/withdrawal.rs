//! Sessions that must end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use nbd_server::proto::client::ReplyEvent;
use nbd_server::proto::limits::IN_FLIGHT_REQUESTS;
use nbd_server::proto::{CommandCode, CommandFlags, ErrorCode};
use nbd_server::{Gate, ListenAddress, Listener, ServerLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::peer::{Answer, Server, settle};

const NONE: CommandFlags = CommandFlags::EMPTY;

/// Ends every session of the server, one way or the other.
fn end(server: &Server, withdraw: bool) {
    if withdraw {
        server.script().withdrawn.cancel();
    } else {
        server.stop.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_is_finished_and_the_rest_refused() {
    for withdraw in [true, false] {
        let server = Server::new();
        let mut client = server.connect().await;
        server.script().writes.forget_permits(usize::MAX);
        let held = client.send(CommandCode::WRITE, NONE, 0, 512).await;
        client.socket.write_all(&[1; 512]).await.unwrap();
        settle().await;
        end(&server, withdraw);
        settle().await;
        let late = client.write(4096, &[2; 512]).await;
        assert_eq!(late, Answer::Failed(ErrorCode::SHUTDOWN));
        assert_eq!(
            client.ask(CommandCode::FLUSH, 0, 0).await,
            Answer::Failed(ErrorCode::SHUTDOWN)
        );
        server.script().writes.add_permits(100);
        assert_eq!(client.answer().await, (held, Answer::Done));
        client.assert_closed().await;
        assert_eq!(server.script().still_open(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_is_answered_whatever_it_is() {
    for withdraw in [true, false] {
        let server = Server::new();
        let mut client = server.connect().await;
        server.script().writes.forget_permits(usize::MAX);
        server.script().turns.forget_permits(usize::MAX);
        let mut waiting = BTreeSet::new();
        for (command, len_bytes) in [
            (CommandCode::READ, 4096),
            (CommandCode::WRITE, 512),
            (CommandCode::WRITE_ZEROES, 4096),
            (CommandCode::TRIM, 4096),
            (CommandCode::FLUSH, 0),
            (CommandCode::BLOCK_STATUS, 4096),
        ] {
            waiting.insert(client.send(command, NONE, 0, len_bytes).await.0);
            if command == CommandCode::WRITE {
                client.socket.write_all(&[1; 512]).await.unwrap();
            }
        }
        settle().await;
        end(&server, withdraw);
        settle().await;
        let refused = Answer::Failed(ErrorCode::SHUTDOWN);
        assert_eq!(client.ask(CommandCode::CACHE, 0, 512).await, refused);
        server.script().writes.add_permits(100);
        server.script().turns.add_permits(100);
        while let Some(event) = client.event().await {
            let cookie = match event {
                ReplyEvent::Data {
                    cookie,
                    len_bytes,
                    done: true,
                    ..
                } => {
                    client.data(len_bytes as usize).await;
                    cookie
                }
                ReplyEvent::Status {
                    cookie, done: true, ..
                }
                | ReplyEvent::End { cookie }
                | ReplyEvent::Simple {
                    cookie,
                    error: ErrorCode::NONE,
                } => cookie,
                other => panic!("unexpected {other:?}"),
            };
            assert!(waiting.remove(&cookie.0), "answered once");
        }
        assert!(waiting.is_empty(), "not answered: {waiting:?}");
        client.session.await.unwrap();
        assert_eq!(server.script().still_open(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_costs_its_own_client_only() {
    let server = Server::new();
    let (mut stuck, idle) = (server.connect().await, server.connect().await);
    server.script().turns.forget_permits(usize::MAX);
    stuck.send(CommandCode::FLUSH, NONE, 0, 0).await;
    settle().await;
    server.stop.cancel();
    idle.assert_closed().await;
    // The drain time of the paused clock passes, then its socket is cut; the call still holds the export.
    assert_eq!(stuck.event().await, None);
    settle().await;
    assert!(!stuck.session.is_finished());
    assert_eq!(server.script().still_open(), 1);
    server.script().turns.add_permits(1);
    stuck.session.await.unwrap();
    assert_eq!(server.script().still_open(), 0);
}

/// In real time, because a listener has real sockets: what is bounded is that it returns at all.
#[tokio::test]
async fn a_listener_leaves_a_call_that_hangs_behind() {
    let server = Server::new();
    server.script().turns.forget_permits(usize::MAX);
    let address = ListenAddress::Tcp(([127, 0, 0, 1], 0).into());
    let limits = ServerLimits {
        drain_timeout: Duration::from_millis(20),
        ..ServerLimits::default()
    };
    let listener = Listener::bind(&address).await.unwrap();
    let listener = listener.with_gate(Gate::new(limits));
    let ListenAddress::Tcp(bound) = listener.local_address() else {
        panic!("it was bound to TCP")
    };
    let probe = Arc::new(server.probe.clone());
    let serving = tokio::spawn(listener.serve(probe, server.stop.clone()));
    let mut socket = TcpStream::connect(bound).await.unwrap();
    socket
        .write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04disk")
        .await
        .unwrap();
    let mut greeted = [0; 18 + 10];
    socket.read_exact(&mut greeted).await.unwrap();
    // A trim: its call is counted before it waits for its turn.
    let mut trim = [0; 28];
    trim[..8].copy_from_slice(&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 4]);
    trim[27] = 1;
    socket.write_all(&trim).await.unwrap();
    while server.script().calls.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    server.stop.cancel();
    serving.await.unwrap();
    assert_eq!(server.script().calls.load(SeqCst), 1, "still under way");
    assert!(TcpStream::connect(bound).await.is_err(), "nobody listens");
    server.script().turns.add_permits(1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_ends_at_once() {
    for withdraw in [true, false] {
        let server = Server::new();
        let client = server.connect().await;
        let begin = tokio::time::Instant::now();
        end(&server, withdraw);
        client.assert_closed().await;
        assert_eq!(begin.elapsed().as_secs(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_half_here_is_refused() {
    for withdraw in [true, false] {
        let server = Server::new();
        let mut client = server.connect().await;
        let cookie = client.send(CommandCode::WRITE, NONE, 0, 1 << 20).await;
        client.socket.write_all(&[1; 300 << 10]).await.unwrap();
        settle().await;
        end(&server, withdraw);
        assert_eq!(
            client.answer().await,
            (cookie, Answer::Failed(ErrorCode::SHUTDOWN))
        );
        client.assert_closed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_cannot_hold_the_server() {
    let server = Server::new();
    let mut client = server.connect().await;
    client.send(CommandCode::READ, NONE, 0, 32 << 20).await;
    settle().await;
    server.stop.cancel();
    // The drain time of the paused clock passes; the session ends although nobody reads.
    client.session.await.unwrap();
    assert_eq!(server.script().still_open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_its_turn_is_refused_and_not_lost() {
    for withdraw in [true, false] {
        let server = Server::new();
        let mut client = server.connect().await;
        server.script().writes.forget_permits(usize::MAX);
        for _ in 0..IN_FLIGHT_REQUESTS {
            client.send(CommandCode::WRITE, NONE, 0, 512).await;
            client.socket.write_all(&[1; 512]).await.unwrap();
        }
        let waiting = client.send(CommandCode::WRITE, NONE, 0, 4096).await;
        client.socket.write_all(&[2; 4096]).await.unwrap();
        settle().await;
        end(&server, withdraw);
        settle().await;
        let refused = Answer::Failed(ErrorCode::SHUTDOWN);
        assert_eq!(client.answer().await, (waiting, refused));
        server.script().writes.add_permits(1000);
        for _ in 0..IN_FLIGHT_REQUESTS {
            assert_eq!(client.answer().await.1, Answer::Done);
        }
        client.assert_closed().await;
    }
}
