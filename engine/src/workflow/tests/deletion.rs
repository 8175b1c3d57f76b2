//! Backups that are deleted, and those that must stay.

use super::world::*;
use crate::*;

/// A full and two increments on it, oldest first, with what they hold.
async fn three_points(world: &World, engine: &Engine) -> (Vec<BackupId>, Vec<Vec<Vec<u8>>>) {
    let mut random = seeded(90);
    let mut states = vec![disks(&mut random)];
    let mut points = vec![full(engine, &states[0], 1).await];
    for serial in 2..4 {
        let old = states.last().unwrap().clone();
        let new: Vec<_> = old.iter().map(|disk| changed(&mut random, disk)).collect();
        world.clock.advance(time::Duration::minutes(1));
        points.push(increment(engine, &old, &new, serial).await);
        states.push(new);
    }
    (points, states)
}

async fn refused(engine: &Engine, id: &BackupId) -> Error {
    let error = engine.delete_backup(id).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict, "{error}");
    error
}

async fn chain(engine: &Engine) -> Vec<BackupId> {
    let chain = engine.chain(VM, DiskIndex::new(0), None).await.unwrap();
    chain.backups.into_iter().map(|backup| backup.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_is_deleted_from_its_tip() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let (points, states) = three_points(&world, &engine).await;
    for parent in [0, 1] {
        let error = refused(&engine, &points[parent]).await;
        assert_eq!(error.message, "backup has dependent backups");
        assert!(
            error.details.contains(points[parent + 1].as_str()),
            "{error}"
        );
    }
    assert_eq!(world.images().len(), 6);
    for tip in [2, 1, 0] {
        engine.delete_backup(&points[tip]).await.unwrap();
        assert_eq!(world.images().len(), 2 * tip, "{:?}", world.files());
        assert_eq!(chain(&engine).await, points[..tip]);
        let gone = engine.backup(&points[tip]).await.unwrap_err();
        assert_eq!(gone.kind, ErrorKind::NotFound);
        let again = engine.delete_backup(&points[tip]).await.unwrap_err();
        assert_eq!(
            (again.kind, again.message.as_str()),
            (ErrorKind::NotFound, "backup not found")
        );
        for (id, disks) in points.iter().zip(&states).take(tip) {
            world.assert_point(&engine, id, disks).await;
        }
        world.assert_hashed("after a deletion");
    }
    assert!(world.files().is_empty(), "{:?}", world.files());
    let left: Vec<_> = std::fs::read_dir(world.repository()).unwrap().collect();
    assert!(left.is_empty(), "empty folders go as well: {left:?}");
    let error = engine
        .start_backup(request(RequestedType::Incremental))
        .await;
    assert_eq!(error.unwrap_err().kind, ErrorKind::NoParent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_increment_stands_on_what_is_left() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let (points, states) = three_points(&world, &engine).await;
    engine.delete_backup(&points[2]).await.unwrap();
    let new: Vec<_> = states[1]
        .iter()
        .map(|disk| changed(&mut seeded(91), disk))
        .collect();
    let next = increment(&engine, &states[1], &new, 9).await;
    world.assert_point(&engine, &next, &new).await;
    for disk in engine.backup_disks(&next).await.unwrap() {
        assert_eq!(disk.parent_backup_id.as_ref(), Some(&points[1]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_backup_and_its_parent_stay() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let disks = disks(&mut seeded(92));
    let base = full(&engine, &disks, 1).await;
    let started = start(&engine, RequestedType::Incremental).await;
    assert_eq!(
        refused(&engine, &started.backup.id).await.message,
        "backup is running"
    );
    assert_eq!(
        refused(&engine, &base).await.message,
        "backup has dependent backups"
    );
    // A failed attempt is no reason to keep its parent, and can be deleted itself.
    let attempts = [started.backup.id, {
        engine
            .cancel_backup(&engine.backups(BackupFilter::default()).await.unwrap()[0].id)
            .await
            .unwrap();
        start(&engine, RequestedType::Incremental).await.backup.id
    }];
    engine.cancel_backup(&attempts[1]).await.unwrap();
    engine.delete_backup(&attempts[0]).await.unwrap();
    engine.delete_backup(&base).await.unwrap();
    assert!(world.files().is_empty(), "{:?}", world.files());
    let left = engine.backup_disks(&attempts[1]).await.unwrap();
    assert!(left.iter().all(|disk| disk.parent_disk_id.is_none()));
    engine.delete_backup(&attempts[1]).await.unwrap();
    assert!(
        engine
            .backups(BackupFilter::default())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_attempt_takes_no_file_of_a_later_one() {
    // The clock stands still: both have images of the same names.
    let world = World::new();
    let engine = world.open_with_vm().await;
    let failed = start(&engine, RequestedType::Full).await.backup.id;
    engine.cancel_backup(&failed).await.unwrap();
    let started = start(&engine, RequestedType::Full).await;
    let paths = async |id: &BackupId| {
        let disks = engine.backup_disks(id).await.unwrap();
        disks
            .into_iter()
            .map(|disk| disk.image_path)
            .collect::<Vec<_>>()
    };
    assert_eq!(paths(&failed).await, paths(&started.backup.id).await);
    let before = world.files();
    engine.delete_backup(&failed).await.unwrap();
    assert_eq!(world.files(), before);
    write(&connect(&engine, &started.disks[0]).await, 0, b"x").await;
    finish(&engine, &started, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_read_stays() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let id = full(&engine, &disks(&mut seeded(93)), 1).await;
    let reader = engine.hub.leases.share(&id).unwrap();
    assert_eq!(refused(&engine, &id).await.message, "backup is in use");
    drop(reader);
    let deleting = engine.hub.leases.take_all(&id).unwrap();
    let target = world.folder.path().join("x.raw");
    let restored = engine.restore_disk(&id, DiskIndex::new(0), &target).await;
    assert_eq!(restored.unwrap_err().message, "backup is being deleted");
    assert_eq!(
        refused(&engine, &id).await.message,
        "backup is being deleted"
    );
    drop(deleting);
    engine.delete_backup(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_backup_can_be_deleted_and_anothers_image_is_kept() {
    let world = World::new();
    let engine = world.open_with_vm().await;
    let damaged = full(&engine, &disks(&mut seeded(94)), 1).await;
    world.clock.advance(time::Duration::minutes(1));
    let other = full(&engine, &disks(&mut seeded(95)), 2).await;
    let path = async |id: &BackupId, disk: usize| {
        engine.backup_disks(id).await.unwrap()[disk]
            .image_path
            .clone()
            .unwrap()
    };
    std::fs::write(path(&damaged, 0).await, "rubbish").unwrap();
    std::fs::copy(path(&other, 1).await, path(&damaged, 1).await).unwrap();
    engine.delete_backup(&damaged).await.unwrap();
    assert_eq!(world.images().len(), 3, "{:?}", world.files());
}
