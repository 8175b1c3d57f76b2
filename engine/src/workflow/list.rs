//! Backups and their disks as they are now: rows, and the live counters of those that run.

use std::sync::Arc;

use super::hub::Hub;
use super::job::Job;
use crate::error::{Error, ErrorKind};
use crate::id::BackupId;
use crate::model::{Backup, BackupDisk, BackupFilter, BackupPage, DiskStatus};

/// Backups, newest first. A VM name that nothing knows is an error, not an empty list.
pub(crate) async fn backups(hub: &Hub, filter: &BackupFilter) -> Result<BackupPage, Error> {
    let mut found = hub.catalog.backup_page(filter).await?;
    if let (0, Some(name)) = (found.total, &filter.vm_name) {
        match hub.catalog.vm_by_name_or_id(name).await {
            Err(error) if error.kind == ErrorKind::NotFound => return Err(error),
            // It has no backups, or its name stands for several.
            Ok(_) | Err(_) => {}
        }
    }
    for backup in &mut found.backups {
        add_progress(hub, backup);
    }
    Ok(found)
}

/// One backup.
pub(crate) async fn backup(hub: &Hub, id: &BackupId) -> Result<Backup, Error> {
    let mut found = hub.catalog.backup(id).await?;
    add_progress(hub, &mut found);
    Ok(found)
}

/// The disks of a backup, by index, with absolute image paths.
pub(crate) async fn backup_disks(hub: &Hub, id: &BackupId) -> Result<Vec<BackupDisk>, Error> {
    let backup = hub.catalog.backup(id).await?;
    let mut disks = hub.catalog.backup_disks(id).await?;
    let repository = hub.repository(&backup.repository_id).await.ok();
    let job = hub.job(id);
    for disk in &mut disks {
        if let (Some(repository), Some(recorded)) = (&repository, &disk.image_path) {
            // A path that is not usable is shown as it is recorded.
            if let Ok(path) = repository.parse(recorded) {
                disk.image_path = Some(repository.absolute(&path));
            }
        }
        if disk.status != DiskStatus::Completed {
            add_live_counters(job.as_ref(), disk);
        }
    }
    Ok(disks)
}

fn add_live_counters(job: Option<&Arc<Job>>, disk: &mut BackupDisk) {
    let Some(job) = job else { return };
    if let Some(live) = job.disk(disk.disk_index) {
        let counters = live.counters();
        disk.progress_percent = disk.progress_percent.max(job.disk_percent(live));
        disk.received_bytes = counters.received_bytes;
        disk.zero_bytes = counters.zero_bytes;
        disk.equal_bytes = counters.equal_bytes;
        disk.stored_bytes = counters.stored_bytes;
        disk.written_bytes = counters.written_bytes;
    }
}

/// What the row of a running backup will say when its progress is recorded next.
fn add_progress(hub: &Hub, backup: &mut Backup) {
    let Some(job) = hub.job(&backup.id).filter(|_| !backup.status.has_ended()) else {
        return;
    };
    let progress = job.measure(hub.clock.now());
    backup.current_phase = match backup.intent {
        Some(intent) => intent.to_string(),
        None => progress.phase,
    };
    backup.bytes_transferred = backup.bytes_transferred.max(progress.bytes_transferred);
    backup.transfer_speed_bps = progress.transfer_speed_bps;
    backup.eta_seconds = progress.eta_seconds;
    backup.progress_percent = backup.progress_percent.max(progress.percent);
    backup.last_telemetry_at = progress.last_telemetry_at.or(backup.last_telemetry_at);
}
