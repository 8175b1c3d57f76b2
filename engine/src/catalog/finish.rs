//! The end of a backup: disk by disk, then as a whole, well or badly; and its progress on the way.

use sqlx::{FromRow, SqliteConnection};

use super::rows::{DiskRow, JobRow, disk_state, select_disks, select_jobs, signed};
use super::timestamp::to_text;
use super::{Catalog, DiskCompletion, DiskProgress, Ending};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::id::{BackupId, ContextId, DiskIndex, chain_row_id};
use crate::limits::{CHAIN_VIEW_ROWS_MAX, ERROR_TEXT_BYTES_MAX, PHASE_CHARS_MAX};
use crate::model::{
    Backup, BackupDisk, CompleteDisk, DiskCounters, DiskEvent, DiskState, DiskStatus, JobEvent,
    JobState, JobStatus, Progress,
};

impl Catalog {
    /// Records that a disk is complete and durable, with the counters of its export. Repeating the call with the same change
    /// id changes nothing.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown backup or disk; [`Conflict`](crate::ErrorKind::Conflict) if the backup has ended
    /// otherwise, the disk is not running, or it was completed with another change id.
    pub async fn complete_disk(
        &self,
        request: &CompleteDisk,
        counters: DiskCounters,
        now: Timestamp,
    ) -> Result<DiskCompletion, Error> {
        let (id, index) = (&request.backup_id, request.disk_index);
        let unknown = || {
            Error::not_found(
                "backup job not found",
                format!("backup disk not found: job_id={id} disk_index={index}"),
            )
        };
        let mut tx = self.write().await?;
        let job = find_job(&mut tx, id).await?.ok_or_else(unknown)?;
        let disks = load_disks(&mut tx, id).await?;
        let disk = disks
            .iter()
            .find(|disk| disk.disk_index == index)
            .ok_or_else(unknown)?;
        let status = job.state()?.status();
        if !matches!(status, JobStatus::Running | JobStatus::Completed) {
            return Err(Error::conflict(
                "backup is not running",
                format!("backup_id={id} status={status}"),
            ));
        }
        let repeated = disk.status == DiskStatus::Completed;
        let open = disks
            .iter()
            .filter(|other| other.status != DiskStatus::Completed && other.disk_index != index)
            .count();
        let completion = DiskCompletion {
            repeated,
            remaining: u32::try_from(open).unwrap_or(u32::MAX),
        };

        let change_id = request.change_id.clone();
        let before = disk_state(disk).ok_or_else(|| {
            Error::conflict(
                "disk is completed without a change id",
                format!("backup_id={id} disk_index={index}"),
            )
        })?;
        let after = before
            .apply(DiskEvent::Complete { at: now, change_id })
            .map_err(|refused| {
                let details = format!(
                    "backup_id={id} disk_index={index} disk_state={}",
                    refused.state
                );
                Error::conflict("disk cannot be completed", details)
                    .with_source(Error::from(refused))
            })?;
        if !repeated {
            store_disk(&mut tx, disk, &after).await?;
            store_counters(
                &mut tx,
                id,
                DiskProgress {
                    disk_index: index,
                    counters,
                },
                100.0,
            )
            .await?;
            sum_up(&mut tx, id).await?;
            tx.commit().await?;
        }
        Ok(completion)
    }

    /// All images are published: completes the backup and brings its context and chains up to date; clears the intent.
    /// `false`, and nothing changes, if it was completed before.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown backup; [`Conflict`](crate::ErrorKind::Conflict) if a disk is not completed or the
    /// backup has ended otherwise.
    pub async fn finish_backup(&self, id: &BackupId, now: Timestamp) -> Result<bool, Error> {
        let mut tx = self.write().await?;
        let job = load_job(&mut tx, id).await?;
        let state = job.state()?;
        if state.status() == JobStatus::Completed {
            return Ok(false);
        }
        let disks = load_disks(&mut tx, id).await?;
        let open: Vec<String> = disks
            .iter()
            .filter(|disk| disk.status != DiskStatus::Completed)
            .map(|disk| disk.disk_index.to_string())
            .collect();
        if disks.is_empty() || !open.is_empty() {
            let details = format!("backup_id={id} open_disks=[{}]", open.join(", "));
            return Err(Error::conflict(
                "backup has disks that are not completed",
                details,
            ));
        }
        store_job(&mut tx, &job, state.apply(JobEvent::Complete { at: now })?).await?;
        sqlx::query("UPDATE backup_jobs SET intent = NULL, progress_percent = 100, eta_seconds = 0 WHERE id = ?")
            .bind(id.as_str())
            .execute(&mut *tx)
            .await?;
        sum_up(&mut tx, id).await?;
        let backup = Backup::try_from(job)?;
        if let Some(context) = &backup.context_id {
            record_success(&mut tx, context, &backup, now).await?;
            for disk in &disks {
                advance_chain(&mut tx, context, disk, now).await?;
            }
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Ends a backup without success, with its open disks. `false`, and nothing changes, if it has ended before: what has
    /// completed is never demoted. The intent stays: the files are the caller's next step.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown backup.
    pub async fn fail_backup(
        &self,
        id: &BackupId,
        ending: Ending,
        reason: &str,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let reason = shortened(reason, ERROR_TEXT_BYTES_MAX);
        let mut tx = self.write().await?;
        let job = load_job(&mut tx, id).await?;
        let state = job.state()?;
        if state.status().has_ended() {
            return Ok(false);
        }
        let event = match ending {
            Ending::Failed => JobEvent::Fail {
                at: now,
                reason: reason.to_owned(),
            },
            Ending::Cancelled => JobEvent::Cancel {
                at: now,
                reason: reason.to_owned(),
            },
        };
        store_job(&mut tx, &job, state.apply(event)?).await?;
        for disk in load_disks(&mut tx, id).await? {
            if matches!(disk.status, DiskStatus::Pending | DiskStatus::Running) {
                let before = disk_state(&disk).expect("a pending or running disk has a state");
                let after = before.apply(DiskEvent::Fail {
                    reason: reason.to_owned(),
                })?;
                store_disk(&mut tx, &disk, &after).await?;
            }
        }
        sqlx::query(
            "UPDATE vm_backup_contexts SET failed_backups = failed_backups + 1, updated_at = ? WHERE context_id = ?",
        )
        .bind(to_text(now))
        .bind(&job.vm_backup_context_id)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Records the progress of a running backup and of as many of its disks as have something to say; without effect on a
    /// backup that does not run. Nothing goes backwards.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown backup.
    pub async fn update_progress(
        &self,
        id: &BackupId,
        progress: &Progress,
        updates: &[DiskProgress],
    ) -> Result<(), Error> {
        let mut tx = self.write().await?;
        let job = load_job(&mut tx, id).await?;
        if job.state()?.status() != JobStatus::Running {
            return Ok(());
        }
        let disks = load_disks(&mut tx, id).await?;
        for update in updates {
            let disk = disks
                .iter()
                .find(|disk| disk.disk_index == update.disk_index);
            let Some(disk) = disk.filter(|disk| disk.status != DiskStatus::Completed) else {
                continue;
            };
            let percent = share(update.counters.received_bytes, disk.capacity_bytes);
            store_counters(&mut tx, id, *update, percent).await?;
        }
        let percent = if progress.percent.is_nan() {
            0.0
        } else {
            progress.percent.clamp(0.0, 100.0)
        };
        let phase: String = progress.phase.chars().take(PHASE_CHARS_MAX).collect();
        sqlx::query(
            "UPDATE backup_jobs SET current_phase = COALESCE(NULLIF(?, ''), current_phase), transfer_speed_bps = ?, eta_seconds = ?, \
             progress_percent = CASE WHEN progress_percent > ? THEN progress_percent ELSE ? END, \
             last_telemetry_at = COALESCE(?, last_telemetry_at) WHERE id = ?",
        )
        .bind(phase)
        .bind(signed("transfer_speed_bps", progress.transfer_speed_bps)?)
        .bind(signed("eta_seconds", progress.eta_seconds)?)
        .bind(percent)
        .bind(percent)
        .bind(progress.last_telemetry_at.map(to_text))
        .bind(id.as_str())
        .execute(&mut *tx)
        .await?;
        sum_up(&mut tx, id).await?;
        tx.commit().await?;
        Ok(())
    }
}

pub(super) async fn find_job(
    tx: &mut SqliteConnection,
    id: &BackupId,
) -> Result<Option<JobRow>, Error> {
    let query = sqlx::query_as(select_jobs!("FROM backup_jobs j WHERE j.id = ?"));
    Ok(query.bind(id.as_str()).fetch_optional(tx).await?)
}

pub(super) async fn load_job(tx: &mut SqliteConnection, id: &BackupId) -> Result<JobRow, Error> {
    find_job(tx, id)
        .await?
        .ok_or_else(|| Error::not_found("backup not found", format!("backup_id={id}")))
}

pub(super) async fn load_disks(
    tx: &mut SqliteConnection,
    id: &BackupId,
) -> Result<Vec<BackupDisk>, Error> {
    let query = sqlx::query_as(select_disks!(
        "FROM backup_disks d LEFT JOIN backup_disks p ON p.id = d.parent_disk_id \
         WHERE d.backup_job_id = ? ORDER BY d.disk_index"
    ));
    let rows: Vec<DiskRow> = query.bind(id.as_str()).fetch_all(tx).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Stores the state that `row` became, if nobody else changed the row since it was read.
async fn store_job(tx: &mut SqliteConnection, row: &JobRow, state: JobState) -> Result<(), Error> {
    let status = state.status();
    let (ended_at, reason) = match state {
        JobState::Pending | JobState::Running { .. } => (None, None),
        JobState::Completed { at, .. } => (Some(at), None),
        JobState::Failed { at, reason } | JobState::Cancelled { at, reason } => {
            (Some(at), Some(reason))
        }
    };
    let stored = sqlx::query(
        "UPDATE backup_jobs SET status = ?, current_phase = ?, completed_at = ?, error_message = ?, transfer_speed_bps = 0, eta_seconds = 0, \
         version = version + 1 WHERE id = ? AND version = ?",
    )
    .bind(status.as_str())
    .bind(status.as_str())
    .bind(ended_at.map(to_text))
    .bind(reason)
    .bind(&row.id)
    .bind(row.version)
    .execute(tx)
    .await?;
    // The version always changes, so a row that was found counts as changed on every database.
    if stored.rows_affected() == 0 {
        return Err(Error::conflict(
            "backup was changed meanwhile",
            format!("backup_id={}", row.id),
        ));
    }
    Ok(())
}

async fn store_disk(
    tx: &mut SqliteConnection,
    disk: &BackupDisk,
    state: &DiskState,
) -> Result<(), Error> {
    let (at, change_id, reason) = match state {
        DiskState::Pending | DiskState::Running => (None, None, None),
        DiskState::Completed { at, change_id } => (Some(*at), Some(change_id.as_str()), None),
        DiskState::Failed { reason } => (None, None, Some(reason.as_str())),
    };
    sqlx::query("UPDATE backup_disks SET status = ?, completed_at = ?, disk_change_id = ?, error_message = ? WHERE id = ?")
        .bind(state.status().as_str())
        .bind(at.map(to_text))
        .bind(change_id)
        .bind(reason)
        .bind(disk.id.get())
        .execute(tx)
        .await?;
    Ok(())
}

async fn store_counters(
    tx: &mut SqliteConnection,
    id: &BackupId,
    progress: DiskProgress,
    percent: f64,
) -> Result<(), Error> {
    let received = signed("received_bytes", progress.counters.received_bytes)?;
    sqlx::query(
        "UPDATE backup_disks SET bytes_transferred = ?, received_bytes = ?, zero_bytes = ?, equal_bytes = ?, stored_bytes = ?, \
         written_bytes = ?, progress_percent = ? WHERE backup_job_id = ? AND disk_index = ?",
    )
    .bind(received)
    .bind(received)
    .bind(signed("zero_bytes", progress.counters.zero_bytes)?)
    .bind(signed("equal_bytes", progress.counters.equal_bytes)?)
    .bind(signed("stored_bytes", progress.counters.stored_bytes)?)
    .bind(signed("written_bytes", progress.counters.written_bytes)?)
    .bind(percent)
    .bind(id.as_str())
    .bind(progress.disk_index.get())
    .execute(tx)
    .await?;
    Ok(())
}

/// A job's bytes are those of its disks, never less than before.
async fn sum_up(tx: &mut SqliteConnection, id: &BackupId) -> Result<(), Error> {
    let sums: Vec<i64> =
        sqlx::query_scalar("SELECT bytes_transferred FROM backup_disks WHERE backup_job_id = ?")
            .bind(id.as_str())
            .fetch_all(&mut *tx)
            .await?;
    let total = sums.into_iter().fold(0i64, i64::saturating_add);
    sqlx::query(
        "UPDATE backup_jobs SET bytes_transferred = CASE WHEN bytes_transferred > ? THEN bytes_transferred ELSE ? END WHERE id = ?",
    )
    .bind(total)
    .bind(total)
    .bind(id.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

async fn record_success(
    tx: &mut SqliteConnection,
    context: &ContextId,
    backup: &Backup,
    now: Timestamp,
) -> Result<(), Error> {
    sqlx::query(
        "UPDATE vm_backup_contexts SET successful_backups = successful_backups + 1, last_backup_id = ?, last_backup_type = ?, \
         last_backup_at = ?, updated_at = ? WHERE context_id = ?",
    )
    .bind(backup.id.as_str())
    .bind(backup.backup_type.as_str())
    .bind(to_text(now))
    .bind(to_text(now))
    .bind(context.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

#[derive(FromRow)]
struct Extent {
    backup_job_id: String,
    stored_bytes: Option<i64>,
}

/// Sets the chain row of a disk to the chain that ends in `disk`, counted from its images, so that a repeat is harmless.
pub(super) async fn advance_chain(
    tx: &mut SqliteConnection,
    context: &ContextId,
    disk: &BackupDisk,
    now: Timestamp,
) -> Result<(), Error> {
    let images: Vec<Extent> = sqlx::query_as(
        "WITH RECURSIVE chain (id, depth) AS ( \
           SELECT id, 1 FROM backup_disks WHERE id = ? \
           UNION ALL SELECT b.parent_disk_id, c.depth + 1 FROM backup_disks b JOIN chain c ON b.id = c.id \
             WHERE b.parent_disk_id IS NOT NULL AND c.depth < ?) \
         SELECT d.backup_job_id, d.stored_bytes FROM chain c JOIN backup_disks d ON d.id = c.id ORDER BY c.depth DESC",
    )
    .bind(disk.id.get())
    .bind(CHAIN_VIEW_ROWS_MAX)
    .fetch_all(&mut *tx)
    .await?;
    let base = images.first().expect("a chain has at least its tip");
    let total_size = images
        .iter()
        .filter_map(|image| image.stored_bytes)
        .fold(0i64, i64::saturating_add);
    let index: DiskIndex = disk.disk_index;
    let created_at: Option<String> = sqlx::query_scalar(
        "SELECT created_at FROM backup_chains WHERE vm_context_id = ? AND disk_id = ?",
    )
    .bind(context.as_str())
    .bind(index.get())
    .fetch_optional(&mut *tx)
    .await?;
    sqlx::query("DELETE FROM backup_chains WHERE vm_context_id = ? AND disk_id = ?")
        .bind(context.as_str())
        .bind(index.get())
        .execute(&mut *tx)
        .await?;
    sqlx::query(
        "INSERT INTO backup_chains (id, vm_context_id, disk_id, full_backup_id, latest_backup_id, total_backups, total_size_bytes, \
         created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(chain_row_id(context, index))
    .bind(context.as_str())
    .bind(index.get())
    .bind(&base.backup_job_id)
    .bind(disk.backup_id.as_str())
    .bind(i64::try_from(images.len()).expect("a chain's length is bounded"))
    .bind(total_size)
    .bind(created_at.unwrap_or_else(|| to_text(now)))
    .bind(to_text(now))
    .execute(tx)
    .await?;
    Ok(())
}

/// `part` of `whole` in percent, between 0 and 100.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    let permyriad = u128::from(part.min(whole)) * 10_000 / u128::from(whole);
    f64::from(u32::try_from(permyriad).expect("at most 10 000")) / 100.0
}

/// The text, cut at a character so that it has at most `bytes_max` bytes.
fn shortened(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}
