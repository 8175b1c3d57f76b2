//! More connections than there is room for, and what is counted of all that.

use std::sync::Arc;
use std::time::Duration;

use nbd_server::exports::{MemoryExport, SingleExport};
use nbd_server::proto::{CommandCode, CommandFlags, ErrorCode};
use nbd_server::statistics::{CommandKind, ErrorKind, ExportRefusal, HandshakeEnd, SessionEnd};
use nbd_server::{Gate, ListenAddress, Listener, Peer, ServerLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::peer::{Answer, Client, SIZE, Server, pattern, settle};

const NONE: CommandFlags = CommandFlags::EMPTY;

fn few_handshakes(handshakes: u32) -> Server {
    Server::with_limits(ServerLimits {
        handshakes,
        ..ServerLimits::default()
    })
}

#[tokio::test(start_paused = true)]
async fn the_oldest_silent_connection_goes_for_a_newcomer() {
    let server = few_handshakes(3);
    let mut idle = server.connect().await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(server.pipe());
    }
    settle().await;
    assert_eq!(server.gate.statistics().handshaking, 3);

    let mut newcomer = server.connect().await;
    let (mut socket, session) = silent.remove(0);
    let mut greeting = Vec::new();
    socket.read_to_end(&mut greeting).await.unwrap();
    assert_eq!(greeting.len(), 18);
    session.await.unwrap();
    newcomer.assert_good().await;
    idle.assert_good().await;

    let statistics = server.gate.statistics();
    assert_eq!(
        statistics.handshakes_ended.get(HandshakeEnd::Evicted),
        1,
        "{statistics:?}"
    );
    assert_eq!((statistics.handshaking, statistics.sessions), (2, 2));
    // The others have their time, and no more.
    for (mut socket, session) in silent {
        socket.read_to_end(&mut greeting).await.unwrap();
        session.await.unwrap();
    }
    let statistics = server.gate.statistics();
    assert_eq!(statistics.handshakes_ended.get(HandshakeEnd::TimedOut), 2);
    assert_eq!(statistics.handshaking, 0);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_silent_connections_keeps_nobody_out() {
    let server = few_handshakes(64);
    let mut idle = server.connect().await;
    let begin = tokio::time::Instant::now();
    let mut silent = Vec::new();
    for _ in 0..2000 {
        silent.push(server.pipe());
    }
    server.connect().await.assert_good().await;
    idle.assert_good().await;
    settle().await;
    let statistics = server.gate.statistics();
    assert_eq!(statistics.handshaking, 63, "one place went to the client");
    assert_eq!(
        statistics.handshakes_ended.get(HandshakeEnd::Evicted),
        2000 - 63
    );
    assert!(
        begin.elapsed() < Duration::from_secs(15),
        "nobody waited for a timeout"
    );
}

#[tokio::test(start_paused = true)]
async fn an_evicted_client_closes_what_it_had_opened() {
    let server = few_handshakes(1);
    let (mut first, session) = server.pipe();
    // It asks about the export, and is about to go on.
    first
        .write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x06\0\0\0\x0a\0\0\0\x04disk\0\0")
        .await
        .unwrap();
    settle().await;
    server.connect().await.assert_good().await;
    session.await.unwrap();
    settle().await;
    assert_eq!(server.script().still_open(), 0);
}

#[tokio::test(start_paused = true)]
async fn sessions_have_a_bound_of_their_own() {
    let server = Server::with_limits(ServerLimits {
        sessions: 2,
        ..ServerLimits::default()
    });
    let (first, mut second) = (server.connect().await, server.connect().await);
    let (socket, session) = server.pipe();
    let mut third = Client::over(socket, session);
    let refused = third.handshake("disk").await.unwrap_err();
    assert!(
        refused.contains("too many connections to this server"),
        "{refused}"
    );
    first.hang_up().await;
    server.connect().await.assert_good().await;
    second.assert_good().await;
    let refused = server.gate.statistics().exports_refused;
    // It asked for the contexts, then for the export.
    assert_eq!(refused.get(ExportRefusal::ServerFull), 2);
    assert_eq!(refused.total(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_counted_from_its_first_byte_to_its_last() {
    let server = Server::new();
    let (socket, session) = server.pipe();
    let mut client = Client::over(socket, session);
    assert_eq!(server.gate.statistics().handshaking, 1);
    let unknown = client.handshake("nowhere").await.unwrap_err();
    assert!(unknown.contains("unknown export"), "{unknown}");
    client.hang_up().await;

    let mut client = server.connect().await;
    assert_eq!(client.write(0, &pattern(1 << 20)).await, Answer::Done);
    client.read(4096, 4096).await.unwrap();
    let beyond = client.ask(CommandCode::READ, SIZE, 1).await;
    assert_eq!(beyond, Answer::Failed(ErrorCode::INVAL));
    let unknown = client.ask(CommandCode(4711), 0, 0).await;
    assert_eq!(unknown, Answer::Failed(ErrorCode::INVAL));
    server.script().writes.forget_permits(usize::MAX);
    client.send(CommandCode::WRITE, NONE, 0, 512).await;
    client.socket.write_all(&[1; 512]).await.unwrap();
    settle().await;
    let statistics = server.gate.statistics();
    assert_eq!(statistics.requests_in_flight, 1);
    assert_eq!(statistics.held_bytes, 512);
    server.script().writes.add_permits(100);
    client.answer().await;
    client.send(CommandCode::DISC, NONE, 0, 0).await;
    client.assert_closed().await;

    let statistics = server.gate.statistics();
    assert_eq!(statistics.accepted, 2);
    assert_eq!(statistics.handshakes_ended.get(HandshakeEnd::Left), 1);
    assert_eq!(statistics.exports_refused.get(ExportRefusal::Unknown), 2);
    assert_eq!(statistics.sessions_begun, 1);
    assert_eq!(statistics.sessions_ended.get(SessionEnd::Left), 1);
    let requests = &statistics.requests;
    assert_eq!(requests.get(CommandKind::Write), 2);
    assert_eq!(requests.get(CommandKind::Read), 2);
    assert_eq!(requests.get(CommandKind::Other), 1);
    assert_eq!(requests.get(CommandKind::Disconnect), 1);
    assert_eq!(requests.total(), 6);
    assert_eq!(statistics.errors.get(ErrorKind::Inval), 2);
    assert_eq!(statistics.errors.total(), 2);
    assert_eq!(statistics.received_bytes, (1 << 20) + 512);
    assert!(
        statistics.sent_bytes >= 4096 && statistics.sent_bytes < 5000,
        "the data, and the texts of two errors: {}",
        statistics.sent_bytes
    );
    let now = [
        statistics.handshaking,
        statistics.sessions,
        statistics.requests_in_flight,
        statistics.held_bytes,
    ];
    assert_eq!(now, [0; 4], "nothing is left");
}

/// Two listeners behind one gate have one room.
#[tokio::test]
async fn listeners_that_share_a_gate_share_its_room() {
    let gate = Gate::new(ServerLimits {
        handshakes: 2,
        ..ServerLimits::default()
    });
    let stop = CancellationToken::new();
    let exports = Arc::new(SingleExport::new("disk", MemoryExport::new(SIZE)));
    let (mut ports, mut serving) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let any = ListenAddress::Tcp(([127, 0, 0, 1], 0).into());
        let listener = Listener::bind(&any).await.unwrap().with_gate(gate.clone());
        let ListenAddress::Tcp(address) = listener.local_address() else {
            unreachable!("it was bound to TCP")
        };
        ports.push(address);
        serving.push(tokio::spawn(
            listener.serve(Arc::clone(&exports), stop.clone()),
        ));
    }
    let mut silent = Vec::new();
    for port in [ports[0], ports[1], ports[0]] {
        let mut socket = TcpStream::connect(port).await.unwrap();
        // Its greeting tells that it was accepted.
        socket.read_exact(&mut [0; 18]).await.unwrap();
        silent.push(socket);
    }
    assert_eq!(silent[0].read(&mut [0]).await.unwrap(), 0, "evicted");
    let statistics = gate.statistics();
    assert_eq!(statistics.accepted, 3);
    assert_eq!(statistics.handshakes_ended.get(HandshakeEnd::Evicted), 1);
    stop.cancel();
    for serving in serving {
        serving.await.unwrap();
    }
    assert_eq!(
        gate.statistics()
            .handshakes_ended
            .get(HandshakeEnd::Stopped),
        2
    );
}

#[test]
fn limits_follow_from_the_descriptors() {
    let check = |descriptors: u64, sessions: u32, handshakes: u32| {
        let limits = ServerLimits::default().within_descriptors(descriptors);
        assert_eq!(
            (limits.sessions, limits.handshakes),
            (sessions, handshakes),
            "descriptors={descriptors}"
        );
    };
    check(u64::MAX, 16_384, 4096);
    check(65_536, 16_384, 4096);
    check(20_000, 11_250, 3750);
    check(1024, 576, 192);
    check(0, 1, 1);
}

#[test]
fn a_peer_has_an_address_if_it_came_over_tcp() {
    let check = |address: &str, ip: Option<&str>| {
        let peer = Peer {
            address: address.to_owned(),
            name: None,
        };
        assert_eq!(peer.ip(), ip.map(|ip| ip.parse().unwrap()), "{address}");
    };
    check("10.0.0.1:4711", Some("10.0.0.1"));
    check("[2001:db8::1]:80", Some("2001:db8::1"));
    // One machine, whichever way it came.
    check("[::ffff:10.0.0.1]:80", Some("10.0.0.1"));
    check("unix", None);
}
