//! The hub dies between two steps; the next one finishes or undoes.

use std::sync::Arc;
use std::time::Duration;

use super::world::*;
use crate::workflow::Hooks;
use crate::workflow::hooks::{Halt, Step};
use crate::*;

/// Runs `work` on a hub that stops for ever at the n-th passing of `step`, then lets the process "die": every task is
/// dropped where it stands.
fn die_at<F>(world: &World, step: Step, nth: usize, work: impl FnOnce(Engine) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let halt = Halt::at(step, nth);
        let hooks = Hooks {
            halt: Some(Arc::clone(&halt)),
            ..Hooks::default()
        };
        let engine = world.open_with(hooks).await;
        let work = tokio::spawn(work(engine));
        let stopped = tokio::time::timeout(Duration::from_secs(60), halt.stopped.notified()).await;
        stopped.unwrap_or_else(|_| {
            panic!(
                "never came to {step:?}, work is done: {}",
                work.is_finished()
            )
        });
    });
    runtime.shutdown_timeout(Duration::from_secs(30));
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work)
}

/// A world with one completed point.
fn world_with_a_point(seed: u64) -> (World, Vec<Vec<u8>>, BackupId) {
    let world = World::new();
    let (disks, base) = run(async {
        let engine = world.open_with_vm().await;
        let disks = disks(&mut seeded(seed));
        let base = full(&engine, &disks, 1).await;
        engine.shutdown().await;
        (disks, base)
    });
    (world, disks, base)
}

async fn increment_all(engine: Engine, old: Vec<Vec<u8>>, new: Vec<Vec<u8>>) {
    increment(&engine, &old, &new, 2).await;
}

/// After the crash at `step`: the base is whole, nothing is half there, and the increment is there if it `finishes`.
fn assert_recovered(step: Step, nth: usize, finishes: bool) {
    let what = format!("step={step:?} nth={nth}");
    assert_recovered_after(step, nth, finishes, &what, |_| {});
}

/// As `assert_recovered`, where `meddle` makes of the files what the crash has left of them.
fn assert_recovered_after(
    step: Step,
    nth: usize,
    finishes: bool,
    what: &str,
    meddle: impl FnOnce(&World),
) {
    let (world, old, base) = world_with_a_point(40);
    let new: Vec<_> = old
        .iter()
        .map(|disk| changed(&mut seeded(41), disk))
        .collect();
    let (first, second) = (old.clone(), new.clone());
    die_at(&world, step, nth, |engine| {
        increment_all(engine, first, second)
    });
    meddle(&world);
    run(async {
        let engine = world.open().await;
        let backups = engine.backups(BackupFilter::default()).await.unwrap();
        let completed: Vec<_> = backups
            .iter()
            .filter(|b| b.status == JobStatus::Completed)
            .collect();
        assert!(
            backups
                .iter()
                .all(|b| b.status.has_ended() && b.intent.is_none()),
            "{what} {backups:?}"
        );
        assert_eq!(
            completed.len(),
            1 + usize::from(finishes),
            "{what} {backups:?}"
        );
        assert_eq!(
            world.images().len(),
            2 * completed.len(),
            "{what} {:?}",
            world.files()
        );
        let leftovers: Vec<_> = world
            .files()
            .into_iter()
            .filter(|name| name.contains("partial"))
            .collect();
        assert!(leftovers.is_empty(), "{what} {leftovers:?}");
        world.assert_hashed(what);
        world.assert_point(&engine, &base, &old).await;
        let newest = completed[0].id.clone();
        world
            .assert_point(&engine, &newest, if finishes { &new } else { &old })
            .await;
        // The VM can be backed up again, from the newest good point.
        let last: Vec<_> = new
            .iter()
            .map(|disk| changed(&mut seeded(42), disk))
            .collect();
        let from = if finishes { &new } else { &old };
        let next = increment(&engine, from, &last, 9).await;
        for disk in engine.backup_disks(&next).await.unwrap() {
            assert_eq!(disk.parent_backup_id.as_ref(), Some(&newest), "{what}");
        }
        world.assert_point(&engine, &next, &last).await;
        engine.shutdown().await;
    });
}

#[test]
fn a_start_that_was_cut_short_is_undone() {
    for step in [Step::Recorded, Step::FilesMade] {
        assert_recovered(step, 1, false);
    }
}

#[test]
fn a_backup_that_was_running_is_failed() {
    assert_recovered(Step::Ready, 1, false);
    assert_recovered(Step::Sealed, 1, false);
    assert_recovered(Step::DiskCompleted, 1, false);
    assert_recovered(Step::DiskCompleted, 2, false);
}

#[test]
fn a_publication_that_was_cut_short_is_finished() {
    assert_recovered(Step::PublishIntended, 1, true);
    assert_recovered(Step::OnePublished, 1, true);
    assert_recovered(Step::OnePublished, 2, true);
    assert_recovered(Step::AllPublished, 1, true);
}

#[test]
fn a_crash_between_the_renames_of_an_image_is_finished_or_undone() {
    let cases = [
        (1, true),
        (2, true),
        (3, true),
        (0, false),
        (1, false),
        (3, false),
    ];
    for (renamed, finishes) in cases {
        let what = format!("renamed={renamed} finishes={finishes}");
        assert_recovered_after(Step::PublishIntended, 1, finishes, &what, |world| {
            let images = find(&world.repository(), ".qcow2.partial");
            let [one, other] = images.try_into().unwrap();
            let (one, other) = (one.with_extension(""), other.with_extension(""));
            for end in [".hashes", ".json", ""].into_iter().take(renamed) {
                let name = format!("{}{end}", one.display());
                std::fs::rename(format!("{name}.partial"), name).unwrap();
            }
            if !finishes {
                std::fs::remove_file(format!("{}.hashes.partial", other.display())).unwrap();
            }
        });
    }
}

#[test]
fn the_accounting_of_a_backup_survives_the_crash() {
    let (world, _, _) = world_with_a_point(45);
    let id = run(async {
        let engine = world.open().await;
        let started = start(&engine, RequestedType::Full).await;
        let session = connect(&engine, &started.disks[1]).await;
        write(&session, 0, &[7; 128 * KIB]).await;
        world.clock.advance(time::Duration::seconds(10));
        workflow::watch::look(&engine.hub).await;
        started.backup.id
    });
    run(async {
        let engine = world.open().await;
        let backup = engine.backup(&id).await.unwrap();
        assert_eq!(backup.status, JobStatus::Failed);
        assert_eq!(backup.bytes_transferred, 128 * KIB as u64);
        let disk = &engine.backup_disks(&id).await.unwrap()[1];
        assert_eq!(
            (disk.status, disk.received_bytes, disk.stored_bytes),
            (DiskStatus::Failed, 128 * KIB as u64, 128 * KIB as u64)
        );
    });
}

#[test]
fn a_publication_that_lost_an_image_is_undone() {
    let (world, old, base) = world_with_a_point(50);
    let new: Vec<_> = old
        .iter()
        .map(|disk| changed(&mut seeded(51), disk))
        .collect();
    let before = world.files();
    let (first, second) = (old.clone(), new);
    die_at(&world, Step::OnePublished, 1, |engine| {
        increment_all(engine, first, second)
    });
    let partial: Vec<_> = find(&world.repository(), ".qcow2.partial");
    assert_eq!(partial.len(), 1);
    std::fs::remove_file(&partial[0]).unwrap();
    run(async {
        let engine = world.open().await;
        assert_eq!(world.files(), before);
        let backups = engine.backups(BackupFilter::default()).await.unwrap();
        assert_eq!(backups[0].status, JobStatus::Failed);
        assert!(
            backups[0]
                .error_message
                .as_ref()
                .unwrap()
                .contains("hub restarted"),
            "{backups:?}"
        );
        world.assert_point(&engine, &base, &old).await;
    });
}

#[test]
fn a_failure_that_was_cut_short_is_cleaned_up() {
    let (world, old, base) = world_with_a_point(60);
    die_at(&world, Step::FailRecorded, 1, |engine| async move {
        let started = start(&engine, RequestedType::Incremental).await;
        engine.cancel_backup(&started.backup.id).await.unwrap();
    });
    assert_eq!(world.images().len(), 2);
    assert_ne!(find(&world.repository(), ".partial").len(), 0);
    run(async {
        let engine = world.open().await;
        assert_eq!(find(&world.repository(), ".partial").len(), 0);
        let backups = engine.backups(BackupFilter::default()).await.unwrap();
        assert_eq!(backups[0].status, JobStatus::Cancelled);
        world.assert_point(&engine, &base, &old).await;
    });
}

#[test]
fn a_deletion_that_was_cut_short_is_finished() {
    for (step, nth) in [
        (Step::DeletionIntended, 1),
        (Step::OneDeleted, 1),
        (Step::OneDeleted, 2),
    ] {
        let what = format!("step={step:?} nth={nth}");
        let (world, old, base) = world_with_a_point(65);
        let new: Vec<_> = old
            .iter()
            .map(|disk| changed(&mut seeded(66), disk))
            .collect();
        let tip = run(async {
            let engine = world.open().await;
            let tip = increment(&engine, &old, &new, 2).await;
            engine.shutdown().await;
            tip
        });
        let deleted = tip.clone();
        die_at(&world, step, nth, |engine| async move {
            engine.delete_backup(&deleted).await.unwrap();
        });
        run(async {
            let engine = world.open().await;
            let gone = engine.backup(&tip).await.unwrap_err();
            assert_eq!(gone.kind, ErrorKind::NotFound, "{what}");
            assert_eq!(world.images().len(), 2, "{what} {:?}", world.files());
            world.assert_hashed(&what);
            world.assert_point(&engine, &base, &old).await;
            let chain = engine.chain(VM, DiskIndex::new(1), None).await.unwrap();
            assert_eq!(chain.backups.len(), 1, "{what}");
            assert_eq!(chain.backups[0].id, base, "{what}");
            let next = increment(&engine, &old, &new, 3).await;
            world.assert_point(&engine, &next, &new).await;
            engine.shutdown().await;
        });
    }
}

#[test]
fn what_no_row_knows_is_swept_only_if_it_was_never_published() {
    let (world, old, base) = world_with_a_point(70);
    let image = find(&world.repository(), ".qcow2").remove(0);
    let folder = image.parent().unwrap();
    std::fs::write(
        folder.join("backup-x-disk0-20200101-000000.qcow2.partial"),
        "rubbish",
    )
    .unwrap();
    std::fs::write(
        folder.join("backup-x-disk0-20200101-000000.qcow2.json.partial"),
        "rubbish",
    )
    .unwrap();
    std::fs::copy(&image, folder.join("backup-x-disk0-20200101-000001.qcow2")).unwrap();
    run(async {
        let engine = world.open().await;
        assert_eq!(find(&world.repository(), ".partial").len(), 0);
        assert_eq!(world.images().len(), 3);
        world.assert_point(&engine, &base, &old).await;
    });
}

#[test]
fn a_published_file_under_a_running_row_is_kept() {
    // The database was put back to a moment at which the backup still ran.
    let (world, old, base) = world_with_a_point(80);
    die_at(&world, Step::Ready, 1, |engine| async move {
        start(&engine, RequestedType::Incremental).await;
    });
    let partial = find(&world.repository(), ".qcow2.partial").remove(0);
    let published = partial.with_extension("");
    std::fs::rename(&partial, &published).unwrap();
    run(async {
        let engine = world.open().await;
        assert!(published.exists());
        assert_eq!(find(&world.repository(), ".partial").len(), 0);
        world.assert_point(&engine, &base, &old).await;
    });
}

#[test]
fn one_data_folder_has_one_hub() {
    let world = World::new();
    run(async {
        let engine = world.open().await;
        let second = Engine::open(world.config(), world.clock.clone())
            .await
            .unwrap_err();
        assert_eq!(second.kind, ErrorKind::Unavailable);
        engine.shutdown().await;
        drop(engine);
        world.open().await;
    });
}

/// Files below a folder whose name ends so.
fn find(folder: &std::path::Path, ending: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().unwrap().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
