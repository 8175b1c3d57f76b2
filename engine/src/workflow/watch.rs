//! The one task that looks at every running backup: measures it, records how far it is, and fails it when its client is
//! gone. A client that dies tells nobody (legacy client, error paths).

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::end_backup::end_backup;
use super::events::tell;
use super::hub::Hub;
use super::job::{Job, Turn};
use super::publish::publish;
use crate::catalog::{DiskProgress, Ending};
use crate::clock::Timestamp;
use crate::limits::{RECORD_INTERVAL_S, WATCH_INTERVAL};
use crate::model::{BackupChange, Silence};

/// Looks at the running backups from now on, until the hub stops or is dropped.
pub(crate) fn watch(hub: &Arc<Hub>) {
    let (weak, stopping) = (Arc::downgrade(hub), hub.stopping.clone());
    hub.tasks.spawn(async move {
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(WATCH_INTERVAL) => {}
            }
            let Some(hub) = weak.upgrade() else { return };
            for (job, silence) in look(&hub).await {
                let hub = Arc::clone(&hub);
                // A storage that hangs must not keep the others from being looked at.
                let tasks = hub.tasks.clone();
                tasks.spawn(async move { give_up(&hub, &job, silence).await });
            }
        }
    });
}

/// Looks at every running backup once; those whose client is gone are returned.
pub(crate) async fn look(hub: &Hub) -> Vec<(Arc<Job>, Silence)> {
    let mut looked_at = hub.looked_at.lock().await;
    let now = hub.clock.now();
    // A clock that was set back has not moved.
    let passed = Duration::try_from(now - *looked_at).unwrap_or_default();
    *looked_at = now;
    let running: Vec<_> = hub.jobs().values().cloned().collect();
    let mut gone = Vec::new();
    for job in running {
        if is_due(&job, now) {
            record_progress(hub, &job, now).await;
        } else {
            job.measure(now);
        }
        if hub.events.is_heard() && is_news(&job, now) {
            tell(hub, BackupChange::Progress, &job.id).await;
        }
        // Whoever has the turn is at work for a client that waits, or ends the job.
        if job.turn.try_lock().is_err() {
            job.count_call();
        }
        let signs = job.signs();
        let mut watched = job.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let silence = watched.watch.look(signs, passed, &hub.limits);
        drop(watched);
        gone.extend(silence.map(|silence| (job, silence)));
    }
    gone
}

/// Ends a backup whose client is gone. One whose disks are all sealed lacks nothing: the database or the repository was in
/// the way when its client completed it, so that is tried once more.
pub(crate) async fn give_up(hub: &Hub, job: &Job, silence: Silence) {
    let mut turn = job.turn.lock().await;
    if turn.has_ended {
        return;
    }
    if is_sealed(job, &turn) && publish(hub, job, &mut turn).await.is_ok() {
        return;
    }
    end_backup(hub, job, &mut turn, Ending::Failed, &silence.to_string()).await;
}

/// Records how far a backup is and what came in for its disks. What the database refuses is recorded the next time.
pub(crate) async fn record_progress(hub: &Hub, job: &Job, now: Timestamp) {
    let progress = job.measure(now);
    let counted = |disk: &super::job::JobDisk| DiskProgress {
        disk_index: disk.index,
        counters: disk.counters(),
    };
    let disks: Vec<_> = job.disks.iter().map(counted).collect();
    let recorded = hub
        .catalog
        .update_progress(&job.id, &progress, &disks)
        .await;
    if let Err(error) = &recorded {
        tracing::warn!(backup_id = %job.id, %error, "progress was not recorded");
    }
    let mut watched = job.watched.lock().unwrap_or_else(PoisonError::into_inner);
    watched.recorded_at = now;
    watched.recorded = recorded.is_ok().then_some(progress);
}

/// Whether there is something to record, and the last time is long enough ago.
fn is_due(job: &Job, now: Timestamp) -> bool {
    let progress = job.measure(now);
    let watched = job.watched.lock().unwrap_or_else(PoisonError::into_inner);
    let passed = (now - watched.recorded_at).whole_seconds();
    let is_time = !(0..RECORD_INTERVAL_S).contains(&passed);
    is_time && watched.recorded.as_ref() != Some(&progress)
}

/// Whether the backup has changed since live views were told.
fn is_news(job: &Job, now: Timestamp) -> bool {
    let progress = job.measure(now);
    let mut watched = job.watched.lock().unwrap_or_else(PoisonError::into_inner);
    let is_news = watched.told.as_ref() != Some(&progress);
    watched.told = Some(progress);
    is_news
}

fn is_sealed(job: &Job, turn: &Turn) -> bool {
    job.disks
        .iter()
        .all(|disk| turn.sealed.contains_key(&disk.index))
}
