//! The catalog's meaning, as functions over a fresh catalog: one suite for every database it runs on.

mod access;
mod backups;
mod concurrency;
mod deletion;
mod files;
mod histories;
mod integrity;
mod inventory;
mod legacy;
mod policies;

use std::future::Future;

use super::*;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind};
use crate::id::{BackupId, ChangeId, DiskIndex, ExportName, PolicyId, RepositoryId};
use crate::model::*;

/// Declares each function of a module as a test on a fresh SQLite catalog.
macro_rules! suite {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[test]
                fn $name() {
                    crate::catalog::tests::on_fresh_sqlite(super::$name);
                }
            )+
        }
    };
}
use suite;

/// Runs a test against a new database in a folder of its own.
fn on_fresh_sqlite<F: Future<Output = ()>>(test: impl FnOnce(Catalog) -> F) {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let url = format!("sqlite:{}", folder.path().join("hub.db").display());
        let catalog = Catalog::open(&url).await.expect("a fresh catalog");
        test(catalog.clone()).await;
        assert_eq!(damage(&catalog).await, Vec::<String>::new());
        catalog.close().await;
    });
}

/// What the database itself finds wrong: broken references and pages.
async fn damage(catalog: &Catalog) -> Vec<String> {
    let mut found: Vec<String> =
        sqlx::query_scalar("SELECT \"table\" FROM pragma_foreign_key_check")
            .fetch_all(catalog.reader())
            .await
            .expect("a check");
    let pages: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_all(catalog.reader())
        .await
        .expect("a check");
    found.extend(pages.into_iter().filter(|line| line != "ok"));
    found
}

/// Second `n` of the tests' calendar.
fn at(n: i64) -> Timestamp {
    Timestamp::from_unix_timestamp(1_760_000_000 + n).expect("a second")
}

fn change(text: &str) -> ChangeId {
    ChangeId::parse(text).expect("a change id")
}

fn repo(id: &str) -> RepositoryId {
    RepositoryId::parse(id).expect("a repository id")
}

fn new_vm(name: &str, keys: &[u32]) -> NewVm {
    NewVm {
        vm_name: name.to_owned(),
        vm_path: format!("/DC/vm/{name}"),
        vmware_vm_id: String::new(),
        vcenter_host: "vc1".to_owned(),
        datacenter: "DC".to_owned(),
        credential_id: None,
        disks: keys
            .iter()
            .map(|key| NewVmDisk {
                disk_id: format!("disk-{key}"),
                capacity_bytes: 1 << 30,
                label: String::new(),
            })
            .collect(),
    }
}

/// A catalog with repository `local` and VM `web` with disks 2000 and 2001.
async fn with_web(catalog: &Catalog) -> Vm {
    with_repository(catalog, "local").await;
    catalog
        .register_vm(&new_vm("web", &[2000, 2001]), at(0))
        .await
        .expect("a VM")
        .0
}

async fn with_repository(catalog: &Catalog, id: &str) {
    let repository = NewLocalRepository {
        id: repo(id),
        name: id.to_owned(),
        path: format!("/srv/{id}"),
    };
    catalog
        .ensure_repository(&repository, at(0))
        .await
        .expect("a repository");
}

/// Plans a backup of `vm` into repository `local` as a workflow does.
async fn planned(
    catalog: &Catalog,
    vm: &Vm,
    requested: RequestedType,
    now: Timestamp,
) -> Result<BeginBackup, Error> {
    planned_into(catalog, vm, requested, "local", now).await
}

async fn planned_into(
    catalog: &Catalog,
    vm: &Vm,
    requested: RequestedType,
    repository: &str,
    now: Timestamp,
) -> Result<BeginBackup, Error> {
    let wanted: Vec<WantedDisk> = (0..)
        .zip(catalog.vm_disks(&vm.context_id).await?)
        .map(|(n, disk)| WantedDisk {
            disk_index: DiskIndex::new(n),
            device_key: disk.device_key,
            capacity_bytes: disk.capacity_bytes,
        })
        .collect();
    let candidates = catalog
        .parents_for(&vm.context_id, &repo(repository))
        .await?;
    let plan = plan_backup(requested, &wanted, &candidates)?;
    let id = catalog.free_backup_id(&vm.vm_name, now).await?;
    let disks = plan.disks.into_iter().map(|planned| BeginDisk {
        disk_index: planned.disk.disk_index,
        device_key: planned.disk.device_key,
        capacity_bytes: planned.disk.capacity_bytes,
        image_path: format!(
            "/srv/{repository}/{id}-disk{}.qcow2",
            planned.disk.disk_index
        ),
        export_name: ExportName::of_disk(&id, planned.disk.disk_index),
        parent: planned.parent,
        parent_reason: planned.reason,
    });
    Ok(BeginBackup {
        disks: disks.collect(),
        id,
        vm_context_id: vm.context_id.clone(),
        repository_id: repo(repository),
        policy_id: None,
        backup_type: plan.backup_type,
        type_reason: plan.reason,
        transfer: Transfer::Node,
    })
}

/// Starts a backup up to the point where data is expected.
async fn started(catalog: &Catalog, vm: &Vm, requested: RequestedType, now: Timestamp) -> Backup {
    let begin = planned(catalog, vm, requested, now).await.expect("a plan");
    let backup = catalog.begin_backup(&begin, now).await.expect("a backup");
    catalog.backup_ready(&backup.id).await.expect("ready");
    backup
}

fn completion(id: &BackupId, disk: u32, change_id: &str) -> CompleteDisk {
    CompleteDisk {
        backup_id: id.clone(),
        disk_index: DiskIndex::new(disk),
        change_id: change(change_id),
    }
}

fn counters(received_bytes: u64) -> DiskCounters {
    DiskCounters {
        received_bytes,
        zero_bytes: 10,
        equal_bytes: 20,
        stored_bytes: received_bytes / 2,
        written_bytes: received_bytes + 7,
    }
}

/// A whole backup; disk n is completed with change id `{label}-{n}`.
async fn done(
    catalog: &Catalog,
    vm: &Vm,
    requested: RequestedType,
    label: &str,
    now: Timestamp,
) -> Backup {
    let backup = started(catalog, vm, requested, now).await;
    for n in 0..backup.disks_count {
        let request = completion(&backup.id, n, &format!("{label}-{n}"));
        catalog
            .complete_disk(&request, counters(1000), now)
            .await
            .expect("a completion");
    }
    assert!(
        catalog
            .finish_backup(&backup.id, now)
            .await
            .expect("an end")
    );
    catalog.backup(&backup.id).await.expect("the backup")
}

/// `total, successful, failed, last backup` of the context of a backup.
async fn context_counts(catalog: &Catalog, backup: &Backup) -> (i64, i64, i64, Option<String>) {
    sqlx::query_as(
        "SELECT total_backups_run, successful_backups, failed_backups, last_backup_id FROM vm_backup_contexts WHERE context_id = ?",
    )
    .bind(backup.context_id.as_ref().expect("a context").as_str())
    .fetch_one(catalog.reader())
    .await
    .expect("the context")
}

async fn count(catalog: &Catalog, table: &'static str) -> i64 {
    let statement = match table {
        "vm_backup_contexts" => "SELECT COUNT(*) FROM vm_backup_contexts",
        "backup_jobs" => "SELECT COUNT(*) FROM backup_jobs",
        "backup_disks" => "SELECT COUNT(*) FROM backup_disks",
        "backup_chains" => "SELECT COUNT(*) FROM backup_chains",
        "backup_policies" => "SELECT COUNT(*) FROM backup_policies",
        "backup_copy_rules" => "SELECT COUNT(*) FROM backup_copy_rules",
        "backup_copies" => "SELECT COUNT(*) FROM backup_copies",
        "audit_log" => "SELECT COUNT(*) FROM audit_log",
        "restore_mounts" => "SELECT COUNT(*) FROM restore_mounts",
        other => panic!("no such table: {other}"),
    };
    sqlx::query_scalar(statement)
        .fetch_one(catalog.reader())
        .await
        .expect("a count")
}

/// Runs a statement past the catalog, as another program would.
async fn execute(catalog: &Catalog, statement: &'static str) -> Result<(), Error> {
    let mut tx = catalog.write().await?;
    sqlx::query(statement).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(())
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.expect_err("an error").kind
}
