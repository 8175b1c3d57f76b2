//! Reading backups.

use sqlx::SqliteConnection;

use super::finish::{load_disks, load_job};
use super::rows::{JobRow, select_jobs};
use super::{Catalog, UnfinishedJob};
use crate::error::Error;
use crate::id::BackupId;
use crate::limits::PAGE_ROWS_MAX;
use crate::model::{Backup, BackupDisk, BackupFilter, PARENT_MARKER};

impl Catalog {
    /// One backup; a per-disk row of a legacy hub counts, too.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is none with this id.
    pub async fn backup(&self, id: &BackupId) -> Result<Backup, Error> {
        let mut connection = self.reader().acquire().await?;
        load_job(&mut connection, id).await?.try_into()
    }

    /// Backups, without the per-disk rows of legacy hubs, newest first. All conditions of the filter hold.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn backups(&self, filter: &BackupFilter) -> Result<Vec<Backup>, Error> {
        let limit = filter.limit.unwrap_or(PAGE_ROWS_MAX).min(PAGE_ROWS_MAX);
        let rows: Vec<JobRow> = sqlx::query_as(select_jobs!(
            "FROM backup_jobs j WHERE j.repository_path = ? \
             AND (? IS NULL OR j.vm_name = ?) AND (? IS NULL OR j.vm_context_id = ?) AND (? IS NULL OR j.repository_id = ?) \
             AND (? IS NULL OR j.status = ?) AND (? IS NULL OR j.backup_type = ?) \
             ORDER BY j.created_at DESC, j.id DESC LIMIT ? OFFSET ?"
        ))
        .bind(PARENT_MARKER)
        .bind(&filter.vm_name)
        .bind(&filter.vm_name)
        .bind(&filter.vm_context_id)
        .bind(&filter.vm_context_id)
        .bind(&filter.repository_id)
        .bind(&filter.repository_id)
        .bind(&filter.status)
        .bind(&filter.status)
        .bind(&filter.backup_type)
        .bind(&filter.backup_type)
        .bind(limit)
        .bind(filter.offset)
        .fetch_all(self.reader())
        .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// The disks of a backup, by index.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown backup.
    pub async fn backup_disks(&self, id: &BackupId) -> Result<Vec<BackupDisk>, Error> {
        let mut connection = self.reader().acquire().await?;
        load_job(&mut connection, id).await?;
        load_disks(&mut connection, id).await
    }

    /// Pending and running backups, oldest first.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn running_jobs(&self) -> Result<Vec<Backup>, Error> {
        let rows: Vec<JobRow> = sqlx::query_as(select_jobs!(
            "FROM backup_jobs j WHERE j.repository_path = ? AND j.status IN ('pending', 'running') \
             ORDER BY j.created_at, j.id"
        ))
        .bind(PARENT_MARKER)
        .fetch_all(self.reader())
        .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// What recovery has to look at, oldest first: pending, running, or with an intent that was not cleared.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn unfinished_jobs(&self) -> Result<Vec<UnfinishedJob>, Error> {
        let mut connection = self.reader().acquire().await?;
        let rows: Vec<JobRow> = sqlx::query_as(select_jobs!(
            "FROM backup_jobs j WHERE j.repository_path = ? AND (j.status IN ('pending', 'running') OR j.intent IS NOT NULL) \
             ORDER BY j.created_at, j.id"
        ))
        .bind(PARENT_MARKER)
        .fetch_all(&mut *connection)
        .await?;
        let mut jobs = Vec::with_capacity(rows.len());
        for row in rows {
            jobs.push(with_disks(&mut connection, row).await?);
        }
        Ok(jobs)
    }
}

async fn with_disks(
    connection: &mut SqliteConnection,
    row: JobRow,
) -> Result<UnfinishedJob, Error> {
    let backup = Backup::try_from(row)?;
    let disks = load_disks(connection, &backup.id).await?;
    Ok(UnfinishedJob { backup, disks })
}
