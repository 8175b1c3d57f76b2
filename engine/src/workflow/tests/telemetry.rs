//! What clients report, and what becomes of it.

use super::world::*;
use crate::*;

fn report(status: &str) -> Telemetry {
    Telemetry {
        status: status.to_owned(),
        current_phase: "transferring".to_owned(),
        progress_percent: 40.0,
        transfer_speed_bps: 1000,
        eta_seconds: 60,
        ..Telemetry::default()
    }
}

async fn tell(engine: &Engine, id: &BackupId, report: Telemetry) {
    engine.telemetry(id, report).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_are_hints_and_complete_nothing() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let started = start(&engine, RequestedType::Full).await;
    let id = &started.backup.id;
    let before = engine.backup(id).await.unwrap();
    assert_eq!(before.last_telemetry_at, None);
    assert_eq!((before.progress_percent, before.eta_seconds), (0.0, 0));
    assert_eq!(before.total_bytes, (SIZES[0] + SIZES[1]) as u64);

    world.clock.advance(time::Duration::seconds(5));
    tell(&engine, id, report("running")).await;
    let told = engine.backup(id).await.unwrap();
    assert_eq!(told.last_telemetry_at, Some(world.clock.now()));
    assert_eq!(told.current_phase, "transferring");
    assert!((told.progress_percent - 40.0).abs() < 0.01, "{told:?}");
    assert_eq!((told.transfer_speed_bps, told.eta_seconds), (1000, 60));

    // Nothing is said, and then nonsense: nothing changes, but that the client lives.
    world.clock.advance(time::Duration::seconds(5));
    let nonsense = Telemetry {
        progress_percent: f64::NEG_INFINITY,
        bytes_transferred: -1,
        total_bytes: i64::MIN,
        eta_seconds: -9,
        ..Telemetry::default()
    };
    for silent in [Telemetry::default(), nonsense] {
        tell(&engine, id, silent).await;
        let now = engine.backup(id).await.unwrap();
        let expected = Backup {
            last_telemetry_at: Some(world.clock.now()),
            ..told.clone()
        };
        assert_eq!(now, expected);
    }

    // As it comes after every disk, before the call that completes it.
    for status in ["completed", "completed", "cancelled", "nonsense"] {
        tell(&engine, id, report(status)).await;
        let now = engine.backup(id).await.unwrap();
        assert_eq!(now.status, JobStatus::Running, "{status}");
        assert!(now.progress_percent <= 100.0);
    }
    let disks = engine.backup_disks(id).await.unwrap();
    assert!(disks.iter().all(|disk| disk.status == DiskStatus::Running));
    write(&connect(&engine, &started.disks[0]).await, 0, b"x").await;
    finish(&engine, &started, 1).await;
    assert_eq!(engine.backup(id).await.unwrap().progress_percent, 100.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reported_failure_ends_the_backup() {
    let with_error = Telemetry {
        error: Some(ClientError {
            message: "snapshot is gone".to_owned(),
            code: String::new(),
        }),
        ..report("running")
    };
    let cases = [
        (report("failed"), "client reported a failure"),
        (with_error, "client reported an error: snapshot is gone"),
    ];
    for (report, reason) in cases {
        let world = World::new();
        let engine = world.open_with_vm().await;
        let started = start(&engine, RequestedType::Full).await;
        let id = &started.backup.id;
        let session = connect(&engine, &started.disks[0]).await;
        write(&session, 0, b"x").await;
        complete(&engine, id, 0, "a/1").await;
        tell(&engine, id, report.clone()).await;

        let failed = engine.backup(id).await.unwrap();
        assert_eq!(failed.status, JobStatus::Failed);
        assert_eq!(failed.error_message.as_deref(), Some(reason));
        let disks = engine.backup_disks(id).await.unwrap();
        assert_eq!(disks[1].status, DiskStatus::Failed);
        assert_eq!(disks[1].error_message.as_deref(), Some(reason));
        assert!(world.files().is_empty(), "{:?}", world.files());
        for disk in &started.disks {
            let again = try_connect(&engine, disk.export_name.as_str()).await;
            assert!(again.is_err(), "the export is closed");
        }
        // It is said again, and then the client says that all is well: the end stays as it is.
        tell(&engine, id, report).await;
        tell(&engine, id, self::report("running")).await;
        tell(&engine, id, self::report("completed")).await;
        assert_eq!(engine.backup(id).await.unwrap(), failed);
        start(&engine, RequestedType::Full).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_report_changes_nothing() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let completed = full(&engine, &disks(&mut seeded(7)), 1).await;
    let cancelled = start(&engine, RequestedType::Full).await.backup.id;
    engine.cancel_backup(&cancelled).await.unwrap();
    for id in [completed, cancelled] {
        let before = engine.backup(&id).await.unwrap();
        world.clock.advance(time::Duration::seconds(5));
        for status in ["running", "completed", "failed"] {
            tell(&engine, &id, report(status)).await;
        }
        assert_eq!(engine.backup(&id).await.unwrap(), before);
    }
    let unknown = BackupId::parse("backup-nobody-1").unwrap();
    let error = engine.telemetry(&unknown, report("running")).await;
    let error = error.unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::NotFound, "backup job not found")
    );
}
