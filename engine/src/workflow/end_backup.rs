//! The one way in which a running backup ends without success: fence, record, remove its files.

use std::sync::Arc;

use super::events::tell;
use super::hooks::Step;
use super::hub::Hub;
use super::job::{Job, Turn};
use super::watch::record_progress;
use crate::blocking::blocking;
use crate::catalog::{Catalog, Ending};
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind};
use crate::export::StorageFailure;
use crate::id::BackupId;
use crate::limits::{RECORD_RETRY_FIRST, RECORD_RETRY_LAST};
use crate::model::{BackupChange, Intent};
use crate::repository::{Discard, ImagePath, Repository};

/// Ends a backup whose turn the caller has. Nothing of it can become a parent afterwards. An error of one of the stores
/// does not stop the other: what is left undone is found at the next start.
pub(crate) async fn end_backup(
    hub: &Hub,
    job: &Job,
    turn: &mut Turn,
    ending: Ending,
    reason: &str,
) {
    if turn.has_ended {
        return;
    }
    turn.has_ended = true;
    job.fence(&hub.exports).await;
    job.withdraw();
    record_progress(hub, job, hub.clock.now()).await;
    let recorded = record_end(hub, &job.id, ending, reason).await;
    if let Err(error) = &recorded {
        tracing::error!(backup_id = %job.id, %error, "the end of a backup was not recorded yet");
    }
    hub.reached(Step::FailRecorded).await;
    let paths = job.disks.iter().map(|disk| disk.path.clone()).collect();
    let what = Discard::Everything(job.id.clone());
    if let Err(error) = remove_files(hub, &job.id, &job.repository, paths, what).await {
        tracing::error!(backup_id = %job.id, %error, "files of an ended backup were not removed");
    }
    // A full disk refuses the record, too; where the files were on the same disk, its space is free now.
    if recorded.is_err() {
        record_until_done(hub, &job.id, ending, reason).await;
    }
    hub.jobs().remove(&job.id);
    job.ended.cancel();
    tracing::warn!(backup_id = %job.id, ?ending, reason, "backup ended without success");
    let change = match ending {
        Ending::Failed => BackupChange::Failed,
        Ending::Cancelled => BackupChange::Cancelled,
    };
    tell(hub, change, &job.id).await;
}

/// Records an end that the database refused at first: now, and if it still refuses, again and again in the background until
/// the hub stops. Until then the row says `running` and keeps the VM from a new backup; the next start would find it.
async fn record_until_done(hub: &Hub, id: &BackupId, ending: Ending, reason: &str) {
    if record_ended(&hub.catalog, id, ending, reason, hub.clock.now())
        .await
        .is_ok()
    {
        return;
    }
    let (catalog, clock, stopping) = (
        hub.catalog.clone(),
        Arc::clone(&hub.clock),
        hub.stopping.clone(),
    );
    let (id, reason) = (id.clone(), reason.to_owned());
    hub.tasks.spawn(async move {
        let mut pause = RECORD_RETRY_FIRST;
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            match record_ended(&catalog, &id, ending, &reason, clock.now()).await {
                Ok(()) => return tracing::info!(backup_id = %id, "the end of a backup is recorded"),
                Err(error) => tracing::error!(backup_id = %id, %error, "the end of a backup is still not recorded"),
            }
            pause = (pause * 2).min(RECORD_RETRY_LAST);
        }
    });
}

/// Records the end of a backup whose files are gone.
async fn record_ended(
    catalog: &Catalog,
    id: &BackupId,
    ending: Ending,
    reason: &str,
    now: Timestamp,
) -> Result<(), Error> {
    catalog.fail_backup(id, ending, reason, now).await?;
    catalog.set_intent(id, None).await
}

/// Records that a backup has ended without success and that its files are to go. The intent comes first: a crash in between
/// leaves a row that recovery looks at.
pub(crate) async fn record_end(
    hub: &Hub,
    id: &BackupId,
    ending: Ending,
    reason: &str,
) -> Result<(), Error> {
    hub.catalog.set_intent(id, Some(Intent::Deleting)).await?;
    hub.catalog
        .fail_backup(id, ending, reason, hub.clock.now())
        .await?;
    Ok(())
}

/// Removes the files of a backup that has ended without success, and clears the intent. May be repeated.
pub(crate) async fn remove_files(
    hub: &Hub,
    id: &BackupId,
    repository: &Arc<Repository>,
    paths: Vec<ImagePath>,
    what: Discard,
) -> Result<(), Error> {
    let repository = Arc::clone(repository);
    blocking(move || {
        paths
            .iter()
            .try_for_each(|path| repository.discard_image(path, &what))
    })
    .await?;
    hub.catalog.set_intent(id, None).await
}

/// A disk of a running backup can not become a good image any more: the whole backup fails at once, because its client
/// may neither report nor even exit.
pub(crate) async fn end_on_storage_failure(hub: &Hub, job: &Job, failure: &StorageFailure) {
    let mut turn = job.turn.lock().await;
    let reason = storage_failed(failure).to_string();
    end_backup(hub, job, &mut turn, Ending::Failed, &reason).await;
}

/// The error that a storage failure is to the caller.
pub(crate) fn storage_failed(failure: &StorageFailure) -> Error {
    let (kind, message) = if failure.error.code == nbd_server::ErrorCode::NOSPC {
        (ErrorKind::NoSpace, "no space left in the repository")
    } else {
        (ErrorKind::Unavailable, "storage of the repository failed")
    };
    Error::new(
        kind,
        message,
        format!("disk={} error={}", failure.disk, failure.error),
    )
}
