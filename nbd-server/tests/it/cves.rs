//! What went wrong in other NBD servers and clients, tried on ours.
//!
//! | id             | in         | what went wrong                                                | here |
//! |----------------|------------|----------------------------------------------------------------|------|
//! | CVE-2005-3534  | nbd-server | a long READ overran its buffer by the reply's header           | `cve_2005_3534_a_read_as_long_as_its_buffer` |
//! | CVE-2011-0530  | nbd-server | a long request overran the buffer of the main loop (the same, come back) | `cve_2011_0530_a_write_as_long_as_its_buffer` |
//! | CVE-2011-1925  | nbd-server | an unknown export in the negotiation crashed the server        | `cve_2011_1925_an_unknown_export` |
//! | CVE-2013-6410  | nbd-server | addresses were compared by their prefix                        | `cve_2013_6410_addresses_are_compared_whole`; we have no list of addresses, but limits by address |
//! | CVE-2013-7441  | nbd-server | closing within the negotiation ended the root process          | `cve_2013_7441_closing_within_the_negotiation` |
//! | CVE-2015-0847  | nbd-server | unsafe work in a signal handler: a deadlock when children ended | `cve_2015_0847_many_sessions_end_at_once`; we have no children and no handlers |
//! | CVE-2017-2630  | qemu, client | a long option reply overran the stack                        | `cve_2017_2630_a_long_option_reply` |
//! | CVE-2017-7539  | qemu-nbd   | unexpected data in the negotiation failed an assertion         | `cve_2017_7539_unexpected_data_in_the_negotiation` |
//! | CVE-2017-9524  | qemu-nbd   | a client that was gone before it was initialised crashed it    | `cve_2017_9524_gone_before_the_greeting` |
//! | CVE-2017-15118 | qemu-nbd   | an export name longer than its buffer on the stack             | `cve_2017_15118_long_export_names` |
//! | CVE-2017-15119 | qemu-nbd   | options of 4 GiB were read away, at the server's cost          | `cve_2017_15119_options_of_four_gigabytes` |
//! | CVE-2019-14850 | nbdkit     | the back end was opened before the client had asked for it     | `cve_2019_14850_nothing_is_opened_unasked` |
//! | CVE-2019-14851 | nbdkit     | INFO followed by another option failed an assertion            | `cve_2019_14851_info_and_then_something_else` |
//! | CVE-2020-10761 | qemu-nbd   | the error text about a name of 4096 bytes failed an assertion  | `cve_2020_10761_the_text_about_a_long_name` |
//! | CVE-2021-3716  | nbdkit     | options sent before TLS counted within it                      | `what_follows_starttls_in_plaintext_is_never_heard`, with the other tests of STARTTLS |
//! | CVE-2021-20286 | libnbd     | a server that hung up on an option failed an assertion         | `cve_2021_20286_a_server_that_hangs_up` |
//! | CVE-2022-26495 | nbd-server | a name length of 2^32 - 1 made a buffer of no bytes            | `cve_2022_26495_a_name_length_that_overflows` |
//! | CVE-2022-26496 | nbd-server | a name longer than the option overran the stack                | `cve_2022_26496_a_name_longer_than_its_option` |
//! | CVE-2023-5215  | libnbd     | sizes of 2^63 and more came out negative                       | `cve_2023_5215_a_size_that_is_no_signed_number` |
//! | CVE-2023-5871  | libnbd     | a malformed block status failed an assertion                   | `cve_2023_5871_a_malformed_block_status` |
//! | CVE-2024-7383  | libnbd     | the server's certificate was not verified                      | `cve_2024_7383_a_reply_to_another_question`; our client has no TLS yet, so only that a stranger's reply is not taken |
//! | CVE-2024-7409  | qemu-nbd   | clients that kept sockets open while the server stopped crashed it; nothing bounded them | `cve_2024_7409_stopping_with_clients_everywhere` |

use std::sync::atomic::Ordering::SeqCst;

use bytes::BytesMut;
use nbd_server::proto::client::{ClientGoal, ClientHandshake, ClientStep, Replies, ReplyEvent};
use nbd_server::proto::limits::{MAX_PAYLOAD_BYTES, MAX_STRING_BYTES, PIECE_BYTES};
use nbd_server::proto::{
    CommandCode, CommandFlags, ErrorCode, ExportName, HeaderStyle, ProtocolError, ReplyCode,
};
use nbd_server::statistics::HandshakeEnd;
use nbd_server::{Peer, ServerLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::misbehaving::peers::{CHOOSE, FLAGS, about, garbage, option, read_all};
use crate::peer::{Answer, SIZE, Server, pattern, settle};

const NONE: CommandFlags = CommandFlags::EMPTY;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;

#[test]
fn every_row_of_the_table_has_its_test() {
    let text = concat!(include_str!("cves.rs"), include_str!("starttls.rs"));
    let rows: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("//! | CVE-"))
        .collect();
    assert!(rows.len() >= 22);
    for row in rows {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let expected = format!("cve_{}_", cells[0].replace('-', "_"));
        let named = cells[3].split('`').nth(1).unwrap();
        let of_tls = cells[0] == "2021-3716";
        assert!(of_tls || named.starts_with(&expected), "{row}");
        assert!(text.contains(&format!("fn {named}()")), "{named}");
    }
}

/// A connection that has heard the greeting and sent its flags.
async fn greeted(server: &Server) -> DuplexStream {
    let (mut socket, _) = server.pipe();
    socket.read_exact(&mut [0; 18]).await.unwrap();
    socket.write_all(FLAGS).await.unwrap();
    socket
}

/// One option and the code of its last answer, with that answer's text.
async fn ask(socket: &mut DuplexStream, option: &[u8]) -> (ReplyCode, Vec<u8>) {
    socket.write_all(option).await.unwrap();
    loop {
        let mut header = [0; 20];
        socket.read_exact(&mut header).await.unwrap();
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let (code, len) = (ReplyCode(word(12)), word(16));
        let mut text = vec![0; len as usize];
        socket.read_exact(&mut text).await.unwrap();
        if code.is_error() || code == ReplyCode::ACK {
            return (code, text);
        }
    }
}

/// The connection is good enough to choose the export.
async fn assert_still_negotiates(mut socket: DuplexStream) {
    socket.write_all(CHOOSE).await.unwrap();
    let mut told = [0; 10];
    socket.read_exact(&mut told).await.unwrap();
    assert_eq!(told[..8], SIZE.to_be_bytes());
}

async fn assert_still_serves(server: &Server) {
    let mut client = server.connect().await;
    client.assert_good().await;
    client.hang_up().await;
}

#[tokio::test(start_paused = true)]
async fn cve_2005_3534_a_read_as_long_as_its_buffer() {
    let server = Server::new();
    let mut writer = server.connect().await;
    let data = pattern(3 * PIECE_BYTES as usize);
    assert_eq!(writer.write(0, &data).await, Answer::Done);
    let mut client = server.connect_plain().await;
    for around in [4096, 16 << 10, PIECE_BYTES, 2 * PIECE_BYTES] {
        for len in [around - 16, around - 1, around, around + 1, around + 16] {
            client.send(CommandCode::READ, NONE, 0, len.into()).await;
            assert_eq!(client.answer().await.1, Answer::Done, "len={len}");
            assert!(client.data(len as usize).await == data[..len as usize]);
        }
    }
    for len in [MAX_PAYLOAD_BYTES + 1, u32::MAX - 15, u32::MAX] {
        let answer = client.ask(CommandCode::READ, 0, len.into()).await;
        assert!(matches!(answer, Answer::Failed(_)), "len={len} {answer:?}");
    }
    assert_eq!(client.ask(CommandCode::FLUSH, 0, 0).await, Answer::Done);
}

#[tokio::test(start_paused = true)]
async fn cve_2011_0530_a_write_as_long_as_its_buffer() {
    let server = Server::new();
    let mut client = server.connect().await;
    let zeroes = vec![0; 3 * PIECE_BYTES as usize];
    let data = pattern(zeroes.len());
    for around in [4096, 16 << 10, PIECE_BYTES, 2 * PIECE_BYTES] {
        for len in [around - 28, around - 1, around, around + 1, around + 28] {
            assert_eq!(client.write(0, &zeroes).await, Answer::Done);
            let len = len as usize;
            assert_eq!(client.write(0, &data[..len]).await, Answer::Done);
            let all = client.read(0, 3 * PIECE_BYTES).await.unwrap();
            assert!(all[..len] == data[..len], "len={len}");
            assert!(all[len..].iter().all(|byte| *byte == 0), "len={len}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn cve_2011_1925_an_unknown_export() {
    let server = Server::new();
    let mut socket = greeted(&server).await;
    let unknown = option(1, 7, b"nowhere");
    socket.write_all(&unknown).await.unwrap();
    assert!(read_all(&mut socket).await.is_empty(), "closed");
    assert_still_serves(&server).await;
}

#[tokio::test(start_paused = true)]
async fn cve_2013_6410_addresses_are_compared_whole() {
    let server = Server::with_limits(ServerLimits {
        handshakes_per_address: 1,
        ..ServerLimits::default()
    });
    let evicted = || {
        let ended = server.gate.statistics().handshakes_ended;
        ended.get(HandshakeEnd::Evicted)
    };
    let from = |address: &str| {
        server.pipe_from(Peer {
            address: address.to_owned(),
            name: None,
        })
    };
    let _kept = [
        from("10.0.0.1:4711"),
        from("10.0.0.10:4711"),
        from("110.0.0.1:4711"),
        from("[10::]:4711"),
    ];
    settle().await;
    assert_eq!(evicted(), 0);
    let _second = from("10.0.0.1:4712");
    settle().await;
    assert_eq!(evicted(), 1);
}

#[tokio::test(start_paused = true)]
async fn cve_2013_7441_closing_within_the_negotiation() {
    let server = Server::new();
    let mut script = FLAGS.to_vec();
    script.extend(option(STRUCTURED_REPLY, 0, &[]));
    script.extend(about(INFO, b"disk"));
    script.extend(about(GO, b"nowhere"));
    for cut in 0..script.len() {
        let (mut socket, session) = server.pipe();
        socket.write_all(&script[..cut]).await.unwrap();
        drop(socket);
        session.await.unwrap();
    }
    assert_still_serves(&server).await;
    settle().await;
    assert_eq!(server.script().still_open(), 0);
    assert_eq!(server.gate.statistics().handshaking, 0);
}

#[tokio::test(start_paused = true)]
async fn cve_2015_0847_many_sessions_end_at_once() {
    let server = Server::new();
    for _ in 0..5 {
        let mut clients = Vec::new();
        for _ in 0..60 {
            clients.push(server.connect().await);
        }
        let sessions: Vec<_> = clients
            .into_iter()
            .map(|client| (client.socket, client.session))
            .map(|(socket, session)| {
                drop(socket);
                session
            })
            .collect();
        assert_still_serves(&server).await;
        for session in sessions {
            session.await.unwrap();
        }
    }
    settle().await;
    assert_eq!(server.gate.statistics().sessions, 0);
}

#[tokio::test(start_paused = true)]
async fn cve_2017_7539_unexpected_data_in_the_negotiation() {
    let server = Server::new();
    for seed in 1..200 {
        let (mut socket, session) = server.pipe();
        if seed % 2 == 0 {
            socket.write_all(FLAGS).await.unwrap();
        }
        if seed % 4 == 0 {
            socket.write_all(&about(INFO, b"disk")).await.unwrap();
        }
        // The session may have closed before it was all sent.
        let _ = socket.write_all(&garbage(seed, 64)).await;
        drop(socket);
        session.await.unwrap();
    }
    assert_still_serves(&server).await;
}

#[tokio::test(start_paused = true)]
async fn cve_2017_9524_gone_before_the_greeting() {
    let server = Server::new();
    for talks in [false, true] {
        let (mut socket, session) = server.pipe();
        if talks {
            // Nobody has read anything yet, and the session has not begun to run.
            socket.write_all(FLAGS).await.unwrap();
            socket.write_all(CHOOSE).await.unwrap();
        }
        drop(socket);
        session.await.unwrap();
    }
    assert_still_serves(&server).await;
    settle().await;
    assert_eq!(server.script().still_open(), 0);
}

#[tokio::test(start_paused = true)]
async fn cve_2017_15118_long_export_names() {
    let server = Server::new();
    for code in [INFO, GO, LIST_META_CONTEXT, SET_META_CONTEXT] {
        let mut socket = greeted(&server).await;
        if code >= LIST_META_CONTEXT {
            let agreed = ask(&mut socket, &option(STRUCTURED_REPLY, 0, &[])).await;
            assert_eq!(agreed.0, ReplyCode::ACK);
        }
        for len in [
            255,
            256,
            257,
            4095,
            4096,
            4097,
            8192,
            16_000,
            17_000,
            1 << 20,
        ] {
            let name = vec![b'x'; len];
            // Two queries of no bytes instead of two wishes: the same four zeroes at the end.
            let mut bytes = about(code, &name);
            if code >= LIST_META_CONTEXT {
                let len = u32::try_from(len + 8).unwrap();
                bytes[12..16].copy_from_slice(&len.to_be_bytes());
                bytes.extend([0, 0]);
            }
            let (answer, _) = ask(&mut socket, &bytes).await;
            let expected = if len <= MAX_STRING_BYTES {
                ReplyCode::ERR_UNKNOWN
            } else if len <= 16_000 {
                ReplyCode::ERR_INVALID
            } else {
                ReplyCode::ERR_TOO_BIG
            };
            assert_eq!(answer, expected, "code={code} len={len}");
        }
        assert_still_negotiates(socket).await;
    }
    for len in [256, 4097] {
        let mut socket = greeted(&server).await;
        let name = vec![b'x'; len];
        let choose = option(1, u32::try_from(len).unwrap(), &name);
        socket.write_all(&choose).await.unwrap();
        assert!(read_all(&mut socket).await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn cve_2017_15119_options_of_four_gigabytes() {
    let server = Server::new();
    for code in [1, ABORT, LIST, 5, INFO, GO, SET_META_CONTEXT, 99] {
        let (mut socket, session) = server.pipe();
        socket.read_exact(&mut [0; 18]).await.unwrap();
        socket.write_all(FLAGS).await.unwrap();
        socket
            .write_all(&option(code, u32::MAX, &[]))
            .await
            .unwrap();
        // Closed on the header alone: not one byte of it is waited for.
        assert!(read_all(&mut socket).await.is_empty(), "code={code}");
        session.await.unwrap();
    }
    let ended = server.gate.statistics().handshakes_ended;
    assert_eq!(ended.get(HandshakeEnd::Protocol), 8, "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn cve_2019_14850_nothing_is_opened_unasked() {
    let server = Server::new();
    let mut socket = greeted(&server).await;
    let opened = || server.script().opened.load(SeqCst);
    ask(&mut socket, &option(LIST, 0, &[])).await;
    ask(&mut socket, &option(STRUCTURED_REPLY, 0, &[])).await;
    ask(&mut socket, &about(INFO, b"nowhere")).await;
    ask(&mut socket, &option(GO, 4, &[0xff; 4])).await;
    assert_eq!(opened(), 0);
    ask(&mut socket, &about(INFO, b"disk")).await;
    assert_eq!(opened(), 1);
    assert_eq!(server.script().still_open(), 0, "and closed at once");
}

#[tokio::test(start_paused = true)]
async fn cve_2019_14851_info_and_then_something_else() {
    let server = Server::new();
    let before: [&[Vec<u8>]; 5] = [
        &[about(INFO, b"disk")],
        &[about(INFO, b"disk"), about(INFO, b"disk")],
        &[about(INFO, b"disk"), about(INFO, b"nowhere")],
        &[about(INFO, b"nowhere"), about(GO, b"nowhere")],
        &[
            option(LIST, 0, &[]),
            about(INFO, b"disk"),
            option(99, 0, &[]),
        ],
    ];
    for options in before {
        let mut socket = greeted(&server).await;
        for bytes in options {
            ask(&mut socket, bytes).await;
        }
        assert_eq!(
            ask(&mut socket, &about(GO, b"disk")).await.0,
            ReplyCode::ACK
        );
        assert_eq!(server.script().still_open(), 1);
        drop(socket);
        settle().await;

        let mut socket = greeted(&server).await;
        for bytes in options {
            ask(&mut socket, bytes).await;
        }
        assert_still_negotiates(socket).await;
        settle().await;
        assert_eq!(server.script().still_open(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn cve_2020_10761_the_text_about_a_long_name() {
    let server = Server::new();
    let mut socket = greeted(&server).await;
    // Quotes and newlines grow when they are shown.
    for name in [vec![b'x'; 4096], vec![b'"'; 4096], vec![b'\n'; 4096]] {
        let (code, text) = ask(&mut socket, &about(GO, &name)).await;
        assert_eq!(code, ReplyCode::ERR_UNKNOWN);
        assert!(text.len() <= MAX_STRING_BYTES, "len={}", text.len());
    }
    assert_still_negotiates(socket).await;
}

#[tokio::test(start_paused = true)]
async fn cve_2022_26495_a_name_length_that_overflows() {
    let server = Server::new();
    let mut socket = greeted(&server).await;
    ask(&mut socket, &option(STRUCTURED_REPLY, 0, &[])).await;
    for code in [INFO, GO, LIST_META_CONTEXT, SET_META_CONTEXT] {
        for len in [u32::MAX, u32::MAX - 1, u32::MAX - 3, 1 << 31] {
            let mut payload = len.to_be_bytes().to_vec();
            payload.extend(b"disk\0\0\0\0");
            let bytes = option(code, 12, &payload);
            let (answer, _) = ask(&mut socket, &bytes).await;
            assert_eq!(answer, ReplyCode::ERR_INVALID, "code={code} len={len}");
        }
    }
    assert_still_negotiates(socket).await;
}

#[tokio::test(start_paused = true)]
async fn cve_2022_26496_a_name_longer_than_its_option() {
    let server = Server::new();
    let mut socket = greeted(&server).await;
    ask(&mut socket, &option(STRUCTURED_REPLY, 0, &[])).await;
    for code in [INFO, GO, LIST_META_CONTEXT, SET_META_CONTEXT] {
        for len in [5_u32, 9, 1024, 1025, 4096, 65_536] {
            let mut payload = len.to_be_bytes().to_vec();
            payload.extend(b"disk");
            let bytes = option(code, 8, &payload);
            let (answer, _) = ask(&mut socket, &bytes).await;
            assert_eq!(answer, ReplyCode::ERR_INVALID, "code={code} len={len}");
        }
    }
    assert_still_negotiates(socket).await;
}

#[tokio::test(start_paused = true)]
async fn cve_2024_7409_stopping_with_clients_everywhere() {
    let server = Server::new();
    let (mut sockets, mut sessions) = (Vec::new(), Vec::new());
    let mut half_a_write = FLAGS.to_vec();
    half_a_write.extend(CHOOSE);
    half_a_write.extend([0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1]);
    for bytes in [&[][..], FLAGS, &half_a_write[..20], &half_a_write] {
        for _ in 0..10 {
            let (mut socket, session) = server.pipe();
            socket.write_all(bytes).await.unwrap();
            sockets.push(socket);
            sessions.push(session);
        }
    }
    settle().await;
    let begin = tokio::time::Instant::now();
    server.stop.cancel();
    for session in sessions {
        session.await.unwrap();
    }
    assert_eq!(begin.elapsed().as_secs(), 0, "nobody was waited for");
    drop(sockets);
    let statistics = server.gate.statistics();
    assert_eq!((statistics.handshaking, statistics.sessions), (0, 0));
    assert_eq!(server.script().still_open(), 0);
}

/// A client that wants to use the export, and has heard this.
fn client_hears(bytes: &[u8]) -> Result<ClientStep, ProtocolError> {
    let mut handshake = ClientHandshake::new(ClientGoal::Use {
        name: ExportName::new("disk").unwrap(),
        contexts: Vec::new(),
        extended_headers: false,
    });
    handshake.step(&mut BytesMut::from(bytes))
}

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";
const REPLY_MAGIC: [u8; 8] = 0x0003_e889_0455_65a9_u64.to_be_bytes();

fn option_reply(option: u32, code: ReplyCode, len: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = REPLY_MAGIC.to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(code.0.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// What a server says that gives the export; the size is its own.
fn all_that_a_server_says(size_bytes: u64) -> Vec<u8> {
    let mut info = vec![0, 0];
    info.extend(size_bytes.to_be_bytes());
    info.extend([0, 1]);
    let mut bytes = GREETING.to_vec();
    bytes.extend(option_reply(STRUCTURED_REPLY, ReplyCode::ACK, 0, &[]));
    bytes.extend(option_reply(GO, ReplyCode::INFO, 12, &info));
    bytes.extend(option_reply(GO, ReplyCode::ACK, 0, &[]));
    bytes
}

#[test]
fn cve_2017_2630_a_long_option_reply() {
    for len in [65_537, 1 << 20, u32::MAX] {
        let mut bytes = GREETING.to_vec();
        bytes.extend(option_reply(
            STRUCTURED_REPLY,
            ReplyCode::ERR_UNSUP,
            len,
            &[],
        ));
        let heard = client_hears(&bytes);
        assert!(heard.is_err(), "len={len} {heard:?}");
    }
}

#[test]
fn cve_2021_20286_a_server_that_hangs_up() {
    let bytes = all_that_a_server_says(SIZE);
    for cut in 0..bytes.len() {
        let heard = client_hears(&bytes[..cut]);
        // More is wanted, whose end the caller sees; nothing is taken for granted.
        assert!(
            matches!(heard, Ok(ClientStep::NeedBytes(_))),
            "cut={cut} {heard:?}"
        );
    }
    assert!(matches!(client_hears(&bytes), Ok(ClientStep::Ready(_))));
}

#[test]
fn cve_2023_5215_a_size_that_is_no_signed_number() {
    for size_bytes in [1 << 63, u64::MAX] {
        let heard = client_hears(&all_that_a_server_says(size_bytes));
        let Ok(ClientStep::Ready(remote)) = heard else {
            panic!("{heard:?}")
        };
        assert_eq!(remote.size_bytes, size_bytes, "a number without a sign");
    }
}

#[test]
fn cve_2023_5871_a_malformed_block_status() {
    // Magic, flags DONE, type BLOCK_STATUS, cookie, length, then a context and part of a run.
    for len in [0_u32, 1, 4, 5, 11, 13, u32::MAX] {
        let mut bytes = 0x668e_33ef_u32.to_be_bytes().to_vec();
        bytes.extend([0, 1, 0, 5]);
        bytes.extend(1_u64.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.resize(20 + usize::try_from(len.min(64)).unwrap(), 0xff);
        let mut input = BytesMut::from(&bytes[..]);
        let event = Replies::new(HeaderStyle::Structured).next(&mut input);
        assert!(event.is_err(), "len={len} {event:?}");
    }
    // An error whose text is longer than the chunk.
    let mut bytes = 0x668e_33ef_u32.to_be_bytes().to_vec();
    bytes.extend([0, 1, 0x80, 1]);
    bytes.extend(1_u64.to_be_bytes());
    bytes.extend(6_u32.to_be_bytes());
    bytes.extend(ErrorCode::IO.0.to_be_bytes());
    bytes.extend([0xff, 0xff]);
    let mut input = BytesMut::from(&bytes[..]);
    let event: Result<ReplyEvent, _> = Replies::new(HeaderStyle::Structured).next(&mut input);
    assert!(event.is_err(), "{event:?}");
}

#[test]
fn cve_2024_7383_a_reply_to_another_question() {
    for option in [LIST, GO, INFO, 5] {
        let mut bytes = GREETING.to_vec();
        bytes.extend(option_reply(option, ReplyCode::ACK, 0, &[]));
        let heard = client_hears(&bytes);
        assert!(heard.is_err(), "option={option} {heard:?}");
    }
}
