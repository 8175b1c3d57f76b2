//! The deletion of a backup: its intent, and the end of its rows.

use sqlx::{FromRow, SqliteConnection};

use super::finish::{advance_chain, load_disks, load_job};
use super::rows::stored;
use super::timestamp::to_text;
use super::{Catalog, Deletion};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::id::{BackupId, DiskIndex, RepositoryId};
use crate::limits::DEPENDENTS_ROWS_MAX;
use crate::model::{
    Backup, BackupDisk, Dependents, Intent, JobStatus, PARENT_MARKER, Retention, check_deletion,
};

#[derive(FromRow)]
struct RetentionRow {
    is_immutable: bool,
    min_retention_days: i64,
}

#[derive(FromRow)]
struct LastRow {
    id: String,
    backup_type: String,
    at: String,
}

impl Catalog {
    /// Records that a backup is about to be deleted, in one transaction with the look at what stands in the way. From now on
    /// it is nobody's parent. What failed attempts stood on it is forgotten: their images are gone.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown backup; [`Conflict`](crate::ErrorKind::Conflict) as
    /// [`check_deletion`] says.
    pub async fn begin_deletion(&self, id: &BackupId, now: Timestamp) -> Result<Deletion, Error> {
        let mut tx = self.write().await?;
        let backup = Backup::try_from(load_job(&mut tx, id).await?)?;
        let retention = retention(&mut tx, &backup.repository_id).await?;
        let dependents = dependents(&mut tx, id).await?;
        check_deletion(&backup, &retention, &dependents, now)?;
        let disks = load_disks(&mut tx, id).await?;
        forget_failed_children(&mut tx, id).await?;
        if backup.status == JobStatus::Completed {
            sqlx::query("UPDATE backup_jobs SET intent = ?, version = version + 1 WHERE id = ?")
                .bind(Intent::Deleting.as_str())
                .bind(id.as_str())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(Deletion { backup, disks })
    }

    /// The files of a backup are gone: removes its rows, and brings its context and chains back to what is left. Without
    /// effect on an unknown backup.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) for a backup whose deletion was not begun, or that another one stands on.
    pub async fn finish_deletion(&self, id: &BackupId, now: Timestamp) -> Result<(), Error> {
        let mut tx = self.write().await?;
        let Some(job) = super::finish::find_job(&mut tx, id).await? else {
            return Ok(());
        };
        let backup = Backup::try_from(job)?;
        let completed = backup.status == JobStatus::Completed;
        if !backup.status.has_ended() || (completed && backup.intent != Some(Intent::Deleting)) {
            let details = format!("backup_id={id} status={}", backup.status);
            return Err(Error::conflict("deletion was not begun", details));
        }
        let disks = load_disks(&mut tx, id).await?;
        // A legacy hub wrote a row of its own for each image.
        sqlx::query(
            "DELETE FROM backup_jobs WHERE repository_path <> ? AND repository_path IN \
             (SELECT qcow2_path FROM backup_disks WHERE backup_job_id = ?)",
        )
        .bind(PARENT_MARKER)
        .bind(id.as_str())
        .execute(&mut *tx)
        .await?;
        // The disks, copies, mounts and chains of the backup go with it.
        sqlx::query("DELETE FROM backup_jobs WHERE id = ?")
            .bind(id.as_str())
            .execute(&mut *tx)
            .await?;
        for disk in &disks {
            restore_chain(&mut tx, &backup, disk, now).await?;
        }
        restore_context(&mut tx, &backup, now).await?;
        tx.commit().await?;
        Ok(())
    }
}

async fn retention(tx: &mut SqliteConnection, id: &RepositoryId) -> Result<Retention, Error> {
    let row: RetentionRow = sqlx::query_as(
        "SELECT is_immutable, min_retention_days FROM backup_repositories WHERE id = ?",
    )
    .bind(id.as_str())
    .fetch_one(tx)
    .await?;
    Ok(Retention {
        repository_id: id.clone(),
        is_immutable: row.is_immutable,
        min_retention_days: u32::try_from(row.min_retention_days).unwrap_or(0),
    })
}

/// Who needs the backup. A child whose attempt failed does not, once its files are gone.
async fn dependents(tx: &mut SqliteConnection, id: &BackupId) -> Result<Dependents, Error> {
    let children: Vec<String> = sqlx::query_scalar(
        "SELECT j.id FROM backup_jobs j WHERE j.id <> ?1 AND (EXISTS ( \
           SELECT 1 FROM backup_disks c JOIN backup_disks p ON p.id = c.parent_disk_id \
           WHERE c.backup_job_id = j.id AND p.backup_job_id = ?1 \
             AND (j.status IN ('pending', 'running', 'completed') OR j.intent IS NOT NULL)) \
         OR (j.status = 'completed' AND j.parent_backup_id IN ( \
           SELECT ?1 UNION SELECT o.id FROM backup_jobs o JOIN backup_disks d ON d.qcow2_path = o.repository_path \
           WHERE d.backup_job_id = ?1))) \
         ORDER BY j.created_at DESC, j.id DESC LIMIT ?2",
    )
    .bind(id.as_str())
    .bind(DEPENDENTS_ROWS_MAX)
    .fetch_all(&mut *tx)
    .await?;
    let mounts = sqlx::query_scalar(
        "SELECT m.id FROM restore_mounts m JOIN backup_disks d ON d.id = m.backup_disk_id \
         WHERE d.backup_job_id = ? AND m.status IN ('mounting', 'mounted', 'unmounting') ORDER BY m.id LIMIT ?",
    )
    .bind(id.as_str())
    .bind(DEPENDENTS_ROWS_MAX)
    .fetch_all(&mut *tx)
    .await?;
    let copies = sqlx::query_scalar(
        "SELECT id FROM backup_copies WHERE source_backup_id = ? AND status IN ('copying', 'verifying') ORDER BY id LIMIT ?",
    )
    .bind(id.as_str())
    .bind(DEPENDENTS_ROWS_MAX)
    .fetch_all(tx)
    .await?;
    Ok(Dependents {
        children: children
            .iter()
            .map(|child| stored("id", BackupId::parse_stored(child)))
            .collect::<Result<_, _>>()?,
        mounts,
        copies,
    })
}

/// The rows of attempts that failed stay; what they stood on will not be there to be named.
async fn forget_failed_children(tx: &mut SqliteConnection, id: &BackupId) -> Result<(), Error> {
    sqlx::query(
        "UPDATE backup_disks SET parent_disk_id = NULL, base_change_id = NULL, chain_depth = NULL, \
           parent_reason = 'parent_deleted' \
         WHERE parent_disk_id IN (SELECT id FROM backup_disks WHERE backup_job_id = ?1) AND backup_job_id <> ?1",
    )
    .bind(id.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

/// Sets the chain row of a disk to the chain of the newest image that is left; without one the row is gone already.
async fn restore_chain(
    tx: &mut SqliteConnection,
    backup: &Backup,
    disk: &BackupDisk,
    now: Timestamp,
) -> Result<(), Error> {
    let Some(context) = &backup.context_id else {
        return Ok(());
    };
    let index: DiskIndex = disk.disk_index;
    let newest: Option<String> = sqlx::query_scalar(
        "SELECT j.id FROM backup_disks d JOIN backup_jobs j ON j.id = d.backup_job_id \
         WHERE d.vm_backup_context_id = ? AND d.disk_index = ? AND d.status = 'completed' \
           AND j.status = 'completed' AND j.intent IS NULL AND j.repository_path = ? \
         ORDER BY COALESCE(j.completed_at, d.completed_at, j.created_at) DESC, d.id DESC LIMIT 1",
    )
    .bind(context.as_str())
    .bind(index.get())
    .bind(PARENT_MARKER)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(newest) = newest else {
        return Ok(());
    };
    let newest = stored("id", BackupId::parse_stored(&newest))?;
    let disks = load_disks(tx, &newest).await?;
    match disks.iter().find(|disk| disk.disk_index == index) {
        Some(disk) => advance_chain(tx, context, disk, now).await,
        None => Ok(()),
    }
}

/// Sets the newest backup of a context. How many ran, and how they ended, is history and stays.
async fn restore_context(
    tx: &mut SqliteConnection,
    backup: &Backup,
    now: Timestamp,
) -> Result<(), Error> {
    let Some(context) = &backup.context_id else {
        return Ok(());
    };
    let last: Option<LastRow> = sqlx::query_as(
        "SELECT id, backup_type, COALESCE(completed_at, created_at) AS at FROM backup_jobs \
         WHERE vm_backup_context_id = ? AND status = 'completed' AND intent IS NULL AND repository_path = ? \
         ORDER BY COALESCE(completed_at, created_at) DESC, created_at DESC, id DESC LIMIT 1",
    )
    .bind(context.as_str())
    .bind(PARENT_MARKER)
    .fetch_optional(&mut *tx)
    .await?;
    let kind = last
        .as_ref()
        .map(|last| super::rows::backup_type(&last.backup_type))
        .transpose()?;
    sqlx::query(
        "UPDATE vm_backup_contexts SET last_backup_id = ?, last_backup_type = ?, last_backup_at = ?, updated_at = ? \
         WHERE context_id = ?",
    )
    .bind(last.as_ref().map(|last| &last.id))
    .bind(kind.map(|kind| kind.as_str()))
    .bind(last.as_ref().map(|last| &last.at))
    .bind(to_text(now))
    .bind(context.as_str())
    .execute(tx)
    .await?;
    Ok(())
}
