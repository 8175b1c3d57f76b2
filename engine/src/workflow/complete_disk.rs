//! Completes one disk: its data is durable and sealed when this returns. The last disk publishes the backup.
//!
//! ```text
//! stop writes ─▶ drain ─▶ flush ─▶ hashes, seal, manifest, fsync ─▶ row completed ─▶ (last disk) publish
//! ```
//! Clients repeat the call, race it, and keep their connections open while they make it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::cancel::not_running;
use super::end_backup::{end_backup, storage_failed};
use super::events::tell;
use super::hooks::Step;
use super::hub::Hub;
use super::job::{Job, JobDisk, Turn};
use super::publish::publish;
use crate::blocking::blocking;
use crate::catalog::Ending;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::export::StorageFailure;
use crate::id::ChangeId;
use crate::model::{BackupChange, CompleteDisk, DiskStatus, JobStatus};
use crate::repository::{Counters, ImageFacts, MANIFEST_VERSION, Manifest};

/// Completes a disk. Repeating it with the same change id is fine, whatever has happened in between.
pub(crate) async fn complete_disk(hub: Arc<Hub>, request: CompleteDisk) -> Result<(), Error> {
    let Some(job) = hub.job(&request.backup_id) else {
        return repeated(&hub, &request).await;
    };
    job.count_call();
    let mut turn = job.turn.lock().await;
    if turn.has_ended {
        return repeated(&hub, &request).await;
    }
    let disk = job
        .disk(request.disk_index)
        .ok_or_else(|| no_such_disk(&request))?;
    match turn.sealed.get(&request.disk_index) {
        Some(sealed) if *sealed != request.change_id => {
            return Err(another_change_id(&request, sealed));
        }
        Some(_) => {}
        None => seal(&hub, &job, disk, &request.change_id, &mut turn).await?,
    }
    hub.reached(Step::Sealed).await;
    let completion = hub
        .catalog
        .complete_disk(&request, disk.counters(), hub.clock.now())
        .await?;
    hub.reached(Step::DiskCompleted).await;
    if !completion.repeated {
        tell(&hub, BackupChange::DiskCompleted, &job.id).await;
    }
    if completion.remaining == 0 {
        publish(&hub, &job, &mut turn).await?;
    }
    Ok(())
}

/// A call for a backup that is not running: right if it completed just so.
async fn repeated(hub: &Hub, request: &CompleteDisk) -> Result<(), Error> {
    let backup = hub
        .catalog
        .backup(&request.backup_id)
        .await
        .map_err(|error| match error.kind {
            crate::ErrorKind::NotFound => no_such_disk(request),
            _ => error,
        })?;
    let disks = hub.catalog.backup_disks(&request.backup_id).await?;
    let disk = disks
        .iter()
        .find(|disk| disk.disk_index == request.disk_index);
    let disk = disk.ok_or_else(|| no_such_disk(request))?;
    if backup.status != JobStatus::Completed || disk.status != DiskStatus::Completed {
        return Err(not_running(&backup));
    }
    match &disk.change_id {
        Some(recorded) if *recorded != request.change_id => {
            Err(another_change_id(request, recorded))
        }
        _ => Ok(()),
    }
}

/// Makes the image of one disk final. A failure ends the whole backup: a client does not come back to a half-sealed disk.
async fn seal(
    hub: &Hub,
    job: &Job,
    disk: &JobDisk,
    change_id: &ChangeId,
    turn: &mut Turn,
) -> Result<(), Error> {
    hub.exports.unregister(disk.export_name.as_str());
    disk.live.stop_requests().await;
    let outcome = match disk.live.failure() {
        Some(error) => Err(storage_failed(&StorageFailure {
            disk: disk.index,
            error: error.clone(),
        })),
        None => seal_image(hub, job, disk, change_id).await,
    };
    match outcome {
        Ok(()) => {
            turn.sealed.insert(disk.index, change_id.clone());
            disk.is_sealed.store(true, Ordering::Relaxed);
            // The client waited for this; its time begins anew.
            job.count_call();
            Ok(())
        }
        Err(error) => {
            end_backup(hub, job, turn, Ending::Failed, &error.to_string()).await;
            Err(error)
        }
    }
}

async fn seal_image(
    hub: &Hub,
    job: &Job,
    disk: &JobDisk,
    change_id: &ChangeId,
) -> Result<(), Error> {
    let seal = qcow2::Seal {
        point_id: job.id.to_string(),
        parent_id: disk
            .parent
            .as_ref()
            .map(|parent| parent.backup_id.to_string()),
        change_id: Some(change_id.to_string()),
        // The image knows them when it is sealed.
        hashes: None,
    };
    let mut manifest = manifest(job, disk, change_id, hub.clock.now())?;
    let (repository, image, path) = (
        Arc::clone(&job.repository),
        Arc::clone(&disk.image),
        disk.path.clone(),
    );
    blocking(move || {
        repository.seal_image(&path, &image, &seal, |info| {
            manifest.size_bytes = info.file_size_bytes;
            manifest.qcow2_info = ImageFacts {
                format: "qcow2".to_owned(),
                virtual_size: info.virtual_size_bytes,
                cluster_size: info.cluster_size_bytes,
                backing_file: info.backing.as_ref().map(|backing| backing.name.clone()),
                hashes_root: info
                    .seal
                    .as_ref()
                    .and_then(|seal| seal.hashes)
                    .map(|root| root.to_string()),
            };
            manifest
        })
    })
    .await
}

/// What stands beside the image; the facts of the file are filled in once it is final.
fn manifest(
    job: &Job,
    disk: &JobDisk,
    change_id: &ChangeId,
    now: Timestamp,
) -> Result<Manifest, Error> {
    let counters = disk.counters();
    let disks_count = u32::try_from(job.disks.len())
        .map_err(|error| Error::internal("too many disks", "").with_source(error))?;
    Ok(Manifest {
        manifest_version: MANIFEST_VERSION,
        backup_id: job.id.to_string(),
        vm_context_id: job.vm.context_id.to_string(),
        vm_name: job.vm.vm_name.clone(),
        disk_id: disk.index.get(),
        disks_count,
        device_key: disk.device_key.get(),
        backup_type: job.backup_type.to_string(),
        parent_backup_id: disk
            .parent
            .as_ref()
            .map(|parent| parent.backup_id.to_string()),
        change_id: Some(change_id.to_string()),
        base_change_id: disk
            .parent
            .as_ref()
            .map(|parent| parent.base_change_id.to_string()),
        total_bytes: disk.capacity_bytes,
        size_bytes: 0,
        created_at: rfc3339(job.created_at)?,
        completed_at: rfc3339(now)?,
        qcow2_info: ImageFacts {
            format: String::new(),
            virtual_size: 0,
            cluster_size: 0,
            backing_file: None,
            hashes_root: None,
        },
        counters: Counters {
            received_bytes: counters.received_bytes,
            zero_bytes: counters.zero_bytes,
            equal_bytes: counters.equal_bytes,
            stored_bytes: counters.stored_bytes,
        },
    })
}

fn rfc3339(at: Timestamp) -> Result<String, Error> {
    at.to_offset(time::UtcOffset::UTC)
        .format(&time::format_description::well_known::Rfc3339)
        .map_err(|error| Error::internal("failed to write a time", "").with_source(error))
}

fn no_such_disk(request: &CompleteDisk) -> Error {
    let details = format!(
        "backup disk not found: job_id={} disk_index={}",
        request.backup_id, request.disk_index
    );
    Error::not_found("backup job not found", details)
}

fn another_change_id(request: &CompleteDisk, recorded: &ChangeId) -> Error {
    let details = format!(
        "backup_id={} disk_index={} recorded={recorded} given={}",
        request.backup_id, request.disk_index, request.change_id
    );
    Error::conflict("disk was completed with another change id", details)
}
