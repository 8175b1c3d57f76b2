//! Finishes or undoes what the last run of this hub left in the middle.
//!
//! | the row says | what is done |
//! |---|---|
//! | creating | the start was never answered: files and rows are removed |
//! | running | clients cannot come back to it: failed, files removed |
//! | publishing | all images sealed and there: finished; else failed, files removed |
//! | ended without success, with an intent | files removed |
//! | completed, deleting | nothing depended on it: files and rows are removed |

use std::collections::HashSet;
use std::sync::Arc;

use super::delete_backup::remove;
use super::end_backup::{record_end, remove_files};
use super::hub::Hub;
use super::publish::publish_files;
use crate::blocking::blocking;
use crate::catalog::{Ending, UnfinishedJob};
use crate::error::Error;
use crate::id::{BackupId, RepositoryId};
use crate::model::{Intent, JobStatus};
use crate::repository::{Discard, ImagePath, ImageState, Repository};

/// Brings both stores to the same truth. A job whose repository is not there stays as it is, for the next start.
pub(crate) async fn recover(hub: &Hub) -> Result<(), Error> {
    for job in hub.catalog.unfinished_jobs().await? {
        if let Err(error) = recover_job(hub, &job).await {
            tracing::error!(backup_id = %job.backup.id, %error, "an unfinished backup was not recovered");
        }
    }
    for row in hub.catalog.repositories().await? {
        let swept = match hub.open_row(&row).await {
            Ok(repository) => sweep(hub, &row.id, repository).await,
            Err(error) => Err(error),
        };
        if let Err(error) = swept {
            tracing::warn!(repository_id = %row.id, %error, "a repository was not swept");
        }
    }
    Ok(())
}

async fn recover_job(hub: &Hub, job: &UnfinishedJob) -> Result<(), Error> {
    let id = &job.backup.id;
    let repository = hub.repository(&job.backup.repository_id).await?;
    let paths = image_paths(&repository, job)?;
    match (job.backup.status, job.backup.intent) {
        (JobStatus::Pending | JobStatus::Running, Some(Intent::Creating)) => {
            let files = Arc::clone(&repository);
            blocking(move || {
                paths
                    .iter()
                    .try_for_each(|path| files.discard_image(path, &Discard::Partial))
            })
            .await?;
            hub.catalog.delete_backup_rows(id).await?;
            tracing::warn!(backup_id = %id, "removed a backup whose start was cut short");
        }
        (JobStatus::Pending | JobStatus::Running, Some(Intent::Publishing)) => {
            if all_sealed(&repository, id, &paths).await? {
                publish_files(hub, &repository, paths).await?;
                hub.catalog.finish_backup(id, hub.clock.now()).await?;
                tracing::warn!(backup_id = %id, "finished a backup whose publication was cut short");
            } else {
                let reason = "hub restarted while publishing, an image is missing";
                fail(
                    hub,
                    id,
                    &repository,
                    paths,
                    Discard::Everything(id.clone()),
                    reason,
                )
                .await?;
            }
        }
        (JobStatus::Pending | JobStatus::Running, Some(Intent::Deleting)) => {
            let what = Discard::Everything(id.clone());
            fail(hub, id, &repository, paths, what, "hub restarted").await?;
        }
        (JobStatus::Pending | JobStatus::Running, None) => {
            fail(
                hub,
                id,
                &repository,
                paths,
                Discard::Partial,
                "hub restarted",
            )
            .await?;
        }
        (JobStatus::Failed | JobStatus::Cancelled, _) => {
            remove_files(hub, id, &repository, paths, Discard::Everything(id.clone())).await?;
        }
        (JobStatus::Completed, Some(Intent::Deleting)) => {
            remove(hub, &repository, &job.backup, &job.disks).await?;
            tracing::warn!(backup_id = %id, "finished a deletion that was cut short");
        }
        // Nothing of ours leaves a completed backup with another intent; its files are not touched.
        (JobStatus::Completed, intent) => {
            tracing::error!(backup_id = %id, ?intent, "a completed backup has an open intent");
        }
    }
    Ok(())
}

async fn fail(
    hub: &Hub,
    id: &BackupId,
    repository: &Arc<Repository>,
    paths: Vec<ImagePath>,
    what: Discard,
    reason: &str,
) -> Result<(), Error> {
    if what == Discard::Partial {
        // Without an intent: should the hub die now, the sweep takes the partial files, and nothing takes more.
        let now = hub.clock.now();
        hub.catalog
            .fail_backup(id, Ending::Failed, reason, now)
            .await?;
    } else {
        record_end(hub, id, Ending::Failed, reason).await?;
    }
    remove_files(hub, id, repository, paths, what).await?;
    tracing::warn!(backup_id = %id, reason, "failed an unfinished backup");
    Ok(())
}

fn image_paths(repository: &Repository, job: &UnfinishedJob) -> Result<Vec<ImagePath>, Error> {
    job.disks
        .iter()
        .filter_map(|disk| disk.image_path.as_deref())
        .map(|path| repository.parse(path))
        .collect()
}

/// Whether every image of the backup is there, partial or published, with its seal and the hashes that this names.
async fn all_sealed(
    repository: &Arc<Repository>,
    id: &BackupId,
    paths: &[ImagePath],
) -> Result<bool, Error> {
    let (repository, id, paths) = (Arc::clone(repository), id.clone(), paths.to_vec());
    blocking(move || {
        for path in &paths {
            let (ImageState::Published(seal) | ImageState::Partial(seal)) =
                repository.image_state(path)?
            else {
                return Ok(false);
            };
            let Some(seal) = seal.filter(|seal| seal.point_id == id.as_str()) else {
                return Ok(false);
            };
            if !repository.has_its_hashes(path, &seal)? {
                return Ok(false);
            }
        }
        Ok(!paths.is_empty())
    })
    .await
}

/// Removes partial files that no unfinished backup claims, and reports published ones that no row knows.
async fn sweep(hub: &Hub, id: &RepositoryId, repository: Arc<Repository>) -> Result<(), Error> {
    let recorded = hub.catalog.image_paths(id).await?;
    let unfinished = hub.catalog.unfinished_jobs().await?;
    let report = blocking(move || {
        // A recorded name that is no file of this repository claims nothing.
        let parse = |path: &String| repository.parse(path).ok();
        let known: HashSet<ImagePath> = recorded.iter().filter_map(parse).collect();
        let disks = unfinished.iter().flat_map(|job| &job.disks);
        let written: HashSet<ImagePath> = disks
            .filter_map(|disk| disk.image_path.as_ref())
            .filter_map(parse)
            .collect();
        repository.sweep(&known, &written)
    })
    .await?;
    for file in &report.removed {
        tracing::warn!(repository_id = %id, file, "removed a partial file that no running backup writes");
    }
    for file in &report.kept {
        tracing::warn!(repository_id = %id, file, "kept a partial file that no running backup writes: it is in use");
    }
    for file in &report.unknown {
        tracing::warn!(repository_id = %id, file, "found an image that no backup knows");
    }
    Ok(())
}
