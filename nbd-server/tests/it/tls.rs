//! Sessions in TLS over a pipe, on a paused clock: attackers on the line, clients that nobody let
//! in, and ends of every kind.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use nbd_server::proto::limits::{HANDSHAKE_TIMEOUT, IN_FLIGHT_BYTES};
use nbd_server::proto::{ClientOption, CommandCode, CommandFlags, HeaderStyle};
use nbd_server::statistics::HandshakeEnd;
use nbd_server::{Tls, TlsError, TlsPart, TlsPem, TlsServer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certificates::{Authority, Certified, Wanted};
use crate::handshake::{go, hello};
use crate::peer::{Answer, Client, GREETING, Server, pattern, settle};

const NONE: CommandFlags = CommandFlags::EMPTY;
const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// An authority, a server with its certificate, and what clients of it have.
struct World {
    authority: Authority,
    server: Certified,
    client: Certified,
}

/// What is asked of clients.
#[derive(Clone, Copy)]
enum Ask<'a> {
    Nothing,
    Certificate,
    CertificateNotIn(&'a str),
}

impl World {
    fn new() -> Self {
        let authority = Authority::new("the authority");
        let server = authority.issue(Wanted::of("the server", 1));
        let client = authority.issue(Wanted::of("node-7", 2));
        Self {
            authority,
            server,
            client,
        }
    }

    fn tls(&self, ask: Ask<'_>) -> TlsServer {
        let authority = self.authority.certificate();
        let (authorities, revoked) = match &ask {
            Ask::Nothing => (None, None),
            Ask::Certificate => (Some(&*authority), None),
            Ask::CertificateNotIn(list) => (Some(&*authority), Some(*list)),
        };
        TlsServer::from_pem(&TlsPem {
            certificates: self.server.certificate.as_bytes(),
            key: self.server.key.as_bytes(),
            client_authorities: authorities.map(str::as_bytes),
            revoked: revoked.map(str::as_bytes),
        })
        .unwrap()
    }

    /// A server that serves in TLS only.
    fn requiring(&self, ask: Ask<'_>) -> Server {
        let mut server = Server::new();
        server.tls = Tls::Require(self.tls(ask));
        server
    }

    fn connector(
        &self,
        certified: Option<&Certified>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        let authority = self.authority.certificate();
        roots
            .add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match certified {
            None => builder.with_no_client_auth(),
            Some(certified) => {
                let chain = CertificateDer::from_pem_slice(certified.certificate.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(certified.key.as_bytes()).unwrap();
                builder
                    .with_client_auth_cert(vec![chain.unwrap()], key)
                    .unwrap()
            }
        };
        TlsConnector::from(Arc::new(config))
    }

    /// A client in transmission, or why it is none.
    async fn connect_as(
        &self,
        server: &Server,
        certified: Option<&Certified>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<Client<TlsStream<DuplexStream>>, String> {
        let (socket, session) = server.pipe();
        let socket = starttls(socket).await;
        let localhost = ServerName::try_from("localhost").unwrap();
        let connecting = self.connector(certified, versions);
        let socket = connecting.connect(localhost, socket).await;
        let mut client = Client::in_tls(socket.map_err(|error| error.to_string())?, session);
        client.handshake("disk").await?;
        Ok(client)
    }

    /// A client in TLS that has asked for nothing.
    async fn connect_only(&self, server: &Server) -> (TlsStream<DuplexStream>, JoinHandle<()>) {
        let (socket, session) = server.pipe();
        let socket = starttls(socket).await;
        let localhost = ServerName::try_from("localhost").unwrap();
        let connecting = self.connector(None, BOTH).connect(localhost, socket);
        (connecting.await.unwrap(), session)
    }

    async fn connect(&self, server: &Server) -> Client<TlsStream<DuplexStream>> {
        let client = self.connect_as(server, Some(&self.client), BOTH).await;
        client.unwrap()
    }
}

/// Asks for TLS, and takes the answer.
async fn starttls(mut socket: DuplexStream) -> DuplexStream {
    let bytes = hello(3, &[ClientOption::StartTls]);
    socket.write_all(&bytes).await.unwrap();
    let mut answer = [0; 18 + 20];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer[..18], GREETING);
    assert_eq!(answer[30..], [0, 0, 0, 1, 0, 0, 0, 0], "an ACK");
    socket
}

/// The server closed without a word; nobody learned of an export.
async fn assert_nothing(mut socket: DuplexStream, session: JoinHandle<()>, server: &Server) {
    let mut rest = Vec::new();
    // Whether the rest was read or not, the connection is gone.
    let _ = socket.read_to_end(&mut rest).await;
    session.await.unwrap();
    assert_eq!(rest, b"", "nothing is said");
    assert_eq!(server.script().opened.load(SeqCst), 0, "nothing is opened");
}

#[tokio::test(start_paused = true)]
async fn in_tls_everything_is_as_without() {
    let world = World::new();
    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
        for (ask, name) in [(Ask::Nothing, None), (Ask::Certificate, Some("node-7"))] {
            let server = world.requiring(ask);
            let certified = name.map(|_| &world.client);
            let client = world.connect_as(&server, certified, versions).await;
            let mut client = client.unwrap();
            assert_eq!(client.style, HeaderStyle::Structured);
            assert_eq!(server.script().name.lock().as_deref(), name);
            let data = pattern((8 << 20) - 1);
            assert_eq!(client.write(12_345, &data).await, Answer::Done);
            let len_bytes = u32::try_from(data.len()).unwrap();
            let read = client.read(12_345, len_bytes).await.unwrap();
            assert!(read == data, "the same bytes");
            assert_eq!(client.ask(CommandCode::FLUSH, 0, 0).await, Answer::Done);
            client.assert_good().await;
            client.send(CommandCode::DISC, NONE, 0, 0).await;
            // The end is said: without that, reading fails.
            assert_eq!(client.socket.read(&mut [0]).await.unwrap(), 0);
            client.session.await.unwrap();
            assert_eq!(server.script().still_open(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn where_tls_is_offered_both_kinds_are_served() {
    let world = World::new();
    let mut server = Server::new();
    server.tls = Tls::On(world.tls(Ask::Certificate));
    server.connect().await.assert_good().await;
    server.connect_plain().await.hang_up().await;
    world.connect(&server).await.assert_good().await;
}

/// Somebody on the line takes STARTTLS out, or a client never says it.
#[tokio::test(start_paused = true)]
async fn without_tls_a_requiring_server_serves_nothing() {
    let world = World::new();
    let server = world.requiring(Ask::Nothing);
    let (socket, session) = server.pipe();
    let refused = Client::over(socket, session).handshake("disk").await;
    assert!(refused.unwrap_err().contains("TLS_REQD"));
    let (mut socket, session) = server.pipe();
    let old = hello(
        3,
        &[ClientOption::ExportName(crate::handshake::name("disk"))],
    );
    socket.write_all(&old).await.unwrap();
    socket.read_exact(&mut [0; 18]).await.unwrap();
    assert_nothing(socket, session, &server).await;
}

/// CVE-2021-3716: options that came in plaintext were carried out inside of TLS.
#[tokio::test(start_paused = true)]
async fn options_behind_starttls_are_not_carried_out() {
    let world = World::new();
    let mut server = Server::new();
    for tls in [
        Tls::On(world.tls(Ask::Nothing)),
        Tls::Require(world.tls(Ask::Nothing)),
    ] {
        server.tls = tls;
        // Together with STARTTLS: not even an answer.
        let (mut socket, session) = server.pipe();
        let bytes = hello(3, &[ClientOption::StartTls, go("disk", &[])]);
        socket.write_all(&bytes).await.unwrap();
        socket.read_exact(&mut [0; 18]).await.unwrap();
        assert_nothing(socket, session, &server).await;
        // After the answer: that is no TLS.
        let (socket, session) = server.pipe();
        let mut socket = starttls(socket).await;
        let bytes = hello(0, &[go("disk", &[])]).split_off(4);
        socket.write_all(&bytes).await.unwrap();
        let mut alert = Vec::new();
        let _ = socket.read_to_end(&mut alert).await;
        session.await.unwrap();
        assert_eq!(alert.first(), Some(&21), "an alert of TLS, if anything");
        assert_eq!(server.script().opened.load(SeqCst), 0);
    }
}

/// The other direction: what is said in plaintext is over before TLS begins, and forgotten in it.
#[tokio::test(start_paused = true)]
async fn answers_and_agreements_of_plaintext_do_not_reach_into_tls() {
    let world = World::new();
    let mut server = Server::new();
    server.tls = Tls::On(world.tls(Ask::Nothing));
    let (mut socket, session) = server.pipe();
    let bytes = hello(3, &[ClientOption::ExtendedHeaders, ClientOption::StartTls]);
    socket.write_all(&bytes).await.unwrap();
    let mut answers = [0; 18 + 20 + 20];
    socket.read_exact(&mut answers).await.unwrap();
    settle().await;
    let localhost = ServerName::try_from("localhost").unwrap();
    let connecting = world.connector(None, BOTH).connect(localhost, socket);
    let mut socket = connecting.await.unwrap();
    // Now the old way of asking is allowed again: it is not where extended headers are agreed on.
    let old = hello(
        3,
        &[ClientOption::ExportName(crate::handshake::name("disk"))],
    );
    socket.write_all(&old[4..]).await.unwrap();
    let mut told = [0; 10];
    socket.read_exact(&mut told).await.unwrap();
    assert_eq!(told[..8], crate::peer::SIZE.to_be_bytes());
    let mut client = Client::over(socket, session);
    client.send(CommandCode::READ, NONE, 0, 4096).await;
    assert_eq!(client.answer().await.1, Answer::Done, "a simple reply");
    assert_eq!(client.data(4096).await, [0; 4096][..]);
}

#[tokio::test(start_paused = true)]
async fn clients_that_nobody_knows_are_not_served() {
    let world = World::new();
    let other = Authority::new("another authority");
    let stranger = other.issue(Wanted::of("stranger", 2));
    // The name of our authority does not make it ours.
    let pretender = Authority::new("the authority").issue(Wanted::of("pretender", 2));
    let expired = world.authority.issue(Wanted {
        last_year: 2020,
        ..Wanted::of("late", 3)
    });
    let revoked = world.authority.issue(Wanted::of("lost", 4));
    let list = world.authority.revoke(&[&revoked], 2100);
    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
        for (what, certified) in [
            ("nobody", None),
            ("of another authority", Some(&stranger)),
            ("of an authority with the same name", Some(&pretender)),
            ("expired", Some(&expired)),
            ("revoked", Some(&revoked)),
        ] {
            let server = world.requiring(Ask::CertificateNotIn(&list));
            let refused = world.connect_as(&server, certified, versions).await;
            assert!(refused.is_err(), "{what}");
            assert_eq!(server.script().opened.load(SeqCst), 0, "{what}");
            settle().await;
            let ended = server.gate.statistics().handshakes_ended;
            assert_eq!(ended.get(HandshakeEnd::Tls), 1, "{what}");
            // Nobody else is hurt.
            world.connect(&server).await.assert_good().await;
        }
    }
    // Without the list the revoked one is as good as any.
    let server = world.requiring(Ask::Certificate);
    let client = world.connect_as(&server, Some(&revoked), BOTH).await;
    client.unwrap().assert_good().await;
    // A list that has expired says nothing about today.
    let old = world.authority.revoke(&[], 2021);
    let server = world.requiring(Ask::CertificateNotIn(&old));
    let refused = world.connect_as(&server, Some(&world.client), BOTH).await;
    assert!(refused.is_err());
}

#[tokio::test(start_paused = true)]
async fn garbage_is_answered_by_an_alert_and_the_end() {
    let world = World::new();
    let server = world.requiring(Ask::Nothing);
    let mut endless = vec![0x16, 3, 1, 0x40, 0];
    endless.extend(pattern(0x4000));
    for garbage in [
        vec![0; 64],
        pattern(5000),
        endless,
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let (socket, session) = server.pipe();
        let mut socket = starttls(socket).await;
        socket.write_all(&garbage).await.unwrap();
        let mut alert = Vec::new();
        let _ = socket.read_to_end(&mut alert).await;
        session.await.unwrap();
        assert!(alert.len() < 16, "an alert at most: {alert:?}");
        assert_eq!(server.script().opened.load(SeqCst), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tls_handshake_counts_in_the_one_deadline() {
    let world = World::new();
    let server = world.requiring(Ask::Nothing);
    // A record that promises more than it brings, and silence after the answer.
    for begin in [&[0x16, 3, 1, 2, 0, 1][..], b""] {
        let begun = Instant::now();
        let (socket, session) = server.pipe();
        let mut socket = starttls(socket).await;
        tokio::time::sleep(HANDSHAKE_TIMEOUT / 2).await;
        socket.write_all(begin).await.unwrap();
        session.await.unwrap();
        let took = begun.elapsed();
        let late = HANDSHAKE_TIMEOUT + Duration::from_secs(1);
        assert!(took >= HANDSHAKE_TIMEOUT && took < late, "{took:?}");
    }
    // Inside of TLS as well.
    let begun = Instant::now();
    let (_socket, session) = world.connect_only(&server).await;
    session.await.unwrap();
    assert!(begun.elapsed() < HANDSHAKE_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_does_not_wait_for_a_tls_handshake() {
    let world = World::new();
    let server = world.requiring(Ask::Nothing);
    let (socket, session) = server.pipe();
    let _socket = starttls(socket).await;
    let begun = Instant::now();
    server.stop.cancel();
    session.await.unwrap();
    assert!(begun.elapsed() < HANDSHAKE_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_cut_ends_like_a_connection_that_broke() {
    let world = World::new();
    let server = world.requiring(Ask::Nothing);
    // Between two requests, within a header, within a payload.
    for len in [0, 10, 28 + 1000] {
        let mut client = world.connect(&server).await;
        let mut request = bytes::BytesMut::new();
        let write = nbd_server::proto::Request {
            flags: NONE,
            command: CommandCode::WRITE,
            cookie: nbd_server::proto::Cookie(1),
            offset: 0,
            len_bytes: 1 << 20,
        };
        write.encode(client.style, &mut request).unwrap();
        request.resize(28 + 1000, 7);
        client.socket.write_all(&request[..len]).await.unwrap();
        client.socket.flush().await.unwrap();
        // Without the message that says the end.
        let (socket, _) = client.socket.into_inner();
        drop(socket);
        client.session.await.unwrap();
        assert_eq!(server.script().still_open(), 0, "len={len}");
        assert_eq!(server.script().calls.load(SeqCst), 0);
    }
    world.connect(&server).await.assert_good().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_the_end_is_still_answered() {
    let world = World::new();
    let server = world.requiring(Ask::Nothing);
    let mut client = world.connect(&server).await;
    server.script().writes.forget_permits(usize::MAX);
    let write = client.send(CommandCode::WRITE, NONE, 0, 512).await;
    client.socket.write_all(&[1; 512]).await.unwrap();
    client.socket.get_mut().1.send_close_notify();
    client.socket.flush().await.unwrap();
    settle().await;
    server.script().writes.add_permits(1);
    assert_eq!(client.answer().await, (write, Answer::Done));
    assert_eq!(client.socket.read(&mut [0]).await.unwrap(), 0);
    client.session.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_says_the_end() {
    let world = World::new();
    let server = world.requiring(Ask::Nothing);
    let mut client = world.connect(&server).await;
    server.stop.cancel();
    assert_eq!(client.socket.read(&mut [0]).await.unwrap(), 0);
    client.session.await.unwrap();
    // In the handshake, when the client says goodbye.
    let server = world.requiring(Ask::Nothing);
    let (mut socket, session) = world.connect_only(&server).await;
    let abort = hello(0, &[ClientOption::Abort]).split_off(4);
    socket.write_all(&abort).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer.len(), 20, "an ACK and the end");
    session.await.unwrap();
    // Reading fails where it is not said: what is above can fail.
    let (mut socket, session) = world.connect_only(&server).await;
    session.abort();
    let cut = socket.read(&mut [0]).await.unwrap_err();
    assert_eq!(cut.kind(), ErrorKind::UnexpectedEof);
}

#[tokio::test(start_paused = true)]
async fn a_client_in_tls_that_never_reads_has_bounded_memory_and_an_end() {
    let world = World::new();
    let server = world.requiring(Ask::Nothing);
    let mut client = world.connect(&server).await;
    for index in 0..500 {
        client
            .send(CommandCode::READ, NONE, index * 4096, 1 << 20)
            .await;
    }
    settle().await;
    let held = server.script().held_most.load(SeqCst);
    assert!(held > 0 && held <= IN_FLIGHT_BYTES as usize, "held={held}");
    // What is not held any more waits in TLS and in the pipe, and that is little.
    let read = server.script().read.load(SeqCst);
    assert!(read <= IN_FLIGHT_BYTES as usize + (1 << 20), "read={read}");
    server.stop.cancel();
    let Client {
        socket, session, ..
    } = client;
    session.await.unwrap();
    settle().await;
    assert_eq!(server.script().still_open(), 0);
    assert_eq!(server.script().held.load(SeqCst), 0, "nobody waits for it");
    // Nor does anybody wait for it to take the end of TLS.
    let (mut socket, _) = socket.into_inner();
    let gone = socket.write_all(&[0]).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn what_is_wrong_with_certificates_is_named() {
    let world = World::new();
    let authority = world.authority.certificate();
    let good = TlsPem {
        certificates: world.server.certificate.as_bytes(),
        key: world.server.key.as_bytes(),
        client_authorities: Some(authority.as_bytes()),
        revoked: None,
    };
    assert!(TlsServer::from_pem(&good).unwrap().verifies_clients());
    let check = |pem: TlsPem<'_>, expected: &str| {
        let error = TlsServer::from_pem(&pem).unwrap_err();
        assert_eq!(error.to_string(), expected, "{error:?}");
        error
    };
    let key = good.key;
    let certificates = good.certificates;
    let nothing = TlsPem {
        certificates: key,
        ..good
    };
    let error = check(nothing, "no server certificate found in the pem text");
    let part = TlsPart::Certificates;
    assert!(matches!(error, TlsError::Missing { part: found } if found == part));
    let nothing = TlsPem {
        key: certificates,
        ..good
    };
    check(nothing, "no server key found in the pem text");
    let nothing = TlsPem {
        client_authorities: Some(b""),
        ..good
    };
    check(
        nothing,
        "no client authority certificate found in the pem text",
    );
    let nothing = TlsPem {
        revoked: Some(certificates),
        ..good
    };
    check(nothing, "no revocation list found in the pem text");
    let other = TlsPem {
        key: world.client.key.as_bytes(),
        ..good
    };
    check(
        other,
        "server key does not belong to the server certificate",
    );
    let cut = TlsPem {
        certificates: &certificates[..certificates.len() / 2],
        ..good
    };
    check(cut, "malformed pem text of the server certificate");
    let empty = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let unusable = TlsPem {
        certificates: empty,
        ..good
    };
    check(unusable, "unusable server certificate");
    let unusable = TlsPem {
        client_authorities: Some(empty),
        ..good
    };
    check(unusable, "unusable client authority certificate");
    let empty = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let unusable = TlsPem { key: empty, ..good };
    check(unusable, "unusable server key");
    let empty = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    let unusable = TlsPem {
        revoked: Some(empty),
        ..good
    };
    check(unusable, "clients cannot be verified");
    // It holds a key, and does not tell it.
    let server = TlsServer::from_pem(&good).unwrap();
    assert_eq!(
        format!("{server:?}"),
        "TlsServer { verifies_clients: true, .. }"
    );
    assert!(Tls::Require(server.clone()).authenticates_clients());
    assert!(!Tls::On(server).authenticates_clients());
}
