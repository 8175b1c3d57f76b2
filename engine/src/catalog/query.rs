//! Reading backups.

use sqlx::SqliteConnection;

use super::finish::{load_disks, load_job};
use super::rows::{JobRow, select_jobs, unsigned};
use super::timestamp::from_optional_text;
use super::{Catalog, UnfinishedJob};
use crate::error::Error;
use crate::id::BackupId;
use crate::limits::PAGE_ROWS_MAX;
use crate::model::{Backup, BackupDisk, BackupFilter, BackupPage, BackupStats, PARENT_MARKER};

/// The rows that a filter lets through; `bind_filter!` has its values.
macro_rules! filtered {
    () => {
        "FROM backup_jobs j WHERE j.repository_path = ? \
         AND (? IS NULL OR j.vm_name = ?) AND (? IS NULL OR j.vm_context_id = ?) AND (? IS NULL OR j.repository_id = ?) \
         AND (? IS NULL OR j.status = ?) AND (? IS NULL OR j.backup_type = ?)"
    };
}

macro_rules! bind_filter {
    ($query:expr, $filter:expr) => {
        $query
            .bind(PARENT_MARKER)
            .bind(&$filter.vm_name)
            .bind(&$filter.vm_name)
            .bind(&$filter.vm_context_id)
            .bind(&$filter.vm_context_id)
            .bind(&$filter.repository_id)
            .bind(&$filter.repository_id)
            .bind(&$filter.status)
            .bind(&$filter.status)
            .bind(&$filter.backup_type)
            .bind(&$filter.backup_type)
    };
}

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
        Ok(self.backup_page(filter).await?.backups)
    }

    /// As [`backups`](Self::backups), with how many there are on all pages.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn backup_page(&self, filter: &BackupFilter) -> Result<BackupPage, Error> {
        let limit = filter.limit.unwrap_or(PAGE_ROWS_MAX).min(PAGE_ROWS_MAX);
        // One transaction, so that both statements see the same rows.
        let mut tx = self.reader().begin().await?;
        let total: i64 = bind_filter!(
            sqlx::query_scalar(concat!("SELECT COUNT(*) ", filtered!())),
            filter
        )
        .fetch_one(&mut *tx)
        .await?;
        let rows: Vec<JobRow> = bind_filter!(
            sqlx::query_as(concat!(
                select_jobs!(""),
                filtered!(),
                " ORDER BY j.created_at DESC, j.id DESC LIMIT ? OFFSET ?"
            )),
            filter
        )
        .bind(limit)
        .bind(filter.offset)
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        Ok(BackupPage {
            backups: rows
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, Error>>()?,
            total: unsigned("count", total)?,
        })
    }

    /// Sums over the completed backups of a VM, by its name, in a repository; zeros if there are none.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn backup_stats(
        &self,
        vm_name: &str,
        repository: &str,
    ) -> Result<BackupStats, Error> {
        let (count, received, last): (i64, i64, Option<String>) = sqlx::query_as(
            "SELECT COUNT(*), COALESCE(SUM(bytes_transferred), 0), MAX(COALESCE(completed_at, created_at)) FROM backup_jobs \
             WHERE vm_name = ? AND repository_id = ? AND repository_path = ? AND status = 'completed'",
        )
        .bind(vm_name)
        .bind(repository)
        .bind(PARENT_MARKER)
        .fetch_one(self.reader())
        .await?;
        Ok(BackupStats {
            count: unsigned("count", count)?,
            received_bytes: unsigned("bytes_transferred", received)?,
            last_at: from_optional_text("completed_at", last.as_deref())?,
        })
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
