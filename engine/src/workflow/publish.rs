//! Publishes a backup whose disks are all sealed: all of them get their names, or none keeps one.

use std::sync::Arc;

use super::end_backup::end_backup;
use super::events::tell;
use super::hooks::Step;
use super::hub::Hub;
use super::job::{Job, Turn};
use super::watch::record_progress;
use crate::blocking::blocking;
use crate::catalog::Ending;
use crate::error::Error;
use crate::model::{BackupChange, Intent};
use crate::repository::{ImagePath, Repository};

/// Publishes the backup and ends its job. May be repeated if a store failed in the middle.
pub(crate) async fn publish(hub: &Hub, job: &Job, turn: &mut Turn) -> Result<(), Error> {
    record_progress(hub, job, hub.clock.now()).await;
    hub.catalog
        .set_intent(&job.id, Some(Intent::Publishing))
        .await?;
    hub.reached(Step::PublishIntended).await;
    let paths: Vec<ImagePath> = job.disks.iter().map(|disk| disk.path.clone()).collect();
    if let Err(error) = publish_files(hub, &job.repository, paths).await {
        end_backup(hub, job, turn, Ending::Failed, &error.to_string()).await;
        return Err(error);
    }
    hub.reached(Step::AllPublished).await;
    // If the database fails here, a repeated call or the next start finishes.
    hub.catalog.finish_backup(&job.id, hub.clock.now()).await?;
    turn.has_ended = true;
    job.withdraw();
    hub.jobs().remove(&job.id);
    job.ended.cancel();
    tracing::info!(backup_id = %job.id, "backup completed");
    tell(hub, BackupChange::Completed, &job.id).await;
    Ok(())
}

/// Gives every image its final name. May be repeated.
pub(crate) async fn publish_files(
    hub: &Hub,
    repository: &Arc<Repository>,
    paths: Vec<ImagePath>,
) -> Result<(), Error> {
    for path in paths {
        let repository = Arc::clone(repository);
        blocking(move || repository.publish_image(&path)).await?;
        hub.reached(Step::OnePublished).await;
    }
    Ok(())
}
