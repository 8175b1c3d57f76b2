//! Starts that are refused, and what they leave behind: nothing.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::*;
use crate::*;

async fn refused(engine: &Engine, change: impl FnOnce(&mut StartBackup)) -> Error {
    let mut request = request(RequestedType::Full);
    change(&mut request);
    engine.start_backup(request).await.unwrap_err()
}

async fn assert_nothing_left(world: &World, engine: &Engine) {
    assert!(world.files().is_empty(), "{:?}", world.files());
    assert!(
        engine
            .backups(BackupFilter::default())
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        format!("{:?}", engine.exports()).contains("live: 0"),
        "{:?}",
        engine.exports()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unknown_is_named() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    engine.register_vm(vm("empty", &[])).await.unwrap();
    let error = refused(&engine, |request| request.vm_name = "nobody".to_owned()).await;
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::NotFound, "VM not found")
    );
    let error = refused(&engine, |request| {
        request.policy_id = PolicyId::parse("nothing").ok();
    })
    .await;
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::NotFound, "Policy not found")
    );
    let error = refused(&engine, |request| request.vm_name = "empty".to_owned()).await;
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::NotFound, "No disks found for VM")
    );
    let nowhere = RepositoryId::parse("nowhere").unwrap();
    let error = refused(&engine, |request| request.repository_id = nowhere).await;
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::NotFound, "repository not found")
    );
    let error = refused(&engine, |request| {
        request.backup_type = RequestedType::Incremental;
    })
    .await;
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::NoParent, "no previous backup found")
    );
    let error = refused(&engine, |request| request.transfer = Transfer::Node).await;
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::Invalid, "VM context missing credential_id")
    );
    assert_nothing_left(&world, &engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_has_one_running_backup() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let started = start(&engine, RequestedType::Full).await;
    let error = refused(&engine, |_| {}).await;
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(
        error.details.contains(started.backup.id.as_str()),
        "{error}"
    );
    // The running one did not suffer.
    write(&connect(&engine, &started.disks[0]).await, 0, b"x").await;
    finish(&engine, &started, 1).await;
    start(&engine, RequestedType::Full).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_starts_have_one_winner() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let starts: Vec<_> = (0..6)
        .map(|_| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.start_backup(request(RequestedType::Full)).await })
        })
        .collect();
    let mut won = Vec::new();
    for start in starts {
        match start.await.unwrap() {
            Ok(started) => won.push(started),
            Err(error) => assert_eq!(error.kind, ErrorKind::Conflict, "{error}"),
        }
    }
    assert_eq!(won.len(), 1);
    write(&connect(&engine, &won[0].disks[0]).await, 0, b"x").await;
    finish(&engine, &won[0], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auto_says_why_it_is_a_full() {
    let mut random = seeded(20);
    let world = World::new();
    let engine = world.open_with_vm().await;
    let started = start(&engine, RequestedType::Auto).await;
    assert_eq!(started.backup.backup_type, BackupType::Full);
    assert_eq!(
        started.backup.type_reason.as_deref(),
        Some("no_previous_backup")
    );
    engine.cancel_backup(&started.backup.id).await.unwrap();
    full(&engine, &disks(&mut random), 1).await;
    let started = start(&engine, RequestedType::Auto).await;
    assert_eq!(started.backup.backup_type, BackupType::Incremental);
}

/// A VM that a node can read.
async fn engine_with_node(world: &World, node_url: String) -> Engine {
    let config = EngineConfig {
        node_url,
        ..world.config()
    };
    let engine = Engine::open(config, world.clock.clone()).await.unwrap();
    let credential = NewCredential {
        credential_name: "vc".to_owned(),
        vcenter_host: "vc.example".to_owned(),
        username: "backup".to_owned(),
        password: "s3cret".to_owned(),
        datacenter: "DC".to_owned(),
    };
    let credential = engine.add_credential(credential).await.unwrap();
    let vm = NewVm {
        credential_id: Some(credential.id),
        ..vm(VM, &SIZES)
    };
    engine.register_vm(vm).await.unwrap();
    engine
}

const WELL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const REFUSAL: &str = "HTTP/1.1 500 Oops\r\ncontent-length: 4\r\nconnection: close\r\n\r\nnope";
const ACCEPTED: &str = "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Answers one call for each answer, in order, and returns what was asked last.
async fn node(answers: &'static [&str]) -> (String, tokio::task::JoinHandle<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            asked.clear();
            let whole = |asked: &[u8]| match asked.starts_with(b"GET") {
                true => asked.ends_with(b"\r\n\r\n"),
                false => asked.ends_with(b"}"),
            };
            while !whole(&asked) {
                assert_ne!(stream.read_buf(&mut asked).await.unwrap(), 0);
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        String::from_utf8(asked).unwrap()
    });
    (url, served)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_told_the_ten_fields() {
    let world = World::new();
    let (url, served) = node(&[WELL, ACCEPTED]).await;
    let engine = engine_with_node(&world, url).await;
    let started = engine
        .start_backup(StartBackup {
            transfer: Transfer::Node,
            ..request(RequestedType::Full)
        })
        .await
        .unwrap();
    let asked = served.await.unwrap();
    let (head, body) = asked.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("POST /api/v1/backup/start HTTP/1.1"),
        "{head}"
    );
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let id = &started.backup.id;
    let targets =
        format!("2000:nbd://127.0.0.1:10809/{id}-disk0,2001:nbd://127.0.0.1:10809/{id}-disk1");
    let expected = serde_json::json!({
        "job_id": id.as_str(), "vm_name": VM, "vcenter_host": "vc.example", "vcenter_user": "backup",
        "vcenter_password": "s3cret", "vm_path": format!("/DC/vm/{VM}"), "nbd_host": "127.0.0.1",
        "nbd_targets": targets, "backup_type": "full", "previous_change_id": "PLACEHOLDER",
    });
    assert_eq!(body, expected);
    assert_eq!(started.nbd_targets, targets);
    connect(&engine, &started.disks[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_refuses_or_is_not_there_undoes_the_start() {
    let world = World::new();
    let (url, served) = node(&[WELL, REFUSAL]).await;
    let engine = engine_with_node(&world, url).await;
    let request = StartBackup {
        transfer: Transfer::Node,
        ..request(RequestedType::Full)
    };
    let error = engine.start_backup(request.clone()).await.unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::NodeRefused, "SNA API error")
    );
    assert!(
        error.details.contains("status: 500") && error.details.contains("nope"),
        "{error}"
    );
    served.await.unwrap();
    assert_nothing_left(&world, &engine).await;
    let error = engine.start_backup(request).await.unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::NodeUnreachable, "failed to call SNA API")
    );
    assert!(!format!("{error:?}").contains("s3cret"));
    assert_nothing_left(&world, &engine).await;
    start(&engine, RequestedType::Full).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_well_is_not_told_to_start() {
    let world = World::new();
    let (url, served) = node(&[REFUSAL]).await;
    let engine = engine_with_node(&world, url).await;
    let request = StartBackup {
        transfer: Transfer::Node,
        ..request(RequestedType::Full)
    };
    let error = engine.start_backup(request).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NodeRefused);
    assert!(error.details.contains("health status: 500"), "{error}");
    assert!(
        served
            .await
            .unwrap()
            .starts_with("GET /api/v1/health HTTP/1.1")
    );
    assert_nothing_left(&world, &engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_vcenter_is_read_by_its_own_node() {
    const UNKNOWN: &str =
        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let world = World::new();
    // Older nodes do not know the question for their health.
    let (url, served) = node(&[UNKNOWN, ACCEPTED]).await;
    let engine = engine_with_node(&world, "http://127.0.0.1:9".to_owned()).await;
    engine.shutdown().await;
    drop(engine);
    let config = EngineConfig {
        vcenter_node_urls: [("VC.EXAMPLE".to_owned(), url)].into(),
        ..world.config()
    };
    let engine = Engine::open(config, world.clock.clone()).await.unwrap();
    let request = StartBackup {
        transfer: Transfer::Node,
        ..request(RequestedType::Full)
    };
    engine.start_backup(request).await.unwrap();
    assert!(served.await.unwrap().starts_with("POST"));
}

#[tokio::test]
async fn a_private_export_has_a_name_that_its_backup_does_not_tell() {
    let world = World::new();
    let config = EngineConfig {
        private_exports: true,
        ..world.config()
    };
    let engine = Engine::open(config, world.clock.clone()).await.unwrap();
    engine.register_vm(vm(VM, &SIZES)).await.unwrap();
    let mut names = std::collections::HashSet::new();
    for _ in 0..2 {
        let started = start(&engine, RequestedType::Full).await;
        for disk in &started.disks {
            let name = disk.export_name.as_str();
            assert!(!name.contains(started.backup.id.as_str()), "{name}");
            assert!(
                name.ends_with(&format!("-disk{}", disk.disk_index)),
                "{name}"
            );
            assert!(started.nbd_targets.contains(name) && disk.nbd_url.ends_with(name));
            assert!(names.insert(name.to_owned()), "{name}");
        }
        engine.cancel_backup(&started.backup.id).await.unwrap();
    }
}
