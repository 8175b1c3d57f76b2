//! Peers that misbehave before they have an export.

use std::time::Duration;

use nbd_server::proto::limits::{MAX_CONNECTIONS_PER_EXPORT, MAX_OPTIONS};
use nbd_server::statistics::{ExportRefusal, HandshakeEnd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::peers::{CHOOSE, FLAGS, about, drip, garbage, option, read_all};
use super::survive;

const LIST: u32 = 3;
const INFO: u32 = 6;
const GO: u32 = 7;

#[tokio::test(start_paused = true)]
async fn says_nothing() {
    survive(
        async |peers| {
            let mut socket = peers.connect();
            assert_eq!(read_all(&mut socket).await.len(), 18, "the greeting");
        },
        |seen| assert_eq!(seen.handshakes_ended.get(HandshakeEnd::TimedOut), 1),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn says_one_byte_a_second() {
    survive(
        async |peers| {
            let mut socket = peers.connect();
            let mut bytes = FLAGS.to_vec();
            bytes.extend(CHOOSE);
            drip(&mut socket, &bytes, Duration::from_secs(1)).await;
            read_all(&mut socket).await;
        },
        |seen| assert_eq!(seen.handshakes_ended.get(HandshakeEnd::TimedOut), 1),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn stops_within_an_option() {
    survive(
        async |peers| {
            for len in 1..CHOOSE.len() {
                let mut socket = peers.connect();
                socket.write_all(FLAGS).await.unwrap();
                socket.write_all(&CHOOSE[..len]).await.unwrap();
                read_all(&mut socket).await;
            }
        },
        |seen| {
            let timed_out = seen.handshakes_ended.get(HandshakeEnd::TimedOut);
            assert_eq!(timed_out, CHOOSE.len() as u64 - 1);
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn closes_its_half_within_an_option() {
    survive(
        async |peers| {
            let mut socket = peers.connect();
            socket.write_all(FLAGS).await.unwrap();
            socket.write_all(&CHOOSE[..10]).await.unwrap();
            socket.shutdown().await.unwrap();
            assert_eq!(read_all(&mut socket).await.len(), 18);
        },
        |seen| assert_eq!(seen.handshakes_ended.get(HandshakeEnd::Left), 1),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn asks_for_listings_without_end() {
    survive(
        async |peers| {
            let mut socket = peers.connect();
            socket.write_all(FLAGS).await.unwrap();
            socket.read_exact(&mut [0; 18]).await.unwrap();
            let mut answer = [0; (20 + 4 + 4) + 20];
            for _ in 0..MAX_OPTIONS {
                socket.write_all(&option(LIST, 0, &[])).await.unwrap();
                socket.read_exact(&mut answer).await.unwrap();
            }
            let _ = socket.write_all(&option(LIST, 0, &[])).await;
            assert!(read_all(&mut socket).await.is_empty(), "enough");
        },
        |seen| assert_eq!(seen.handshakes_ended.get(HandshakeEnd::Protocol), 1),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn asks_and_never_reads() {
    survive(
        async |peers| {
            let mut socket = peers.connect();
            socket.write_all(FLAGS).await.unwrap();
            // Fewer than are allowed, and longer answers than the pipe holds.
            let names = "x".repeat(1000);
            for _ in 0..MAX_OPTIONS - 1 {
                let ask = about(INFO, names.as_bytes());
                if socket.write_all(&ask).await.is_err() {
                    break;
                }
            }
            peers.all_sessions_end().await;
        },
        |seen| assert_eq!(seen.handshakes_ended.get(HandshakeEnd::TimedOut), 1),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn announces_an_option_of_four_gigabytes() {
    survive(
        async |peers| {
            for code in [1, LIST, INFO, GO, 10, 4711] {
                let mut socket = peers.connect();
                socket.write_all(FLAGS).await.unwrap();
                let huge = option(code, u32::MAX, &[0; 64]);
                let _ = socket.write_all(&huge).await;
                assert_eq!(read_all(&mut socket).await.len(), 18);
            }
        },
        |seen| assert_eq!(seen.handshakes_ended.get(HandshakeEnd::Protocol), 6),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn announces_a_long_option_and_sends_nothing() {
    survive(
        async |peers| {
            let mut socket = peers.connect();
            socket.write_all(FLAGS).await.unwrap();
            socket.write_all(&option(GO, 32 << 20, &[])).await.unwrap();
            read_all(&mut socket).await;
        },
        |seen| assert_eq!(seen.handshakes_ended.get(HandshakeEnd::TimedOut), 1),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn sends_garbage_instead_of_flags() {
    survive(
        async |peers| {
            for seed in 1..=32 {
                let mut socket = peers.connect();
                let _ = socket.write_all(&[0xff]).await;
                let _ = socket.write_all(&garbage(seed, 200)).await;
                read_all(&mut socket).await;
            }
        },
        |seen| assert_eq!(seen.handshakes_ended.get(HandshakeEnd::Protocol), 32),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn sends_garbage_instead_of_an_option() {
    survive(
        async |peers| {
            for seed in 1..=32 {
                let mut socket = peers.connect();
                socket.write_all(FLAGS).await.unwrap();
                let _ = socket.write_all(&garbage(seed, 200)).await;
                read_all(&mut socket).await;
            }
        },
        |seen| assert_eq!(seen.handshakes_ended.get(HandshakeEnd::Protocol), 32),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn sends_garbage_within_an_option() {
    survive(
        async |peers| {
            let mut socket = peers.connect();
            socket.write_all(FLAGS).await.unwrap();
            for seed in 1..=32 {
                for code in [INFO, GO, 9, 10] {
                    let bytes = garbage(seed, 40);
                    socket.write_all(&option(code, 40, &bytes)).await.unwrap();
                }
            }
            // Each was refused, and the connection is as good as before.
            socket.write_all(CHOOSE).await.unwrap();
            socket.shutdown().await.unwrap();
            let answers = read_all(&mut socket).await;
            assert_eq!(
                answers[answers.len() - 10..][..8],
                (128_u64 << 20).to_be_bytes()
            );
        },
        |seen| {
            assert_eq!(seen.handshakes_ended.total(), 0);
            assert_eq!(seen.sessions_begun, 2);
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn asks_for_many_exports_that_are_not_there() {
    survive(
        async |peers| {
            let mut socket = peers.connect();
            socket.write_all(FLAGS).await.unwrap();
            let (mut reader, mut writer) = tokio::io::split(socket);
            let reading = tokio::spawn(async move {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).await.unwrap();
                all.len()
            });
            for number in 0..1000 {
                let name = format!("no-{number}");
                writer.write_all(&about(GO, name.as_bytes())).await.unwrap();
            }
            // ABORT
            writer.write_all(&option(2, 0, &[])).await.unwrap();
            let read = reading.await.unwrap();
            assert!(read > 1000 * 20, "each was answered, len={read}");
        },
        |seen| {
            assert_eq!(seen.exports_refused.get(ExportRefusal::Unknown), 1000);
            assert_eq!(seen.handshakes_ended.get(HandshakeEnd::Left), 1);
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn enters_an_export_more_often_than_it_may() {
    let extra = 10;
    survive(
        async |peers| {
            let mut inside = Vec::new();
            // The well-behaved client has one place.
            for _ in 1..MAX_CONNECTIONS_PER_EXPORT {
                inside.push(peers.enter().await);
            }
            for _ in 0..extra {
                let mut socket = peers.connect();
                socket.write_all(FLAGS).await.unwrap();
                socket.write_all(CHOOSE).await.unwrap();
                assert_eq!(read_all(&mut socket).await.len(), 18, "no place");
            }
        },
        |seen| {
            assert_eq!(seen.exports_refused.get(ExportRefusal::ExportFull), extra);
            assert_eq!(seen.handshakes_ended.get(HandshakeEnd::Left), extra);
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn connects_and_closes_thousands_of_times() {
    survive(
        async |peers| {
            for round in 0..5000 {
                let mut socket = peers.connect();
                if round % 2 == 0 {
                    socket.write_all(FLAGS).await.unwrap();
                }
            }
            peers.all_sessions_end().await;
        },
        |seen| {
            assert_eq!(seen.accepted, 5000 + 1);
            assert_eq!(seen.handshakes_ended.total(), 5000);
        },
    )
    .await;
}
