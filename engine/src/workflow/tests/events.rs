//! What live views are told.

use super::world::*;
use crate::*;

/// Everything that was told so far.
async fn told(engine: &Engine, subscription: &mut Subscription) -> Vec<(BackupChange, JobStatus)> {
    // What is told from here on is the sign that everything before has been heard.
    let sign = Backup {
        vm_name: "sign".to_owned(),
        ..any_backup()
    };
    engine.hub.events.tell(BackupChange::Progress, sign);
    let mut told = Vec::new();
    loop {
        match deadline(subscription.next()).await {
            Some(Heard::Event(event)) if event.backup.vm_name == "sign" => return told,
            Some(Heard::Event(event)) => told.push((event.change, event.backup.status)),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_is_told_in_its_order() {
    use {BackupChange as C, JobStatus as S};
    let world = World::new();
    let engine = world.open_with_vm().await;
    let mut listener = engine.subscribe().unwrap();
    let started = start(&engine, RequestedType::Full).await;
    let session = connect(&engine, &started.disks[0]).await;
    write(&session, 0, b"x").await;
    finish(&engine, &started, 1).await;
    let mut expected = vec![
        (C::Started, S::Running),
        (C::DiskCompleted, S::Running),
        (C::DiskCompleted, S::Running),
        (C::Completed, S::Completed),
    ];
    // The hub's own watch may look at the job meanwhile, and tells what it sees.
    let mut heard = told(&engine, &mut listener).await;
    heard.retain(|(change, _)| *change != C::Progress);
    assert_eq!(heard, expected);

    let id = started.backup.id;
    let cancelled = start(&engine, RequestedType::Full).await.backup.id;
    engine.cancel_backup(&cancelled).await.unwrap();
    let failed = start(&engine, RequestedType::Full).await.backup.id;
    let report = Telemetry {
        status: "failed".to_owned(),
        ..Telemetry::default()
    };
    engine.telemetry(&failed, report).await.unwrap();
    engine.delete_backup(&id).await.unwrap();
    expected = vec![
        (C::Started, S::Running),
        (C::Cancelled, S::Cancelled),
        (C::Started, S::Running),
        (C::Failed, S::Failed),
        (C::Deleted, S::Completed),
    ];
    let mut heard = told(&engine, &mut listener).await;
    heard.retain(|(change, _)| *change != C::Progress);
    assert_eq!(heard, expected);
    engine.shutdown().await;
    assert_eq!(deadline(listener.next()).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_is_told_when_there_is_some() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let started = start(&engine, RequestedType::Full).await;
    let mut listener = engine.subscribe().unwrap();
    let session = connect(&engine, &started.disks[0]).await;
    for round in 1..4_usize {
        write(&session, round * 4096, &[1; 4096]).await;
        workflow::watch::look(&engine.hub).await;
        loop {
            let Some(Heard::Event(event)) = deadline(listener.next()).await else {
                panic!("an event");
            };
            assert_eq!(event.change, BackupChange::Progress);
            if event.backup.bytes_transferred == (round * 4096) as u64 {
                break;
            }
        }
    }
}
