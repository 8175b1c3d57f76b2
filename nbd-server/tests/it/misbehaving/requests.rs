//! Peers that misbehave once they have an export.

use std::time::Duration;

use nbd_server::proto::CommandCode;
use nbd_server::proto::limits::{
    IN_FLIGHT_BYTES, MAX_PAYLOAD_BYTES, PIECE_BYTES, STALL_TIMEOUT, UNREAD_TIMEOUT,
};
use nbd_server::statistics::{CommandKind, ErrorKind, HandshakeEnd, SessionEnd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::peers::{CHOOSE, ELSEWHERE, FLAGS, Peers, drip, garbage, read_all, request};
use super::survive;
use crate::peer::settle;

#[tokio::test(start_paused = true)]
async fn announces_the_longest_write_and_sends_nothing() {
    survive(
        async |peers| {
            let mut socket = peers.enter().await;
            let begin = Instant::now();
            let write = request(CommandCode::WRITE, ELSEWHERE, MAX_PAYLOAD_BYTES.into());
            socket.write_all(&write).await.unwrap();
            settle().await;
            let held = peers.statistics().held_bytes;
            assert!(
                held <= 2 * u64::from(PIECE_BYTES),
                "only the other client's: {held}"
            );
            read_all(&mut socket).await;
            assert_is_about(begin.elapsed(), STALL_TIMEOUT);
        },
        |seen| assert_eq!(seen.sessions_ended.get(SessionEnd::Stalled), 1),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn stops_within_a_payload() {
    survive(
        async |peers| {
            for sent in [1, 4096, 256 << 10, (256 << 10) + 1, (1 << 20) - 1] {
                let mut socket = peers.enter().await;
                let begin = Instant::now();
                let write = request(CommandCode::WRITE, ELSEWHERE, 1 << 20);
                socket.write_all(&write).await.unwrap();
                socket.write_all(&vec![7; sent]).await.unwrap();
                read_all(&mut socket).await;
                assert_is_about(begin.elapsed(), STALL_TIMEOUT);
            }
        },
        |seen| assert_eq!(seen.sessions_ended.get(SessionEnd::Stalled), 5),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn sends_a_header_one_byte_a_minute() {
    survive(
        async |peers| {
            let mut socket = peers.enter().await;
            let flush = request(CommandCode::FLUSH, 0, 0);
            drip(&mut socket, &flush, Duration::from_secs(60)).await;
            assert!(read_all(&mut socket).await.is_empty(), "no answer");
        },
        |seen| {
            assert_eq!(seen.sessions_ended.get(SessionEnd::Stalled), 1);
            assert_eq!(seen.requests.get(CommandKind::Flush), 0);
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn sends_a_payload_one_byte_a_second() {
    survive(
        async |peers| {
            let mut socket = peers.enter().await;
            let write = request(CommandCode::WRITE, ELSEWHERE, 4096);
            socket.write_all(&write).await.unwrap();
            drip(&mut socket, &[7; 4096], Duration::from_secs(1)).await;
            assert!(read_all(&mut socket).await.is_empty(), "no answer");
        },
        |seen| assert_eq!(seen.sessions_ended.get(SessionEnd::Stalled), 1),
    )
    .await;
}

/// What a tunnel that comes back looks like.
#[tokio::test(start_paused = true)]
async fn stops_within_a_payload_and_goes_on_in_time() {
    survive(
        async |peers| {
            let mut socket = peers.enter().await;
            let write = request(CommandCode::WRITE, ELSEWHERE, 1 << 20);
            socket.write_all(&write).await.unwrap();
            for _ in 0..4 {
                socket.write_all(&[7; 200 << 10]).await.unwrap();
                tokio::time::sleep(STALL_TIMEOUT - Duration::from_secs(1)).await;
                socket.write_all(&[7; 56 << 10]).await.unwrap();
            }
            let mut reply = [0; 16];
            socket.read_exact(&mut reply).await.unwrap();
            assert_eq!(reply[4..8], [0; 4], "success");
        },
        |seen| {
            assert_eq!(seen.sessions_ended.get(SessionEnd::Stalled), 0);
            assert_eq!(seen.errors.total(), 0);
        },
    )
    .await;
}

/// No misbehaviour at all: agents keep connections for days.
#[tokio::test(start_paused = true)]
async fn says_nothing_for_days() {
    survive(
        async |peers| {
            let mut socket = peers.enter().await;
            tokio::time::sleep(Duration::from_secs(3 * 24 * 3600)).await;
            let flush = request(CommandCode::FLUSH, 0, 0);
            socket.write_all(&flush).await.unwrap();
            socket.read_exact(&mut [0; 16]).await.unwrap();
        },
        |seen| assert_eq!(seen.sessions_ended.get(SessionEnd::Left), 2),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn asks_for_data_and_never_reads() {
    survive(
        async |peers| {
            let mut socket = peers.enter().await;
            let begin = Instant::now();
            for _ in 0..1000 {
                let read = request(CommandCode::READ, ELSEWHERE, 1 << 20);
                socket.write_all(&read).await.unwrap();
            }
            tokio::time::sleep(UNREAD_TIMEOUT / 2).await;
            let held = peers.statistics().held_bytes;
            let most = u64::from(IN_FLIGHT_BYTES) + 2 * u64::from(PIECE_BYTES);
            assert!(held > 0 && held <= most, "held={held}");
            peers.all_sessions_end().await;
            assert_is_about(begin.elapsed(), UNREAD_TIMEOUT);
        },
        |seen| assert_eq!(seen.sessions_ended.get(SessionEnd::Cut), 1),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn floods_with_requests_and_never_reads() {
    survive(
        async |peers| {
            let mut socket = peers.enter().await;
            let mut sent = 0_u64;
            let flush = request(CommandCode::FLUSH, 0, 0);
            while socket.write_all(&flush).await.is_ok() {
                sent += 1;
            }
            // The pipe holds so many; the server takes no more than it can answer.
            assert!(sent < 20_000, "sent={sent}");
        },
        |seen| {
            assert_eq!(seen.sessions_ended.get(SessionEnd::Cut), 1);
            assert!(seen.requests.get(CommandKind::Flush) < 20_000);
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn floods_with_writes_and_never_reads() {
    survive(
        async |peers| {
            let mut socket = peers.enter().await;
            let mut write = request(CommandCode::WRITE, ELSEWHERE, 512);
            write.extend([7; 512]);
            while socket.write_all(&write).await.is_ok() {}
        },
        |seen| assert_eq!(seen.sessions_ended.get(SessionEnd::Cut), 1),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn vanishes_within_a_payload() {
    survive(
        async |peers| {
            for sent in [0, 1, 256 << 10, 300 << 10, (1 << 20) - 1] {
                let mut socket = peers.enter().await;
                let write = request(CommandCode::WRITE, ELSEWHERE, 1 << 20);
                socket.write_all(&write).await.unwrap();
                socket.write_all(&vec![7; sent]).await.unwrap();
            }
        },
        |seen| assert_eq!(seen.sessions_ended.get(SessionEnd::Broken), 5),
    )
    .await;
}

/// A whole conversation, cut off at every byte.
#[tokio::test(start_paused = true)]
async fn vanishes_at_every_byte() {
    let mut script = FLAGS.to_vec();
    script.extend(CHOOSE);
    let greeting_ends = script.len() as u64;
    script.extend(request(CommandCode::WRITE, ELSEWHERE, 40));
    script.extend([7; 40]);
    script.extend(request(CommandCode::READ, ELSEWHERE, 512));
    script.extend(request(CommandCode::FLUSH, 0, 0));
    let cuts = script.len() as u64 + 1;
    survive(
        async |peers| {
            for cut in 0..=script.len() {
                let mut socket = peers.connect();
                socket.write_all(&script[..cut]).await.unwrap();
                // Every other one hears what was still answered.
                if cut % 2 == 0 {
                    socket.shutdown().await.unwrap();
                    read_all(&mut socket).await;
                }
            }
        },
        |seen| {
            assert_eq!(seen.accepted, cuts + 1);
            assert_eq!(seen.handshakes_ended.get(HandshakeEnd::TimedOut), 0);
            assert!(seen.handshakes_ended.total() >= greeting_ends, "{seen:?}");
            assert!(seen.sessions_ended.get(SessionEnd::Broken) > 10, "{seen:?}");
        },
    )
    .await;
}

/// A whole conversation, and garbage from some byte on.
#[tokio::test(start_paused = true)]
async fn goes_mad_at_every_byte() {
    let mut script = FLAGS.to_vec();
    script.extend(CHOOSE);
    script.extend(request(CommandCode::WRITE, ELSEWHERE, 40));
    script.extend([7; 40]);
    script.extend(request(CommandCode::READ, ELSEWHERE, 512));
    survive(
        async |peers| {
            for cut in 0..=script.len() {
                let mut socket = peers.connect();
                socket.write_all(&script[..cut]).await.unwrap();
                let seed = u64::try_from(cut).unwrap() + 1;
                let _ = socket.write_all(&garbage(seed, 1000)).await;
                let _ = socket.shutdown().await;
                read_all(&mut socket).await;
            }
        },
        |seen| {
            let protocol = seen.handshakes_ended.get(HandshakeEnd::Protocol)
                + seen.sessions_ended.get(SessionEnd::Protocol);
            assert!(protocol > 30, "{seen:?}");
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn asks_for_what_there_is_not() {
    survive(
        async |peers| {
            let mut socket = peers.enter().await;
            let mut reply = [0; 16];
            for number in 0..500_u16 {
                let unknown = request(CommandCode(100 + number), 0, 0);
                socket.write_all(&unknown).await.unwrap();
                socket.read_exact(&mut reply).await.unwrap();
                let beyond = request(CommandCode::READ, u64::MAX, 512);
                socket.write_all(&beyond).await.unwrap();
                socket.read_exact(&mut reply).await.unwrap();
                let mut beyond = request(CommandCode::WRITE, 128 << 20, 512);
                beyond.extend([7; 512]);
                socket.write_all(&beyond).await.unwrap();
                socket.read_exact(&mut reply).await.unwrap();
            }
        },
        |seen| {
            assert_eq!(seen.errors.get(ErrorKind::Inval), 1000);
            assert_eq!(seen.errors.get(ErrorKind::NoSpc), 500);
            assert_eq!(seen.requests.get(CommandKind::Other), 500);
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn goes_on_after_it_said_goodbye() {
    survive(
        async |peers| {
            let mut socket = peers.enter().await;
            let mut bytes = request(CommandCode::DISC, 0, 0);
            bytes.extend(request(CommandCode::WRITE, ELSEWHERE, 4));
            bytes.extend([0xAB; 4]);
            socket.write_all(&bytes).await.unwrap();
            assert!(read_all(&mut socket).await.is_empty());
            assert_eq!(byte_at(peers, ELSEWHERE).await, 0, "it was not written");
        },
        |seen| {
            assert_eq!(seen.requests.get(CommandKind::Disconnect), 1);
            assert_eq!(seen.sessions_ended.get(SessionEnd::Left), 3);
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn closes_its_half_and_wants_all_answers() {
    survive(
        async |peers| {
            let mut socket = peers.enter().await;
            for _ in 0..50 {
                let read = request(CommandCode::READ, ELSEWHERE, 4096);
                socket.write_all(&read).await.unwrap();
            }
            socket.shutdown().await.unwrap();
            assert_eq!(read_all(&mut socket).await.len(), 50 * (16 + 4096));
        },
        |seen| assert_eq!(seen.sessions_ended.get(SessionEnd::Left), 2),
    )
    .await;
}

async fn byte_at(peers: &Peers<'_>, offset: u64) -> u8 {
    let mut socket = peers.enter().await;
    let read = request(CommandCode::READ, offset, 1);
    socket.write_all(&read).await.unwrap();
    let mut reply = [0; 16 + 1];
    socket.read_exact(&mut reply).await.unwrap();
    reply[16]
}

fn assert_is_about(elapsed: Duration, bound: Duration) {
    assert!(
        elapsed >= bound && elapsed < bound + Duration::from_secs(60),
        "{elapsed:?}"
    );
}
