//! What a deletion asks, and what it leaves.

use super::*;

suite!(
    what_keeps_a_backup,
    chains_and_contexts_fall_back_to_what_is_left,
    a_deletion_begins_before_it_ends,
    legacy_rows_go_with_their_backup,
);

const DAY: i64 = 24 * 60 * 60;

async fn run(catalog: &Catalog, statement: &'static str) {
    execute(catalog, statement).await.expect("a statement");
}

async fn what_keeps_a_backup(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let backup = done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    let refused = async |now: Timestamp| {
        let error = catalog.begin_deletion(&backup.id, now).await;
        let error = error.expect_err("something keeps it");
        assert_eq!(error.kind, ErrorKind::Conflict);
        error.message
    };
    run(&catalog, "UPDATE backup_repositories SET is_immutable = 1").await;
    assert_eq!(refused(at(9 * DAY)).await, "repository is immutable");
    run(
        &catalog,
        "UPDATE backup_repositories SET is_immutable = 0, min_retention_days = 5",
    )
    .await;
    assert_eq!(
        refused(at(5 * DAY)).await,
        "minimum retention period not met"
    );
    run(
        &catalog,
        "INSERT INTO restore_mounts (id, backup_disk_id, mount_path, created_at) \
         SELECT 'm1', id, '/m', created_at FROM backup_disks WHERE disk_index = 1",
    )
    .await;
    let later = at(6 * DAY);
    assert_eq!(refused(later).await, "backup is in use");
    run(&catalog, "UPDATE restore_mounts SET status = 'failed'").await;
    run(
        &catalog,
        "INSERT INTO backup_copies (id, source_backup_id, repository_id, status, file_path, created_at) \
         SELECT 'c1', id, repository_id, 'copying', '/x', created_at FROM backup_jobs",
    )
    .await;
    assert_eq!(refused(later).await, "backup is in use");
    run(&catalog, "UPDATE backup_copies SET status = 'completed'").await;

    let deletion = catalog
        .begin_deletion(&backup.id, later)
        .await
        .expect("begun");
    assert_eq!((deletion.disks.len(), &deletion.backup), (2, &backup));
    catalog
        .finish_deletion(&backup.id, later)
        .await
        .expect("gone");
    for table in [
        "backup_jobs",
        "backup_disks",
        "backup_chains",
        "backup_copies",
        "restore_mounts",
    ] {
        assert_eq!(count(&catalog, table).await, 0, "{table}");
    }
    let counts = context_counts(&catalog, &backup).await;
    assert_eq!(counts, (1, 1, 0, None), "what ran is history");
}

async fn chains_and_contexts_fall_back_to_what_is_left(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let first = done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    let second = done(&catalog, &vm, RequestedType::Incremental, "b", at(2)).await;
    let third = done(&catalog, &vm, RequestedType::Full, "c", at(3)).await;
    let chains = async || -> Vec<(String, String, i64)> {
        sqlx::query_as(
            "SELECT full_backup_id, latest_backup_id, total_backups FROM backup_chains ORDER BY disk_id",
        )
        .fetch_all(catalog.reader())
        .await
        .expect("the chains")
    };
    let row = |full: &Backup, latest: &Backup, total: i64| {
        (full.id.to_string(), latest.id.to_string(), total)
    };
    assert_eq!(chains().await, vec![row(&third, &third, 1); 2]);
    let delete = async |backup: &Backup| {
        catalog
            .begin_deletion(&backup.id, at(9))
            .await
            .expect("begun");
        catalog
            .finish_deletion(&backup.id, at(9))
            .await
            .expect("gone");
        context_counts(&catalog, backup).await
    };
    assert_eq!(delete(&third).await, (3, 3, 0, Some(second.id.to_string())));
    assert_eq!(chains().await, vec![row(&first, &second, 2); 2]);
    assert_eq!(delete(&second).await, (3, 3, 0, Some(first.id.to_string())));
    assert_eq!(chains().await, vec![row(&first, &first, 1); 2]);
    assert_eq!(delete(&first).await, (3, 3, 0, None));
    assert_eq!(chains().await, []);
}

async fn a_deletion_begins_before_it_ends(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let backup = done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    let id = &backup.id;
    assert_eq!(
        kind(catalog.finish_deletion(id, at(2)).await),
        ErrorKind::Conflict
    );
    catalog.begin_deletion(id, at(2)).await.expect("begun");
    assert_eq!(
        kind(planned(&catalog, &vm, RequestedType::Incremental, at(3)).await),
        ErrorKind::NoParent,
        "it is nobody's parent any more"
    );
    let unfinished = catalog.unfinished_jobs().await.expect("a list");
    assert_eq!(unfinished[0].backup.intent, Some(Intent::Deleting));
    // It broke off, and is taken up again.
    catalog
        .begin_deletion(id, at(4))
        .await
        .expect("begun again");
    catalog.finish_deletion(id, at(4)).await.expect("gone");
    catalog
        .finish_deletion(id, at(5))
        .await
        .expect("gone already");
    assert_eq!(
        kind(catalog.begin_deletion(id, at(5)).await),
        ErrorKind::NotFound
    );
    let running = started(&catalog, &vm, RequestedType::Full, at(6)).await;
    for outcome in [
        catalog.begin_deletion(&running.id, at(7)).await.map(drop),
        catalog.finish_deletion(&running.id, at(7)).await,
    ] {
        assert_eq!(kind(outcome), ErrorKind::Conflict);
    }
}

async fn legacy_rows_go_with_their_backup(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let backup = done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    run(
        &catalog,
        "INSERT INTO backup_jobs (id, vm_context_id, vm_name, repository_id, backup_type, status, repository_path, created_at) \
         SELECT 'backup-web-disk0-20251009-000000', j.vm_context_id, j.vm_name, j.repository_id, 'full', 'completed', \
           d.qcow2_path, j.created_at FROM backup_jobs j JOIN backup_disks d ON d.backup_job_id = j.id WHERE d.disk_index = 0",
    )
    .await;
    run(
        &catalog,
        "INSERT INTO backup_jobs (id, vm_context_id, vm_name, repository_id, backup_type, status, repository_path, created_at, \
           parent_backup_id) SELECT 'backup-web-disk0-20251010-000000', vm_context_id, vm_name, repository_id, 'incremental', \
           'completed', '/srv/local/child.qcow2', created_at, id FROM backup_jobs WHERE repository_path <> '/multi-disk-parent'",
    )
    .await;
    let error = catalog.begin_deletion(&backup.id, at(2)).await;
    let error = error.expect_err("a legacy child stands on it");
    assert_eq!(error.message, "backup has dependent backups");
    let row = BackupId::parse_stored("backup-web-disk0-20251009-000000").expect("an id");
    let error = catalog.begin_deletion(&row, at(2)).await;
    assert_eq!(error.expect_err("not by itself").kind, ErrorKind::Conflict);
    run(
        &catalog,
        "DELETE FROM backup_jobs WHERE backup_type = 'incremental'",
    )
    .await;
    catalog
        .begin_deletion(&backup.id, at(3))
        .await
        .expect("begun");
    catalog
        .finish_deletion(&backup.id, at(3))
        .await
        .expect("gone");
    assert_eq!(count(&catalog, "backup_jobs").await, 0);
}
