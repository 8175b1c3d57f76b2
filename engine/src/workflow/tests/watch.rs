//! Clients that die, as the hub sees them (legacy client, error paths), and those that only look like it.

use std::time::Duration;

use nbd_server::Export;

use super::world::*;
use crate::limits::{GONE_GRACE, STALL_TIMEOUT, START_TIMEOUT};
use crate::workflow::watch::{give_up, look};
use crate::*;

const STEP: Duration = Duration::from_secs(30);

/// Lets time pass, with looks at the running backups as the hub takes them.
async fn pass(world: &World, engine: &Engine, time: Duration) {
    let mut left = time;
    while !left.is_zero() {
        let step = left.min(STEP);
        left -= step;
        world.clock.advance(step.try_into().unwrap());
        for (job, silence) in look(&engine.hub).await {
            give_up(&engine.hub, &job, silence).await;
        }
    }
}

/// The backup runs until `limit` is over and has failed then, with `reason`; nothing of it is left, and the VM can be backed
/// up again.
async fn assert_given_up(
    world: &World,
    engine: &Engine,
    started: &StartedBackup,
    limit: Duration,
    reason: &str,
) {
    let id = &started.backup.id;
    pass(world, engine, limit - STEP).await;
    let before = engine.backup(id).await.unwrap();
    assert_eq!(before.status, JobStatus::Running, "{before:?}");
    pass(world, engine, 2 * STEP).await;
    let failed = engine.backup(id).await.unwrap();
    assert_eq!(failed.status, JobStatus::Failed);
    assert_eq!(failed.intent, None);
    let told = failed.error_message.unwrap();
    assert!(told.starts_with(reason), "{told}");
    for disk in engine.backup_disks(id).await.unwrap() {
        match disk.status {
            DiskStatus::Failed => assert_eq!(disk.error_message.as_ref(), Some(&told)),
            status => assert_eq!(status, DiskStatus::Completed, "{disk:?}"),
        }
    }
    assert!(world.files().is_empty(), "{:?}", world.files());
    assert!(
        format!("{:?}", engine.exports()).contains("live: 0"),
        "{:?}",
        engine.exports()
    );
    start(engine, RequestedType::Full).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_fails_before_it_connects() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let started = start(&engine, RequestedType::Full).await;
    assert_given_up(
        &world,
        &engine,
        &started,
        START_TIMEOUT,
        "client never came",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_gives_up_after_a_refused_write() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let started = start(&engine, RequestedType::Full).await;
    let session = connect(&engine, &started.disks[1]).await;
    // Beyond the end of the disk: the image refuses it and stays good.
    let beyond = session
        .write(SIZES[1] as u64 + 4096, bytes::Bytes::from_static(b"x"))
        .await;
    beyond.unwrap_err();
    drop(session);
    // The look that notices the end of the connection comes first.
    pass(&world, &engine, STEP).await;
    assert_given_up(&world, &engine, &started, GONE_GRACE, "client is gone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let started = start(&engine, RequestedType::Full).await;
    let sessions = [
        connect(&engine, &started.disks[0]).await,
        connect(&engine, &started.disks[0]).await,
    ];
    write(&sessions[1], 0, b"x").await;
    pass(&world, &engine, STALL_TIMEOUT - 2 * STEP).await;
    drop(sessions);
    pass(&world, &engine, STEP).await;
    assert_given_up(&world, &engine, &started, GONE_GRACE, "client is gone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_after_a_refused_completion() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let started = start(&engine, RequestedType::Full).await;
    let id = &started.backup.id;
    let session = connect(&engine, &started.disks[0]).await;
    write(&session, 0, b"x").await;
    complete(&engine, id, 0, "a/1").await;
    let refused = engine.complete_disk(completion(id, 0, "b/1")).await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Conflict);
    drop(session);
    pass(&world, &engine, STEP).await;
    assert_given_up(&world, &engine, &started, GONE_GRACE, "client is gone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_terminated_in_the_middle() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let started = start(&engine, RequestedType::Full).await;
    let id = &started.backup.id;
    let first = connect(&engine, &started.disks[0]).await;
    write(&first, 0, b"x").await;
    complete(&engine, id, 0, "a/1").await;
    let second = connect(&engine, &started.disks[1]).await;
    write(&second, 0, b"x").await;
    engine.telemetry(id, Telemetry::default()).await.unwrap();
    drop((first, second));
    pass(&world, &engine, STEP).await;
    assert_given_up(&world, &engine, &started, GONE_GRACE, "client is gone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_with_open_connections() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let started = start(&engine, RequestedType::Full).await;
    let session = connect(&engine, &started.disks[0]).await;
    write(&session, 0, b"x").await;
    pass(&world, &engine, STEP).await;
    assert_given_up(&world, &engine, &started, STALL_TIMEOUT, "client stalled").await;
    deadline(session.withdrawn()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_sign_keeps_a_backup_alive() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let started = start(&engine, RequestedType::Full).await;
    let id = &started.backup.id;
    let is_running = async |what: &str| {
        let backup = engine.backup(id).await.unwrap();
        assert_eq!(backup.status, JobStatus::Running, "{what}");
    };
    // Nothing but questions, then nothing but reports, each just before it would be too late.
    pass(&world, &engine, START_TIMEOUT - STEP).await;
    for _ in 0..3 {
        engine.change_id(VM, DiskIndex::new(0)).await.unwrap();
        pass(&world, &engine, STALL_TIMEOUT - STEP).await;
        engine
            .change_id("elsewhere", DiskIndex::new(0))
            .await
            .unwrap();
    }
    for _ in 0..3 {
        engine.telemetry(id, Telemetry::default()).await.unwrap();
        pass(&world, &engine, STALL_TIMEOUT - STEP).await;
    }
    is_running("calls").await;
    // A connection without traffic is normal while another disk is sent; so is a pause between two disks.
    let idle = connect(&engine, &started.disks[1]).await;
    for round in 0..6_u8 {
        let session = connect(&engine, &started.disks[0]).await;
        write(&session, 0, &[round; 512]).await;
        pass(&world, &engine, STALL_TIMEOUT - STEP).await;
    }
    is_running("traffic").await;
    drop(idle);
    for _ in 0..3 {
        drop(connect(&engine, &started.disks[1]).await);
        pass(&world, &engine, GONE_GRACE - STEP).await;
    }
    is_running("pauses").await;
    // The clock is set a year ahead, and back.
    engine.change_id(VM, DiskIndex::new(0)).await.unwrap();
    for year in [365, -365] {
        world.clock.advance(time::Duration::days(year));
        assert!(look(&engine.hub).await.is_empty());
    }
    finish(&engine, &started, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_is_measured_and_recorded_at_intervals() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let started = start(&engine, RequestedType::Full).await;
    let id = &started.backup.id;
    let session = connect(&engine, &started.disks[0]).await;
    write(&session, 0, &[1; 512 * KIB]).await;
    session
        .zero(range(512 * KIB, 512 * KIB), nbd_server::Zero::MayUnmap)
        .await
        .unwrap();
    // Not recorded yet, but shown.
    let recorded = || engine.hub.catalog.backup(id);
    assert_eq!(recorded().await.unwrap().bytes_transferred, 0);
    let disks = engine.backup_disks(id).await.unwrap();
    assert!((disks[0].progress_percent - 50.0).abs() < 0.01, "{disks:?}");
    assert_eq!(disks[1].progress_percent, 0.0);
    let shown = engine.backup(id).await.unwrap();
    assert_eq!(shown.bytes_transferred, 1024 * KIB as u64);
    assert_eq!(shown.current_phase, "transferring");

    pass(&world, &engine, STEP).await;
    let row = recorded().await.unwrap();
    assert_eq!(row.bytes_transferred, 1024 * KIB as u64);
    assert_eq!(row.current_phase, "transferring");
    assert_eq!(
        row.last_telemetry_at, None,
        "the hub's own counts are no report"
    );
    let expected = 100.0 * (1024 * KIB) as f64 / (SIZES[0] + SIZES[1]) as f64;
    assert!((row.progress_percent - expected).abs() < 0.01, "{row:?}");
    let speed = 1024 * KIB as u64 / STEP.as_secs();
    assert_eq!(row.transfer_speed_bps, speed);
    let left = (SIZES[0] + SIZES[1] - 1024 * KIB) as u64;
    assert_eq!(row.eta_seconds, left / speed);
    let disks = engine.hub.catalog.backup_disks(id).await.unwrap();
    assert_eq!(disks[0].received_bytes, 1024 * KIB as u64);
    assert_eq!(disks[0].zero_bytes, 512 * KIB as u64);
    assert_eq!(disks[0].stored_bytes, 512 * KIB as u64);
    assert!(disks[0].written_bytes >= 512 * KIB as u64);

    let done = finish(&engine, &started, 1).await;
    let done = engine.backup(&done).await.unwrap();
    assert_eq!(done.bytes_transferred, 1024 * KIB as u64);
    assert_eq!((done.transfer_speed_bps, done.eta_seconds), (0, 0));
    for disk in engine.backup_disks(&done.id).await.unwrap() {
        assert_eq!(disk.progress_percent, 100.0);
        let sum = disk.zero_bytes + disk.equal_bytes + disk.stored_bytes;
        assert_eq!(disk.received_bytes, sum);
        let image = std::fs::metadata(disk.image_path.unwrap()).unwrap();
        assert_eq!(disk.written_bytes, image.len());
    }
}
