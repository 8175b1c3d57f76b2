//! The start of a backup: what it can stand on, its rows, and the undoing of a start that was refused.

use sqlx::{FromRow, SqliteConnection};

use super::finish::{find_job, load_job};
use super::policies::check_policy;
use super::rows::{optional, signed, small, stored, unsigned};
use super::timestamp::{from_text, to_text};
use super::{BeginBackup, BeginDisk, Catalog};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::id::{
    BackupDiskId, BackupId, ChangeId, ContextId, DeviceKey, DiskIndex, PolicyId, RepositoryId,
    VmContextId,
};
use crate::limits::{
    DISK_CAPACITY_BYTES_MAX, DISKS_PER_VM_MAX, ID_ATTEMPTS_MAX, IMAGE_PATH_BYTES_MAX,
};
use crate::model::{
    Backup, BackupType, DeclaredParent, DiskEvent, DiskState, DiskStatus, Intent, JobEvent,
    JobState, JobStatus, PARENT_MARKER, ParentCandidate,
};

#[derive(FromRow)]
struct CandidateRow {
    id: i64,
    backup_job_id: String,
    disk_index: i64,
    vmware_disk_key: i64,
    size_gb: i64,
    capacity_bytes: Option<i64>,
    disk_change_id: Option<String>,
    qcow2_path: String,
    chain_depth: Option<i64>,
    completed_at: String,
}

#[derive(FromRow)]
struct VmIdentity {
    vm_name: String,
    vmware_vm_id: Option<String>,
    vm_path: String,
    vcenter_host: String,
    datacenter: String,
}

impl Catalog {
    /// An id for a backup of `vm_name` that no row has.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) if every id of this second is taken.
    pub async fn free_backup_id(&self, vm_name: &str, now: Timestamp) -> Result<BackupId, Error> {
        for ordinal in 0..ID_ATTEMPTS_MAX {
            let id = BackupId::generate(vm_name, now, ordinal);
            let taken: Option<i64> = sqlx::query_scalar("SELECT 1 FROM backup_jobs WHERE id = ?")
                .bind(id.as_str())
                .fetch_optional(self.reader())
                .await?;
            if taken.is_none() {
                return Ok(id);
            }
        }
        Err(Error::conflict(
            "no free backup id",
            format!("vm_name={vm_name:?} attempts={ID_ATTEMPTS_MAX}"),
        ))
    }

    /// What [`plan_backup`](crate::model::plan_backup) chooses from: of every disk that this VM ever had in this repository, the newest
    /// completed image with a change id, or the newest without, if no image has one. Only of backups that completed and
    /// are not being removed; never a per-disk row of a legacy hub.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn parents_for(
        &self,
        vm: &VmContextId,
        repository: &RepositoryId,
    ) -> Result<Vec<ParentCandidate>, Error> {
        let rows: Vec<CandidateRow> = sqlx::query_as(
            "SELECT id, backup_job_id, disk_index, vmware_disk_key, size_gb, capacity_bytes, disk_change_id, qcow2_path, \
             chain_depth, completed_at FROM ( \
               SELECT d.id, d.backup_job_id, d.disk_index, d.vmware_disk_key, d.size_gb, d.capacity_bytes, d.disk_change_id, \
                 d.qcow2_path, d.chain_depth, COALESCE(j.completed_at, d.completed_at, j.created_at) AS completed_at, \
                 ROW_NUMBER() OVER (PARTITION BY d.vmware_disk_key ORDER BY \
                   CASE WHEN COALESCE(d.disk_change_id, '') = '' THEN 1 ELSE 0 END, \
                   COALESCE(j.completed_at, d.completed_at, j.created_at) DESC, d.id DESC) AS place \
               FROM backup_disks d JOIN backup_jobs j ON j.id = d.backup_job_id \
               WHERE j.vm_context_id = ? AND j.repository_id = ? AND j.repository_path = ? \
                 AND j.status = 'completed' AND j.intent IS NULL \
                 AND d.status = 'completed' AND COALESCE(d.qcow2_path, '') <> '' \
             ) newest WHERE place = 1 ORDER BY disk_index, id LIMIT ?",
        )
        .bind(vm.as_str())
        .bind(repository.as_str())
        .bind(PARENT_MARKER)
        .bind(i64::try_from(4 * DISKS_PER_VM_MAX).expect("the limit is a small constant"))
        .fetch_all(self.reader())
        .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Records a backup and its disks in one transaction: the job runs, its intent is `creating`, its disks are pending.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown VM, repository or policy. [`Conflict`](crate::ErrorKind::Conflict) if a backup of this VM is pending
    /// or running (the details name it), the repository is disabled or holds a VM of the same name from another
    /// vCenter, or a declared parent is no longer what was declared. [`Invalid`](crate::ErrorKind::Invalid) for a backup that contradicts itself.
    pub async fn begin_backup(
        &self,
        backup: &BeginBackup,
        now: Timestamp,
    ) -> Result<Backup, Error> {
        let total_bytes = check(backup)?;
        let mut tx = self.write().await?;
        let vm = load_vm(&mut tx, &backup.vm_context_id).await?;
        refuse_second(&mut tx, &backup.vm_context_id, &vm.vm_name).await?;
        check_repository(&mut tx, &backup.repository_id).await?;
        if let Some(policy) = &backup.policy_id {
            check_policy(&mut tx, policy).await?;
        }
        for disk in &backup.disks {
            if let Some(parent) = &disk.parent {
                check_parent(&mut tx, backup, disk, parent).await?;
            }
        }
        let context = find_or_create_context(&mut tx, &vm, &backup.repository_id, now).await?;
        insert_job(&mut tx, backup, &vm.vm_name, &context, total_bytes, now).await?;
        for disk in &backup.disks {
            insert_disk(&mut tx, backup, &context, disk, now).await?;
        }
        sqlx::query(
            "UPDATE vm_backup_contexts SET total_backups_run = total_backups_run + 1, updated_at = ? WHERE context_id = ?",
        )
        .bind(to_text(now))
        .bind(context.as_str())
        .execute(&mut *tx)
        .await?;
        let made = load_job(&mut tx, &backup.id).await?;
        tx.commit().await?;
        made.try_into()
    }

    /// Files and exports of a backup are there: clears the intent and sets its pending disks running.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown backup, [`Conflict`](crate::ErrorKind::Conflict) if it does not run.
    pub async fn backup_ready(&self, id: &BackupId) -> Result<(), Error> {
        let mut tx = self.write().await?;
        let job = load_job(&mut tx, id).await?;
        let status = job.state()?.status();
        if status != JobStatus::Running {
            return Err(Error::conflict(
                "backup is not running",
                format!("backup_id={id} status={status}"),
            ));
        }
        let started = DiskState::Pending.apply(DiskEvent::Start)?.status();
        sqlx::query("UPDATE backup_disks SET status = ? WHERE backup_job_id = ? AND status = ?")
            .bind(started.as_str())
            .bind(id.as_str())
            .bind(DiskStatus::Pending.as_str())
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "UPDATE backup_jobs SET intent = NULL, current_phase = 'ready', version = version + 1 WHERE id = ?",
        )
        .bind(id.as_str())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Records what is about to happen to the files of a backup, or with `None` that it has happened.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown backup.
    pub async fn set_intent(&self, id: &BackupId, intent: Option<Intent>) -> Result<(), Error> {
        let mut tx = self.write().await?;
        load_job(&mut tx, id).await?;
        sqlx::query("UPDATE backup_jobs SET intent = ?, version = version + 1 WHERE id = ?")
            .bind(intent.map(Intent::as_str))
            .bind(id.as_str())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Undoes a refused start: removes the rows of a backup that never completed, as if it had not been asked for. The
    /// files must be gone. Without effect on an unknown backup.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) for a completed backup.
    pub async fn delete_backup_rows(&self, id: &BackupId) -> Result<(), Error> {
        let mut tx = self.write().await?;
        let Some(job) = find_job(&mut tx, id).await? else {
            return Ok(());
        };
        let status = job.state()?.status();
        if status == JobStatus::Completed {
            return Err(Error::conflict(
                "backup is completed",
                format!("backup_id={id}"),
            ));
        }
        let failed_before = i64::from(status.has_ended());
        sqlx::query(
            "UPDATE vm_backup_contexts SET total_backups_run = total_backups_run - 1, failed_backups = failed_backups - ? \
             WHERE context_id = ?",
        )
        .bind(failed_before)
        .bind(&job.vm_backup_context_id)
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM backup_jobs WHERE id = ?")
            .bind(id.as_str())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Refuses a backup that contradicts itself; the sum of its disks' sizes otherwise.
fn check(backup: &BeginBackup) -> Result<u64, Error> {
    let contradiction = |details: String| Err(Error::invalid("malformed backup", details));
    if backup.disks.is_empty() || backup.disks.len() > DISKS_PER_VM_MAX {
        return contradiction(format!(
            "disks={} max={DISKS_PER_VM_MAX}",
            backup.disks.len()
        ));
    }
    let mut total_bytes: u64 = 0;
    for (at, disk) in backup.disks.iter().enumerate() {
        let same = |other: &BeginDisk| {
            other.disk_index == disk.disk_index || other.device_key == disk.device_key
        };
        if backup.disks[..at].iter().any(same) {
            return contradiction(format!(
                "disk is repeated disk_index={} device_key={}",
                disk.disk_index, disk.device_key
            ));
        }
        if disk.capacity_bytes == 0 || disk.capacity_bytes > DISK_CAPACITY_BYTES_MAX {
            return contradiction(format!(
                "disk_index={} capacity_bytes={}",
                disk.disk_index, disk.capacity_bytes
            ));
        }
        if disk.image_path.is_empty() || disk.image_path.len() > IMAGE_PATH_BYTES_MAX {
            let length = disk.image_path.len();
            return contradiction(format!(
                "image path is empty or too long disk_index={} bytes={length}",
                disk.disk_index
            ));
        }
        let full = backup.backup_type == BackupType::Full;
        let unfit = |parent: &DeclaredParent| full || parent.capacity_bytes > disk.capacity_bytes;
        if disk.parent.as_ref().is_some_and(unfit) {
            let index = disk.disk_index;
            return contradiction(format!(
                "disk cannot stand on its parent disk_index={index}"
            ));
        }
        total_bytes = total_bytes.saturating_add(disk.capacity_bytes);
    }
    Ok(total_bytes)
}

async fn load_vm(tx: &mut SqliteConnection, id: &VmContextId) -> Result<VmIdentity, Error> {
    let vm: Option<VmIdentity> = sqlx::query_as(
        "SELECT vm_name, vmware_vm_id, vm_path, vcenter_host, datacenter FROM vm_replication_contexts WHERE context_id = ?",
    )
    .bind(id.as_str())
    .fetch_optional(tx)
    .await?;
    vm.ok_or_else(|| Error::not_found("VM not found", format!("vm_context_id={id}")))
}

async fn refuse_second(
    tx: &mut SqliteConnection,
    vm: &VmContextId,
    vm_name: &str,
) -> Result<(), Error> {
    let running: Option<String> = sqlx::query_scalar(
        "SELECT id FROM backup_jobs WHERE vm_context_id = ? AND status IN ('pending', 'running') AND repository_path = ?",
    )
    .bind(vm.as_str())
    .bind(PARENT_MARKER)
    .fetch_optional(tx)
    .await?;
    match running {
        None => Ok(()),
        Some(id) => {
            let details = format!("vm_name={vm_name:?} running_backup_id={id}");
            Err(Error::conflict(
                "a backup of this VM is already running",
                details,
            ))
        }
    }
}

pub(super) async fn check_repository(
    tx: &mut SqliteConnection,
    id: &RepositoryId,
) -> Result<(), Error> {
    let enabled: Option<bool> =
        sqlx::query_scalar("SELECT enabled FROM backup_repositories WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(tx)
            .await?;
    match enabled {
        Some(true) => Ok(()),
        Some(false) => Err(Error::conflict(
            "repository is disabled",
            format!("repository_id={id}"),
        )),
        None => Err(Error::not_found(
            "repository not found",
            format!("repository_id={id}"),
        )),
    }
}

/// The declared parent was chosen before this transaction: it must still be there, and be what was declared.
async fn check_parent(
    tx: &mut SqliteConnection,
    backup: &BeginBackup,
    disk: &BeginDisk,
    parent: &DeclaredParent,
) -> Result<(), Error> {
    let still_there: Option<i64> = sqlx::query_scalar(
        "SELECT d.id FROM backup_disks d JOIN backup_jobs j ON j.id = d.backup_job_id \
         WHERE d.id = ? AND d.backup_job_id = ? AND d.disk_change_id = ? AND d.qcow2_path = ? AND d.vmware_disk_key = ? \
           AND d.status = 'completed' AND j.status = 'completed' AND j.intent IS NULL \
           AND j.vm_context_id = ? AND j.repository_id = ? AND j.repository_path = ?",
    )
    .bind(parent.disk_id.get())
    .bind(parent.backup_id.as_str())
    .bind(parent.base_change_id.as_str())
    .bind(&parent.image_path)
    .bind(disk.device_key.get())
    .bind(backup.vm_context_id.as_str())
    .bind(backup.repository_id.as_str())
    .bind(PARENT_MARKER)
    .fetch_optional(tx)
    .await?;
    still_there.map(drop).ok_or_else(|| {
        let details = format!(
            "disk_index={} parent_backup_id={}",
            disk.disk_index, parent.backup_id
        );
        Error::conflict("the parent is no longer there", details)
    })
}

async fn find_or_create_context(
    tx: &mut SqliteConnection,
    vm: &VmIdentity,
    repository: &RepositoryId,
    now: Timestamp,
) -> Result<ContextId, Error> {
    let known: Option<(String, String)> = sqlx::query_as(
        "SELECT context_id, vcenter_host FROM vm_backup_contexts WHERE vm_name = ? AND repository_id = ?",
    )
    .bind(&vm.vm_name)
    .bind(repository.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    if let Some((id, vcenter_host)) = known {
        // A context is one VM's. The legacy schema knows it by name only, and would mix two VMs of one name.
        if vcenter_host != vm.vcenter_host {
            let details = format!(
                "vm_name={:?} repository_id={repository} vcenter_host={:?} other={vcenter_host:?}",
                vm.vm_name, vm.vcenter_host
            );
            return Err(Error::conflict(
                "the repository has a VM of the same name from another vCenter",
                details,
            ));
        }
        return stored("context_id", ContextId::parse(&id));
    }
    let id = free_context_id(tx, &vm.vm_name, now).await?;
    sqlx::query(
        "INSERT INTO vm_backup_contexts (context_id, vm_name, vmware_vm_id, vm_path, vcenter_host, datacenter, repository_id, \
         created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(id.as_str())
    .bind(&vm.vm_name)
    .bind(vm.vmware_vm_id.as_deref().unwrap_or_default())
    .bind(&vm.vm_path)
    .bind(&vm.vcenter_host)
    .bind(&vm.datacenter)
    .bind(repository.as_str())
    .bind(to_text(now))
    .bind(to_text(now))
    .execute(tx)
    .await?;
    Ok(id)
}

async fn free_context_id(
    tx: &mut SqliteConnection,
    vm_name: &str,
    now: Timestamp,
) -> Result<ContextId, Error> {
    for ordinal in 0..ID_ATTEMPTS_MAX {
        let id = ContextId::generate(vm_name, now, ordinal);
        let taken: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM vm_backup_contexts WHERE context_id = ?")
                .bind(id.as_str())
                .fetch_optional(&mut *tx)
                .await?;
        if taken.is_none() {
            return Ok(id);
        }
    }
    Err(Error::conflict(
        "no free backup context id",
        format!("vm_name={vm_name:?} attempts={ID_ATTEMPTS_MAX}"),
    ))
}

async fn insert_job(
    tx: &mut SqliteConnection,
    backup: &BeginBackup,
    vm_name: &str,
    context: &ContextId,
    total_bytes: u64,
    now: Timestamp,
) -> Result<(), Error> {
    let state = JobState::Pending.apply(JobEvent::Start { at: now })?;
    sqlx::query(
        "INSERT INTO backup_jobs (id, vm_backup_context_id, vm_context_id, vm_name, repository_id, policy_id, backup_type, \
         status, repository_path, total_bytes, current_phase, created_at, started_at, transfer, type_reason, intent) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'preparing', ?, ?, ?, ?, ?)",
    )
    .bind(backup.id.as_str())
    .bind(context.as_str())
    .bind(backup.vm_context_id.as_str())
    .bind(vm_name)
    .bind(backup.repository_id.as_str())
    .bind(backup.policy_id.as_ref().map(PolicyId::as_str))
    .bind(backup.backup_type.as_str())
    .bind(state.status().as_str())
    .bind(PARENT_MARKER)
    .bind(signed("total_bytes", total_bytes)?)
    .bind(to_text(now))
    .bind(to_text(now))
    .bind(backup.transfer.as_str())
    .bind(backup.type_reason.map(|reason| reason.as_str()))
    .bind(Intent::Creating.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

async fn insert_disk(
    tx: &mut SqliteConnection,
    backup: &BeginBackup,
    context: &ContextId,
    disk: &BeginDisk,
    now: Timestamp,
) -> Result<(), Error> {
    let parent = disk.parent.as_ref();
    sqlx::query(
        "INSERT INTO backup_disks (vm_backup_context_id, backup_job_id, disk_index, vmware_disk_key, size_gb, qcow2_path, status, \
         created_at, capacity_bytes, parent_disk_id, base_change_id, parent_reason, chain_depth, export_name) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(context.as_str())
    .bind(backup.id.as_str())
    .bind(disk.disk_index.get())
    .bind(disk.device_key.get())
    .bind(signed("size_gb", disk.capacity_bytes.div_ceil(1 << 30))?)
    .bind(&disk.image_path)
    .bind(DiskStatus::Pending.as_str())
    .bind(to_text(now))
    .bind(signed("capacity_bytes", disk.capacity_bytes)?)
    .bind(parent.map(|parent| parent.disk_id.get()))
    .bind(parent.map(|parent| parent.base_change_id.as_str()))
    .bind(disk.parent_reason.map(|reason| reason.as_str()))
    .bind(parent.map_or(1, |parent| parent.chain_depth))
    .bind(disk.export_name.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

impl TryFrom<CandidateRow> for ParentCandidate {
    type Error = Error;

    fn try_from(row: CandidateRow) -> Result<Self, Error> {
        let capacity_bytes = match row.capacity_bytes {
            Some(bytes) => unsigned("capacity_bytes", bytes)?,
            None => unsigned("size_gb", row.size_gb)?.saturating_mul(1 << 30),
        };
        Ok(Self {
            disk_id: BackupDiskId::new(row.id),
            backup_id: stored("backup_job_id", BackupId::parse_stored(&row.backup_job_id))?,
            disk_index: DiskIndex::new(small("disk_index", row.disk_index)?),
            device_key: stored(
                "vmware_disk_key",
                DeviceKey::new(small("vmware_disk_key", row.vmware_disk_key)?),
            )?,
            capacity_bytes,
            change_id: optional(
                row.disk_change_id.as_deref(),
                "disk_change_id",
                ChangeId::parse,
            )?,
            image_path: row.qcow2_path,
            chain_depth: row
                .chain_depth
                .map_or(Ok(1), |depth| small("chain_depth", depth))?,
            completed_at: from_text("completed_at", &row.completed_at)?,
        })
    }
}
