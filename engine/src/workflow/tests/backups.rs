//! The main job, and what clients do to it.

use nbd_server::{Content, ErrorCode, Export, Zero};

use super::world::*;
use crate::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn points_of_two_disks_come_back_byte_for_byte() {
    let mut random = seeded(1);
    let world = World::new();
    let engine = world.open_with_vm().await;
    let mut states = vec![disks(&mut random)];
    let mut points = vec![full(&engine, &states[0], 1).await];
    for serial in 2..5 {
        let old = states.last().unwrap().clone();
        let new: Vec<_> = old.iter().map(|disk| changed(&mut random, disk)).collect();
        world.clock.advance(time::Duration::hours(1));
        points.push(increment(&engine, &old, &new, serial).await);
        states.push(new);
    }
    for (id, disks) in points.iter().zip(&states) {
        world.assert_point(&engine, id, disks).await;
    }
    assert_eq!(world.images().len(), 8);
    assert!(
        world.files().iter().all(|name| !name.ends_with(".partial")),
        "{:?}",
        world.files()
    );

    // Parents are declared, and relative in the file.
    for pair in points.windows(2) {
        for disk in engine.backup_disks(&pair[1]).await.unwrap() {
            assert_eq!(disk.parent_backup_id.as_ref(), Some(&pair[0]));
            let parent =
                &engine.backup_disks(&pair[0]).await.unwrap()[disk.disk_index.get() as usize];
            assert_eq!(disk.base_change_id, parent.change_id);
            assert_eq!(
                disk.received_bytes,
                disk.zero_bytes + disk.equal_bytes + disk.stored_bytes
            );
        }
    }
    let layers = engine
        .chain_layers(&points[3], DiskIndex::new(1))
        .await
        .unwrap();
    assert_eq!(layers.len(), 4);
    assert!(
        layers[..3]
            .iter()
            .all(|layer| !layer.backing_name.as_ref().unwrap().contains('/'))
    );
    assert_eq!(layers[3].backing_name, None);
    assert!(
        layers
            .iter()
            .all(|layer| std::path::Path::new(&layer.path).is_file())
    );
    let chain = engine.chain(VM, DiskIndex::new(0), None).await.unwrap();
    assert_eq!(
        chain
            .backups
            .iter()
            .map(|backup| backup.id.clone())
            .collect::<Vec<_>>(),
        points
    );
    assert_eq!(chain.full_backup_id, points[0].as_str());

    // The hub starts again, and everything is there.
    engine.shutdown().await;
    drop(engine);
    let engine = world.open().await;
    for (id, disks) in points.iter().zip(&states) {
        world.assert_point(&engine, id, disks).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_copy_into_an_increment_reads_right() {
    let mut random = seeded(2);
    let world = World::new();
    let engine = world.open_with_vm().await;
    let old = disks(&mut random);
    let base = full(&engine, &old, 1).await;
    // All other data, and zeroes where the parent has data.
    let new: Vec<Vec<u8>> = old
        .iter()
        .map(|disk| {
            let mut new = content(&mut random, disk.len());
            new[..256 * KIB].fill(0);
            new
        })
        .collect();
    let started = start(&engine, RequestedType::Incremental).await;
    for (prepared, content) in started.disks.iter().zip(&new) {
        push_everything(&connect(&engine, prepared).await, content).await;
    }
    let point = finish(&engine, &started, 2).await;
    world.assert_point(&engine, &point, &new).await;
    world.assert_point(&engine, &base, &old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_never_sent_read_as_the_parent_and_trimmed_ones_as_zero() {
    let mut random = seeded(3);
    let world = World::new();
    let engine = world.open_with_vm().await;
    let old = disks(&mut random);
    full(&engine, &old, 1).await;
    let started = start(&engine, RequestedType::Incremental).await;
    let session = connect(&engine, &started.disks[0]).await;
    session.trim(range(0, 128 * KIB)).await.unwrap();
    session
        .zero(range(300 * KIB + 5, 70_001), Zero::KeepAllocated)
        .await
        .unwrap();
    write(&session, 600 * KIB + 1, b"x").await;
    let mut new = old.clone();
    new[0][..128 * KIB].fill(0);
    new[0][300 * KIB + 5..300 * KIB + 5 + 70_001].fill(0);
    new[0][600 * KIB + 1] = b'x';
    let Content::Data(back) = session.read(range(0, 256 * KIB)).await.unwrap() else {
        panic!("half of the range holds data");
    };
    assert_same(&back, &new[0][..256 * KIB], "read through the export");
    let point = finish(&engine, &started, 2).await;
    world.assert_point(&engine, &point, &new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_increment_is_a_point() {
    let mut random = seeded(4);
    let world = World::new();
    let engine = world.open_with_vm().await;
    let disks = disks(&mut random);
    full(&engine, &disks, 1).await;
    let empty = increment(&engine, &disks, &disks, 2).await;
    world.assert_point(&engine, &empty, &disks).await;
    let next = increment(&engine, &disks, &disks, 3).await;
    let parents = engine.backup_disks(&next).await.unwrap();
    assert!(
        parents
            .iter()
            .all(|disk| disk.parent_backup_id.as_ref() == Some(&empty))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completing_is_idempotent_and_fences_late_writes() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let started = start(&engine, RequestedType::Full).await;
    let id = &started.backup.id;
    let (idle, session) = (
        connect(&engine, &started.disks[0]).await,
        connect(&engine, &started.disks[0]).await,
    );
    write(&session, 0, b"good").await;
    complete(&engine, id, 0, "a/1").await;
    complete(&engine, id, 0, "a/1").await;
    let late = session
        .write(0, bytes::Bytes::from_static(b"late"))
        .await
        .unwrap_err();
    assert_eq!(late.code, ErrorCode::SHUTDOWN);
    assert_eq!(
        idle.zero(range(0, 4), Zero::MayUnmap)
            .await
            .unwrap_err()
            .code,
        ErrorCode::SHUTDOWN
    );
    assert!(
        try_connect(&engine, started.disks[0].export_name.as_str())
            .await
            .is_err()
    );
    let other = engine
        .complete_disk(completion(id, 0, "b/1"))
        .await
        .unwrap_err();
    assert_eq!(other.kind, ErrorKind::Conflict);
    assert_eq!(engine.backup(id).await.unwrap().status, JobStatus::Running);
    assert!(
        world.images().is_empty(),
        "nothing is published before the last disk: {:?}",
        world.files()
    );
    complete(&engine, id, 1, "a/2").await;
    assert_eq!(
        engine.backup(id).await.unwrap().status,
        JobStatus::Completed
    );
    // Both sessions were cut.
    deadline(idle.withdrawn()).await;
    complete(&engine, id, 0, "a/1").await;
    complete(&engine, id, 1, "a/2").await;
    let other = engine
        .complete_disk(completion(id, 1, "b/2"))
        .await
        .unwrap_err();
    assert_eq!(other.kind, ErrorKind::Conflict);
    assert_eq!(&world.restore(&engine, id, 0).await[..4], b"good");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_completions_publish_once() {
    let mut random = seeded(5);
    let world = World::new();
    let engine = world.open_with_vm().await;
    let disks = disks(&mut random);
    let started = start(&engine, RequestedType::Full).await;
    for (prepared, content) in started.disks.iter().zip(&disks) {
        push_everything(&connect(&engine, prepared).await, content).await;
    }
    let id = &started.backup.id;
    let calls: Vec<_> = (0..12)
        .map(|n| {
            let (engine, call) = (engine.clone(), completion(id, n % 2, "a/1"));
            tokio::spawn(async move { engine.complete_disk(call).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(
        engine.backup(id).await.unwrap().status,
        JobStatus::Completed
    );
    world.assert_point(&engine, id, &disks).await;
    assert_eq!(world.images().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_of_what_is_not_running_are_refused() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let unknown = BackupId::parse("backup-nobody-1").unwrap();
    let error = engine
        .complete_disk(completion(&unknown, 0, "a/1"))
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::NotFound, "backup job not found")
    );
    let started = start(&engine, RequestedType::Full).await;
    let id = &started.backup.id;
    let error = engine
        .complete_disk(completion(id, 7, "a/1"))
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::NotFound, "backup job not found")
    );
    complete(&engine, id, 0, "a/1").await;
    engine.cancel_backup(id).await.unwrap();
    for disk in [0, 1] {
        let error = engine
            .complete_disk(completion(id, disk, "a/1"))
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict, "disk={disk}");
    }
    assert_eq!(
        engine.cancel_backup(id).await.unwrap_err().kind,
        ErrorKind::Conflict
    );
    assert_eq!(
        engine.cancel_backup(&unknown).await.unwrap_err().kind,
        ErrorKind::NotFound
    );
    assert_eq!(
        engine.backup(id).await.unwrap().status,
        JobStatus::Cancelled
    );
    assert!(world.files().is_empty(), "{:?}", world.files());
    let error = engine
        .restore_disk(id, DiskIndex::new(0), &world.folder.path().join("x"))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_attempt_is_never_a_parent() {
    let mut random = seeded(6);
    let world = World::new();
    let engine = world.open_with_vm().await;
    let first = disks(&mut random);
    let base = full(&engine, &first, 1).await;
    // An attempt that sent wrong data, completed one disk, and was cancelled.
    let attempt = start(&engine, RequestedType::Incremental).await;
    write(&connect(&engine, &attempt.disks[0]).await, 0, &[0xee; 4096]).await;
    complete(&engine, &attempt.backup.id, 0, "d0/2").await;
    engine.cancel_backup(&attempt.backup.id).await.unwrap();
    let second: Vec<_> = first
        .iter()
        .map(|disk| changed(&mut random, disk))
        .collect();
    let point = increment(&engine, &first, &second, 3).await;
    for disk in engine.backup_disks(&point).await.unwrap() {
        assert_eq!(disk.parent_backup_id.as_ref(), Some(&base));
        assert_eq!(
            disk.base_change_id.unwrap().as_str(),
            format!("d{}/1", disk.disk_index)
        );
    }
    world.assert_point(&engine, &point, &second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_ids_are_those_of_the_declared_parent() {
    let mut random = seeded(7);
    let world = World::new();
    let engine = world.open_with_vm().await;
    let disks = disks(&mut random);
    let ask = async |n| {
        let answer = engine.change_id(VM, DiskIndex::new(n)).await.unwrap();
        answer.change_id.map(String::from).unwrap_or_default()
    };
    assert_eq!(ask(0).await, "");
    full(&engine, &disks, 1).await;
    assert_eq!(
        (ask(0).await.as_str(), ask(1).await.as_str()),
        ("d0/1", "d1/1")
    );
    // A running full: copy everything.
    let running = start(&engine, RequestedType::Full).await;
    assert_eq!((ask(0).await.as_str(), ask(1).await.as_str()), ("", ""));
    engine.cancel_backup(&running.backup.id).await.unwrap();
    let running = start(&engine, RequestedType::Incremental).await;
    assert_eq!(
        (ask(0).await.as_str(), ask(1).await.as_str()),
        ("d0/1", "d1/1")
    );
    engine.cancel_backup(&running.backup.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_agrees_with_a_published_chain() {
    let mut random = seeded(8);
    let world = World::new();
    let engine = world.open_with_vm().await;
    let old = disks(&mut random);
    full(&engine, &old, 1).await;
    let new: Vec<_> = old.iter().map(|disk| changed(&mut random, disk)).collect();
    let point = increment(&engine, &old, &new, 2).await;
    for (n, disk) in engine
        .backup_disks(&point)
        .await
        .unwrap()
        .into_iter()
        .enumerate()
    {
        let image = std::path::PathBuf::from(disk.image_path.unwrap());
        if qemu_img(&["check", "-q"], &image).is_none() {
            return;
        }
        let info = qemu_img(&["info", "--backing-chain", "--output=json"], &image).unwrap();
        let layers: Vec<serde_json::Value> = serde_json::from_str(&info).unwrap();
        assert_eq!(layers.len(), 2, "{info}");
        let mut expected = new[n].clone();
        expected.resize(expected.len().next_multiple_of(512), 0);
        let raw = world.folder.path().join("expected.raw");
        std::fs::write(&raw, expected).unwrap();
        let raw = raw.to_str().unwrap();
        qemu_img(&["compare", "-f", "raw", "-F", "qcow2", raw], &image).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restoring_refuses_to_overwrite_and_comparing_finds_the_byte() {
    let mut random = seeded(9);
    let world = World::new();
    let engine = world.open_with_vm().await;
    let disks = disks(&mut random);
    let id = full(&engine, &disks, 1).await;
    let target = world.folder.path().join("there.raw");
    std::fs::write(&target, "precious").unwrap();
    let refused = engine
        .restore_disk(&id, DiskIndex::new(0), &target)
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    let mut wrong = disks[1].clone();
    wrong[555_555] ^= 1;
    std::fs::write(&target, wrong).unwrap();
    let compared = engine
        .compare_disk(&id, DiskIndex::new(1), &target)
        .await
        .unwrap();
    assert_eq!(compared, Comparison::Differs { offset: 555_555 });
    let missing = engine
        .compare_disk(&id, DiskIndex::new(1), &world.folder.path().join("none"))
        .await;
    assert_eq!(missing.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_ends_what_runs_and_nothing_else() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    // Running: at once, with data, with a complete disk.
    for complete_disks in 0..3_u32 {
        let started = start(&engine, RequestedType::Full).await;
        let id = &started.backup.id;
        if complete_disks > 0 {
            write(&connect(&engine, &started.disks[0]).await, 0, b"x").await;
        }
        if complete_disks > 1 {
            complete(&engine, id, 0, "a/1").await;
        }
        engine.cancel_backup(id).await.unwrap();
        let cancelled = engine.backup(id).await.unwrap();
        assert_eq!(cancelled.status, JobStatus::Cancelled);
        assert_eq!(
            cancelled.error_message.as_deref(),
            Some("cancelled by request")
        );
        assert!(world.files().is_empty(), "{:?}", world.files());
        world.clock.advance(time::Duration::seconds(1));
    }
    // Ended, in each way: nothing changes.
    let failed = start(&engine, RequestedType::Full).await.backup.id;
    let report = Telemetry {
        status: "failed".to_owned(),
        ..Telemetry::default()
    };
    engine.telemetry(&failed, report).await.unwrap();
    let completed = full(&engine, &disks(&mut seeded(9)), 1).await;
    let cancelled = start(&engine, RequestedType::Full).await.backup.id;
    engine.cancel_backup(&cancelled).await.unwrap();
    for id in [failed, completed, cancelled] {
        let before = engine.backup(&id).await.unwrap();
        let error = engine.cancel_backup(&id).await.unwrap_err();
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::Conflict, "backup is not running")
        );
        assert_eq!(engine.backup(&id).await.unwrap(), before);
    }
}
