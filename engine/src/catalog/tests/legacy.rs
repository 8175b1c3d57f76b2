//! Rows that a legacy hub wrote: readable, never parents.

use super::*;

suite!(
    per_disk_rows_are_readable_and_never_parents,
    empty_change_ids_are_none,
    a_legacy_point_can_be_a_parent,
    impossible_rows_are_damage
);

const CONTEXT: &str = "INSERT INTO vm_backup_contexts (context_id, vm_name, vcenter_host, repository_id, created_at, updated_at) \
     VALUES ('ctx-backup-web-20251008-101500', 'web', 'vc1', 'local', '2025-10-08 10:15:00', '2025-10-08 10:15:00')";

/// A row of one disk, as a legacy hub wrote it, and the disk that its data migration hung on it.
const PER_DISK: [&str; 2] = [
    "INSERT INTO backup_jobs (id, vm_backup_context_id, vm_context_id, vm_name, disk_id, repository_id, backup_type, status, \
     repository_path, change_id, created_at, completed_at) \
     SELECT 'backup-web-disk0-20251008-101500', 'ctx-backup-web-20251008-101500', context_id, 'web', 0, 'local', 'full', 'completed', \
     '/srv/local/ctx-web/disk-0/backup-web-disk0-20251008-101500.qcow2', '52 a1/3', '2025-10-08 10:15:00', '2030-01-01 00:00:00' \
     FROM vm_replication_contexts",
    "INSERT INTO backup_disks (vm_backup_context_id, backup_job_id, disk_index, vmware_disk_key, disk_change_id, qcow2_path, status, \
     created_at, completed_at) VALUES ('ctx-backup-web-20251008-101500', 'backup-web-disk0-20251008-101500', 0, 2000, '52 a1/3', \
     '/srv/local/ctx-web/disk-0/backup-web-disk0-20251008-101500.qcow2', 'completed', '2025-10-08 10:15:00', '2030-01-01 00:00:00')",
];

/// A backup of the last legacy layout: a parent row and a disk that points to it.
const POINT: [&str; 2] = [
    "INSERT INTO backup_jobs (id, vm_backup_context_id, vm_context_id, vm_name, repository_id, backup_type, status, repository_path, \
     created_at, started_at, completed_at) \
     SELECT 'backup-web-1759918500', 'ctx-backup-web-20251008-101500', context_id, 'web', 'local', 'full', 'completed', \
     '/multi-disk-parent', '2025-10-08 10:15:00', '2025-10-08 10:15:00', '2025-10-08 10:20:00' FROM vm_replication_contexts",
    "INSERT INTO backup_disks (vm_backup_context_id, backup_job_id, disk_index, vmware_disk_key, size_gb, disk_change_id, qcow2_path, \
     status, created_at, completed_at) VALUES ('ctx-backup-web-20251008-101500', 'backup-web-1759918500', 0, 2000, 1, '', \
     '/srv/local/old.qcow2', 'completed', '2025-10-08 10:15:00', '2025-10-08 10:20:00')",
];

async fn insert(catalog: &Catalog, statements: &[&'static str]) {
    for statement in statements {
        execute(catalog, statement).await.expect("inserted");
    }
}

fn id(text: &str) -> BackupId {
    BackupId::parse_stored(text).expect("an id")
}

async fn per_disk_rows_are_readable_and_never_parents(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    insert(&catalog, &[CONTEXT]).await;
    insert(&catalog, &PER_DISK).await;
    let row = catalog
        .backup(&id("backup-web-disk0-20251008-101500"))
        .await
        .expect("the row");
    assert!(!row.is_point());
    assert_eq!(
        (row.transfer, row.change_id.as_deref(), row.disks_count),
        (None, Some("52 a1/3"), 1)
    );
    assert_eq!(catalog.backup_disks(&row.id).await.expect("disks").len(), 1);
    assert!(
        catalog
            .backups(&BackupFilter::default())
            .await
            .expect("a list")
            .is_empty()
    );
    assert_eq!(
        kind(planned(&catalog, &vm, RequestedType::Incremental, at(1)).await),
        ErrorKind::NoParent
    );
    assert!(
        catalog
            .chain(&vm.context_id, DiskIndex::new(0), None)
            .await
            .expect("a chain")
            .is_empty()
    );

    // Its completion lies in the future, and still it is neither a parent nor the latest.
    let full = done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    assert_eq!(
        full.context_id.as_ref().map(ToString::to_string).as_deref(),
        Some("ctx-backup-web-20251008-101500")
    );
    let facts = catalog
        .change_id_facts("web", DiskIndex::new(0))
        .await
        .expect("facts");
    assert_eq!(facts.latest, Some((full.id.clone(), change("a-0"))));
    let increment = done(&catalog, &vm, RequestedType::Incremental, "b", at(2)).await;
    let disks = catalog.backup_disks(&increment.id).await.expect("disks");
    assert_eq!(disks[0].parent_backup_id, Some(full.id));
}

async fn empty_change_ids_are_none(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    insert(&catalog, &[CONTEXT]).await;
    insert(&catalog, &POINT).await;
    let disks = catalog
        .backup_disks(&id("backup-web-1759918500"))
        .await
        .expect("disks");
    assert_eq!(
        (
            disks[0].change_id.as_ref(),
            disks[0].capacity_bytes,
            disks[0].chain_depth
        ),
        (None, 1 << 30, None)
    );
    let error = planned(&catalog, &vm, RequestedType::Incremental, at(1))
        .await
        .expect_err("no parent");
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::NoParent, "no previous backup found")
    );
    let facts = catalog
        .change_id_facts("web", DiskIndex::new(0))
        .await
        .expect("facts");
    assert_eq!(facts.latest, None);
    assert_eq!(
        catalog
            .chain(&vm.context_id, DiskIndex::new(0), None)
            .await
            .expect("a chain")
            .len(),
        1
    );
}

async fn a_legacy_point_can_be_a_parent(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    insert(&catalog, &[CONTEXT]).await;
    insert(&catalog, &POINT).await;
    execute(
        &catalog,
        "UPDATE backup_disks SET disk_change_id = '52 a1/3'",
    )
    .await
    .expect("a change id");
    let increment = done(&catalog, &vm, RequestedType::Incremental, "b", at(1)).await;
    let disks = catalog.backup_disks(&increment.id).await.expect("disks");
    assert_eq!(disks[0].parent_backup_id, Some(id("backup-web-1759918500")));
    assert_eq!(
        (disks[0].chain_depth, disks[1].parent_reason.as_deref()),
        (Some(2), Some("disk_added"))
    );
}

async fn impossible_rows_are_damage(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    insert(&catalog, &[CONTEXT]).await;
    insert(&catalog, &POINT).await;
    execute(
        &catalog,
        "UPDATE backup_jobs SET completed_at = 'yesterday'",
    )
    .await
    .expect("damaged");
    let error = catalog
        .backup(&id("backup-web-1759918500"))
        .await
        .expect_err("damage");
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.details.contains("completed_at"), "{error}");
    assert_eq!(catalog.vms().await.expect("VMs"), [vm]);
    execute(&catalog, "UPDATE backup_disks SET size_gb = -1")
        .await
        .expect("damaged");
    execute(&catalog, "UPDATE backup_jobs SET completed_at = NULL")
        .await
        .expect("repaired");
    assert_eq!(
        kind(catalog.backup_disks(&id("backup-web-1759918500")).await),
        ErrorKind::Corrupt
    );
}
