//! URIs, and a connection to servers that misbehave.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nbd_server::proto::{
    ClientOption, HeaderStyle, Info, OptionCode, OptionHeader, OptionReply, Request,
    TransmissionFlags,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

const SIZE: u64 = 1 << 20;

#[test]
fn uris_are_understood() {
    let check = |text: &str, address: Address, export: &str| {
        let uri: NbdUri = text.parse().unwrap();
        assert_eq!(
            (uri.address, uri.export.as_str()),
            (address, export),
            "{text}"
        );
    };
    let tcp = |host: &str, port| Address::Tcp(host.to_owned(), port);
    check(
        "nbd://127.0.0.1:10101/vm-disk0",
        tcp("127.0.0.1", 10101),
        "vm-disk0",
    );
    check("nbd://hub", tcp("hub", 10809), "");
    check("nbd://hub/", tcp("hub", 10809), "");
    check("nbd://hub/a/b%20c%25", tcp("hub", 10809), "a/b c%");
    check("nbd://[::1]:99/x", tcp("::1", 99), "x");
    check("nbd://[fe80::2]/x", tcp("fe80::2", 10809), "x");
    check(
        "nbd+unix:///x?socket=/run/s%3d",
        Address::Unix("/run/s=".into()),
        "x",
    );
    for bad in [
        "",
        "hub:10809",
        "http://hub/x",
        "nbd:///x",
        "nbd://hub:99999/x",
        "nbd://hub:/x",
        "nbd://u@hub/x",
        "nbd://hub/%4",
        "nbd://hub/%zz",
        "nbd://hub/%ff",
        "nbd://[::1/x",
        "nbd+unix:///x",
        "nbds://hub/x",
        "nbd+unix://hub/x?socket=/s",
    ] {
        assert!(bad.parse::<NbdUri>().is_err(), "{bad}");
    }
}

/// The server's end of a connection whose handshake is over; the test writes the replies itself.
struct Server(DuplexStream);

impl Server {
    /// Goes through the handshake with a client.
    async fn meet() -> (Connection, Self) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let connecting = Connection::over(near, "test", "x", ConnectOptions::default());
        let (connection, server) = tokio::join!(connecting, Self::handshake(far));
        (connection.unwrap(), server)
    }

    async fn handshake(mut stream: DuplexStream) -> Self {
        stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03").await.unwrap();
        let mut flags = [0; 4];
        stream.read_exact(&mut flags).await.unwrap();
        loop {
            let mut header = [0; OptionHeader::BYTES];
            stream.read_exact(&mut header).await.unwrap();
            let header = OptionHeader::parse(&header).unwrap();
            let mut payload = vec![0; usize::try_from(header.len_bytes).unwrap()];
            stream.read_exact(&mut payload).await.unwrap();
            let option = ClientOption::parse(header.code, &payload).unwrap();
            let mut out = BytesMut::new();
            if matches!(option, ClientOption::Go(_)) {
                let flags = TransmissionFlags::HAS_FLAGS
                    .with(TransmissionFlags::SEND_FLUSH)
                    .with(TransmissionFlags::CAN_MULTI_CONN);
                let size_bytes = SIZE;
                OptionReply::Info(Info::Export { size_bytes, flags })
                    .encode(OptionCode::GO, &mut out);
            }
            OptionReply::Ack.encode(header.code, &mut out);
            stream.write_all(&out).await.unwrap();
            if header.code == OptionCode::GO {
                return Self(stream);
            }
        }
    }

    async fn request(&mut self) -> Request {
        let style = HeaderStyle::Structured;
        let mut bytes = vec![0; style.request_bytes()];
        self.0.read_exact(&mut bytes).await.unwrap();
        let request = Request::parse(style, &bytes).unwrap();
        let payload_bytes = request.payload_bytes(style).unwrap();
        let mut payload = vec![0; usize::try_from(payload_bytes).unwrap()];
        self.0.read_exact(&mut payload).await.unwrap();
        request
    }

    async fn send(&mut self, parts: &[&[u8]]) {
        // Byte by byte: no boundary of the stream may mean anything.
        for byte in parts.concat() {
            self.0.write_all(&[byte]).await.unwrap();
        }
    }
}

fn simple(error: u32, cookie: u64) -> Vec<u8> {
    let magic = 0x6744_6698_u32.to_be_bytes();
    [&magic[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

fn chunk(done: bool, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [
        &0x668e_33ef_u32.to_be_bytes()[..],
        &u16::from(done).to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &len.to_be_bytes(),
        payload,
    ]
    .concat()
}

fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], bytes].concat()
}

fn hole(offset: u64, len: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
}

const DATA: u16 = 1;
const HOLE: u16 = 2;
const ERROR: u16 = 0x8001;

#[tokio::test]
async fn a_read_may_come_in_parts_in_any_order() {
    let (connection, mut server) = Server::meet().await;
    let serving = async {
        let request = server.request().await;
        let id = request.cookie.0;
        server
            .send(&[&chunk(false, DATA, id, &data(104, &[4; 4]))])
            .await;
        server.send(&[&chunk(false, HOLE, id, &hole(108, 4))]).await;
        server
            .send(&[&chunk(true, DATA, id, &data(100, &[1; 4]))])
            .await;
        // And one in the old form.
        let request = server.request().await;
        server.send(&[&simple(0, request.cookie.0), &[7; 3]]).await;
    };
    let reading = async {
        let parts = connection.read(100, 12).await.unwrap();
        (parts, connection.read(0, 3).await.unwrap())
    };
    let ((parts, old_form), ()) = tokio::join!(reading, serving);
    assert_eq!(parts[..], [1, 1, 1, 1, 4, 4, 4, 4, 0, 0, 0, 0]);
    assert_eq!(old_form[..], [7, 7, 7]);
}

#[tokio::test]
async fn replies_in_another_order_find_their_requests() {
    let (connection, mut server) = Server::meet().await;
    let serving = async {
        let (first, second) = (server.request().await, server.request().await);
        let text = [&28_u32.to_be_bytes()[..], &4_u16.to_be_bytes(), b"full"].concat();
        server
            .send(&[&chunk(true, ERROR, second.cookie.0, &text)])
            .await;
        server.send(&[&simple(0, first.cookie.0)]).await;
    };
    let (first, second, ()) = tokio::join!(
        connection.write(0, Bytes::from_static(&[1; 512])),
        connection.write(512, Bytes::from_static(&[2; 512])),
        serving
    );
    first.unwrap();
    let text = second.unwrap_err().to_string();
    assert_eq!(
        text,
        "the server answered WRITE with ENOSPC offset=512 len=512 text=\"full\""
    );
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_left() {
    type Reply = fn(u64) -> Vec<u8>;
    let cases: [(&str, Reply); 9] = [
        ("bad magic", |_| vec![0xff; 16]),
        ("no request", |id| simple(0, id + 1)),
        ("outside the request", |id| {
            chunk(true, DATA, id, &data(99, &[1; 4]))
        }),
        ("outside the request", |id| {
            chunk(true, DATA, id, &data(106, &[1; 4]))
        }),
        ("outside the request", |id| {
            chunk(true, HOLE, id, &hole(100, u32::MAX))
        }),
        ("incomplete", |id| {
            chunk(true, DATA, id, &data(100, &[1; 4]))
        }),
        ("incomplete", |id| chunk(true, 0, id, &[])),
        ("closed", |_| Vec::new()),
        ("cannot receive", |id| {
            chunk(true, DATA, id, &data(100, &[1; 8]))[..30].to_vec()
        }),
    ];
    for (index, (expected, reply)) in cases.into_iter().enumerate() {
        let (connection, mut server) = Server::meet().await;
        let serving = async move {
            let request = server.request().await;
            server.send(&[&reply(request.cookie.0)]).await;
            // Closing is the last thing it does.
            drop(server);
        };
        let (result, ()) = tokio::join!(connection.read(100, 8), serving);
        let error = result.unwrap_err();
        assert!(
            matches!(error, NbdError::Closed { .. }),
            "case {index}: {error}"
        );
        assert!(
            error.to_string().contains(expected),
            "case {index}: {error}"
        );
        let after = connection.flush().await.unwrap_err();
        assert!(
            matches!(after, NbdError::Closed { .. }),
            "case {index}: {after}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up_in_the_end() {
    let (connection, mut server) = Server::meet().await;
    let started = tokio::time::Instant::now();
    let (result, _request) = tokio::join!(connection.read(0, 8), server.request());
    let error = result.unwrap_err();
    assert!(
        matches!(error, NbdError::Timeout { seconds: 300, .. }),
        "{error}"
    );
    assert!(started.elapsed() >= Duration::from_secs(300));
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_does_not_disturb_the_others() {
    let (connection, mut server) = Server::meet().await;
    {
        let mut abandoned = std::pin::pin!(connection.read(0, 8));
        let request = tokio::select! {
            _ = &mut abandoned => panic!("answered by nobody"),
            request = server.request() => request,
        };
        assert_eq!(request.len_bytes, 8);
        server
            .send(&[&chunk(true, DATA, request.cookie.0, &data(0, &[9; 8]))])
            .await;
    }
    let serving = async {
        let request = server.request().await;
        server
            .send(&[&chunk(true, DATA, request.cookie.0, &data(8, &[5; 4]))])
            .await;
    };
    let (read, ()) = tokio::join!(connection.read(8, 4), serving);
    assert_eq!(read.unwrap()[..], [5; 4]);
}

#[tokio::test]
async fn what_cannot_be_asked_is_not_asked() {
    let (connection, mut server) = Server::meet().await;
    for error in [
        connection.read(SIZE, 1).await.unwrap_err(),
        connection.read(u64::MAX, 1).await.unwrap_err(),
        connection
            .write(SIZE - 1, Bytes::from_static(&[1; 2]))
            .await
            .unwrap_err(),
        connection.write_zeroes(0, 512, false).await.unwrap_err(),
        connection.trim(0, 512).await.unwrap_err(),
        connection
            .block_status(0, 512)
            .await
            .map(|_| ())
            .unwrap_err(),
    ] {
        assert!(matches!(error, NbdError::Invalid { .. }), "{error}");
    }
    // The first thing that the server hears is the farewell.
    let (request, ()) = tokio::join!(
        async {
            let request = server.request().await;
            drop(server);
            request
        },
        connection.disconnect()
    );
    assert_eq!(request.command, nbd_server::proto::CommandCode::DISC);
}
