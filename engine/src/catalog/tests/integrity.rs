//! What the database itself refuses, and what goes with what.

use super::*;

suite!(
    cascades_follow_the_ownership,
    a_parent_cannot_go_before_its_child,
    references_are_kept,
    words_are_checked,
    a_second_running_row_is_impossible
);

const MOUNT: &str = "INSERT INTO restore_mounts (id, backup_disk_id, mount_path, created_at) \
     SELECT 'mount-1', MIN(id), '/mnt/1', '2025-10-08 10:15:00' FROM backup_disks";

async fn cascades_follow_the_ownership(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    let increment = done(&catalog, &vm, RequestedType::Incremental, "b", at(2)).await;
    execute(&catalog, MOUNT).await.expect("a mount");
    execute(
        &catalog,
        "INSERT INTO backup_copies (id, source_backup_id, repository_id, file_path, created_at) \
         SELECT 'copy-1', id, repository_id, '/x', created_at FROM backup_jobs LIMIT 1",
    )
    .await
    .expect("a copy");
    assert_eq!(
        increment.context_id.is_some(),
        count(&catalog, "backup_chains").await == 2
    );
    execute(&catalog, "DELETE FROM vm_backup_contexts")
        .await
        .expect("removed with its chain");
    for table in [
        "backup_jobs",
        "backup_disks",
        "restore_mounts",
        "backup_copies",
        "backup_chains",
    ] {
        assert_eq!(count(&catalog, table).await, 0, "{table}");
    }
    assert_eq!(catalog.vms().await.expect("VMs").len(), 1);

    done(&catalog, &vm, RequestedType::Full, "c", at(3)).await;
    execute(&catalog, MOUNT).await.expect("a mount");
    execute(&catalog, "DELETE FROM vm_replication_contexts")
        .await
        .expect("removed");
    for table in [
        "backup_jobs",
        "backup_disks",
        "restore_mounts",
        "backup_chains",
    ] {
        assert_eq!(count(&catalog, table).await, 0, "{table}");
    }
}

async fn a_parent_cannot_go_before_its_child(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    done(&catalog, &vm, RequestedType::Incremental, "b", at(2)).await;
    let refused = execute(
        &catalog,
        "DELETE FROM backup_jobs WHERE backup_type = 'full'",
    )
    .await;
    assert_eq!(kind(refused), ErrorKind::Conflict);
    execute(
        &catalog,
        "DELETE FROM backup_jobs WHERE backup_type = 'incremental'",
    )
    .await
    .expect("the tip can go");
    execute(
        &catalog,
        "DELETE FROM backup_jobs WHERE backup_type = 'full'",
    )
    .await
    .expect("then the base");
}

async fn references_are_kept(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    assert_eq!(
        kind(execute(&catalog, "DELETE FROM backup_repositories").await),
        ErrorKind::Conflict
    );
    for empty in [
        "UPDATE backup_jobs SET policy_id = ''",
        "UPDATE backup_jobs SET parent_backup_id = ''",
        "UPDATE backup_jobs SET vm_backup_context_id = ''",
        "UPDATE vm_replication_contexts SET credential_id = 99",
    ] {
        assert_eq!(
            kind(execute(&catalog, empty).await),
            ErrorKind::Conflict,
            "{empty}"
        );
    }
    execute(
        &catalog,
        "INSERT INTO backup_policies (id, name, primary_repository_id, created_at, updated_at) \
         VALUES ('p', 'p', 'local', '2025-10-08 10:15:00', '2025-10-08 10:15:00')",
    )
    .await
    .expect("a policy");
    let begin = planned(&catalog, &vm, RequestedType::Full, at(2))
        .await
        .expect("a plan");
    let backup = catalog
        .begin_backup(
            &BeginBackup {
                policy_id: Some(PolicyId::parse("p").expect("an id")),
                ..begin
            },
            at(2),
        )
        .await
        .expect("a backup");
    assert_eq!(backup.policy_id.as_ref().map(PolicyId::as_str), Some("p"));
    execute(&catalog, "DELETE FROM backup_policies")
        .await
        .expect("removed");
    assert_eq!(
        catalog.backup(&backup.id).await.expect("it").policy_id,
        None
    );
}

async fn words_are_checked(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    for statement in [
        "UPDATE backup_jobs SET status = 'transferring'",
        "UPDATE backup_jobs SET backup_type = ''",
        "UPDATE backup_jobs SET intent = ''",
        "UPDATE backup_disks SET status = 'cancelled'",
        "UPDATE backup_disks SET base_change_id = 'x/1'",
        "UPDATE backup_disks SET disk_index = -1",
        "UPDATE backup_disks SET disk_index = 'zero'",
        "UPDATE backup_disks SET disk_index = 1",
        "UPDATE backup_repositories SET config = 'path=/srv'",
    ] {
        assert!(execute(&catalog, statement).await.is_err(), "{statement}");
    }
}

async fn a_second_running_row_is_impossible(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let done = done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    started(&catalog, &vm, RequestedType::Full, at(2)).await;
    let revived = execute(&catalog, "UPDATE backup_jobs SET status = 'running'").await;
    assert_eq!(kind(revived), ErrorKind::Conflict);
    assert_eq!(
        catalog.backup(&done.id).await.expect("it").status,
        JobStatus::Completed
    );
}
