//! Walking from an image down to its base.

use super::finish::load_job;
use super::rows::{DiskRow, JobRow, select_disks, select_jobs};
use super::{Catalog, ChainPoint};
use crate::error::Error;
use crate::id::{BackupDiskId, BackupId, DiskIndex, RepositoryId, VmContextId};
use crate::limits::CHAIN_VIEW_ROWS_MAX;
use crate::model::{Backup, BackupDisk, PARENT_MARKER};

impl Catalog {
    /// The newest completed point of a disk and everything below it, base first; empty if there is none.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn chain(
        &self,
        vm: &VmContextId,
        disk: DiskIndex,
        repository: Option<&RepositoryId>,
    ) -> Result<Vec<ChainPoint>, Error> {
        let repository = repository.map(RepositoryId::as_str);
        let tip: Option<i64> = sqlx::query_scalar(
            "SELECT d.id FROM backup_disks d JOIN backup_jobs j ON j.id = d.backup_job_id \
             WHERE j.vm_context_id = ? AND (? IS NULL OR j.repository_id = ?) AND j.repository_path = ? \
               AND j.status = 'completed' AND d.disk_index = ? AND d.status = 'completed' \
             ORDER BY COALESCE(j.completed_at, d.completed_at, j.created_at) DESC, d.id DESC LIMIT 1",
        )
        .bind(vm.as_str())
        .bind(repository)
        .bind(repository)
        .bind(PARENT_MARKER)
        .bind(disk.get())
        .fetch_optional(self.reader())
        .await?;
        let Some(tip) = tip else {
            return Ok(Vec::new());
        };
        let mut points = self.points_below(BackupDiskId::new(tip)).await?;
        points.reverse();
        Ok(points)
    }

    /// The images that one disk of a backup stands on: itself first, its base last.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown backup or disk.
    pub async fn layers(&self, id: &BackupId, disk: DiskIndex) -> Result<Vec<ChainPoint>, Error> {
        let mut connection = self.reader().acquire().await?;
        load_job(&mut connection, id).await?;
        let tip: Option<i64> = sqlx::query_scalar(
            "SELECT id FROM backup_disks WHERE backup_job_id = ? AND disk_index = ?",
        )
        .bind(id.as_str())
        .bind(disk.get())
        .fetch_optional(&mut *connection)
        .await?;
        drop(connection);
        let tip = tip.ok_or_else(|| {
            Error::not_found(
                "backup disk not found",
                format!("backup_id={id} disk_index={disk}"),
            )
        })?;
        self.points_below(BackupDiskId::new(tip)).await
    }

    /// A disk and its ancestors, tip first.
    async fn points_below(&self, tip: BackupDiskId) -> Result<Vec<ChainPoint>, Error> {
        // One transaction, so that both statements see the same rows.
        let mut tx = self.reader().begin().await?;
        let disks: Vec<DiskRow> = sqlx::query_as(select_disks!(
            "WITH RECURSIVE chain (id, depth) AS ( \
               SELECT id, 1 FROM backup_disks WHERE id = ? \
               UNION ALL SELECT b.parent_disk_id, c.depth + 1 FROM backup_disks b JOIN chain c ON b.id = c.id \
                 WHERE b.parent_disk_id IS NOT NULL AND c.depth < ?)",
            "FROM chain c JOIN backup_disks d ON d.id = c.id LEFT JOIN backup_disks p ON p.id = d.parent_disk_id ORDER BY c.depth"
        ))
        .bind(tip.get())
        .bind(CHAIN_VIEW_ROWS_MAX)
        .fetch_all(&mut *tx)
        .await?;
        let jobs: Vec<JobRow> = sqlx::query_as(select_jobs!(
            "WITH RECURSIVE chain (id, depth) AS ( \
               SELECT id, 1 FROM backup_disks WHERE id = ? \
               UNION ALL SELECT b.parent_disk_id, c.depth + 1 FROM backup_disks b JOIN chain c ON b.id = c.id \
                 WHERE b.parent_disk_id IS NOT NULL AND c.depth < ?)",
            "FROM chain c JOIN backup_disks d ON d.id = c.id JOIN backup_jobs j ON j.id = d.backup_job_id ORDER BY c.depth"
        ))
        .bind(tip.get())
        .bind(CHAIN_VIEW_ROWS_MAX)
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        let mut points = Vec::with_capacity(disks.len());
        for (disk, job) in disks.into_iter().zip(jobs) {
            points.push(ChainPoint {
                backup: Backup::try_from(job)?,
                disk: BackupDisk::try_from(disk)?,
            });
        }
        Ok(points)
    }
}
