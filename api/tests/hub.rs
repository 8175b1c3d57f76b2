//! A hub in this process: how it starts, and how it does not.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use api::hub::{self, ServeConfig, StartError};
use engine::{ListenAddress, NewToken, Role, SystemClock, Tokens};

#[tokio::test]
async fn addresses_that_others_reach_need_insecure_said_out_loud() {
    let data = tempfile::tempdir().unwrap();
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let api = ServeConfig {
        api: everywhere,
        ..ServeConfig::ephemeral(data.path())
    };
    let nbd = ServeConfig {
        nbd: vec![ListenAddress::Tcp(everywhere).into()],
        ..ServeConfig::ephemeral(data.path())
    };
    for (config, named) in [(api, "api"), (nbd, "nbd")] {
        match hub::start(config).await {
            Err(StartError::Exposed {
                listener, address, ..
            }) => {
                assert_eq!((listener, address), (named, everywhere));
            }
            Err(other) => panic!("{named}: {other}"),
            Ok(_) => panic!("{named}: started"),
        }
    }
    assert_eq!(
        std::fs::read_dir(data.path()).unwrap().count(),
        0,
        "nothing was made"
    );
}

#[tokio::test]
async fn an_api_that_others_reach_needs_a_token_and_asks_for_it() {
    let data = tempfile::tempdir().unwrap();
    let config = || ServeConfig {
        api: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        ..ServeConfig::ephemeral(data.path())
    };
    let strict = ServeConfig {
        require_tokens: true,
        ..config()
    };
    let hub = hub::start(strict).await.unwrap();
    let url = format!(
        "http://127.0.0.1:{}/api/v1/backups",
        hub.api_address().port()
    );
    assert_eq!(reqwest::get(&url).await.unwrap().status().as_u16(), 401);
    hub.stop().await;

    assert!(
        hub::start(config()).await.is_err(),
        "a database, but no token"
    );
    let tokens = Tokens::open(data.path(), None, Arc::new(SystemClock))
        .await
        .unwrap();
    let new = NewToken {
        name: "ops".to_owned(),
        role: Role::Operator,
        job: None,
    };
    tokens.create(&new).await.unwrap();
    tokens.close().await;
    let hub = hub::start(config()).await.unwrap();
    let url = format!(
        "http://127.0.0.1:{}/api/v1/backups",
        hub.api_address().port()
    );
    assert_eq!(
        reqwest::get(&url).await.unwrap().status().as_u16(),
        200,
        "this machine is trusted"
    );
    hub.stop().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_and_nothing_is_made() {
    let data = tempfile::tempdir().unwrap();
    let holder = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = holder.local_addr().unwrap();
    let config = ServeConfig {
        api: taken,
        ..ServeConfig::ephemeral(data.path())
    };
    match hub::start(config).await {
        Err(StartError::Bind { address, .. }) => assert_eq!(address, taken.to_string()),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("started"),
    }
    assert_eq!(
        std::fs::read_dir(data.path()).unwrap().count(),
        0,
        "nothing was made"
    );
}

#[tokio::test]
async fn a_hub_needs_a_listener_and_something_to_advertise() {
    let data = tempfile::tempdir().unwrap();
    let none = ServeConfig {
        nbd: Vec::new(),
        ..ServeConfig::ephemeral(data.path())
    };
    assert!(matches!(
        hub::start(none).await,
        Err(StartError::NoNbdListener)
    ));
    let unix = ServeConfig {
        nbd: vec![ListenAddress::Unix(data.path().join("nbd.sock")).into()],
        ..ServeConfig::ephemeral(data.path())
    };
    assert!(matches!(
        hub::start(unix).await,
        Err(StartError::NothingToAdvertise)
    ));
}

#[tokio::test]
async fn a_hub_answers_on_both_ports_until_it_is_stopped() {
    let data = tempfile::tempdir().unwrap();
    let config = ServeConfig::ephemeral(data.path());
    let hub = hub::start(config).await.unwrap();
    let health = format!("{}/health", hub.api_url());
    let answer = reqwest::get(&health).await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);

    let ListenAddress::Tcp(nbd) = hub.nbd_addresses()[0] else {
        panic!("a TCP listener")
    };
    assert_eq!(hub.nbd_url(), format!("nbd://{nbd}"));
    let mut greeting = [0; 8];
    let mut socket = tokio::net::TcpStream::connect(nbd).await.unwrap();
    tokio::io::AsyncReadExt::read_exact(&mut socket, &mut greeting)
        .await
        .unwrap();
    assert_eq!(&greeting, b"NBDMAGIC");

    let api = hub.api_address();
    hub.stop().await;
    assert!(
        tokio::net::TcpStream::connect(api).await.is_err(),
        "REST accepts after stop"
    );
    assert!(
        tokio::net::TcpStream::connect(nbd).await.is_err(),
        "NBD accepts after stop"
    );

    let again = ServeConfig {
        api,
        ..ServeConfig::ephemeral(data.path())
    };
    hub::start(again).await.unwrap().stop().await;
}

/// What the hub answers when a client asks for extended headers (NBD proto, "Option reply").
async fn answer_to_extended_headers(hub: &hub::RunningHub) -> u32 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let ListenAddress::Tcp(nbd) = hub.nbd_addresses()[0] else {
        panic!("a TCP listener")
    };
    let mut socket = tokio::net::TcpStream::connect(nbd).await.unwrap();
    let asked = b"\0\0\0\x03IHAVEOPT\0\0\0\x0b\0\0\0\0";
    socket.write_all(asked).await.unwrap();
    let mut answer = [0; 18 + 16];
    socket.read_exact(&mut answer).await.unwrap();
    u32::from_be_bytes(answer[30..].try_into().unwrap())
}

#[tokio::test]
async fn extended_headers_can_be_switched_off() {
    for (extended_headers, expected) in [(true, 1), (false, 0x8000_0001)] {
        let data = tempfile::tempdir().unwrap();
        let config = ServeConfig {
            extended_headers,
            ..ServeConfig::ephemeral(data.path())
        };
        let hub = hub::start(config).await.unwrap();
        assert_eq!(answer_to_extended_headers(&hub).await, expected);
        hub.stop().await;
    }
}
