//! Sessions that must end.

use nbd_server::proto::limits::IN_FLIGHT_REQUESTS;
use nbd_server::proto::{CommandCode, CommandFlags, ErrorCode};
use tokio::io::AsyncWriteExt;

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
