//! Takes in what a client reports of its backup.

use std::sync::Arc;

use super::end_backup::end_backup;
use super::hub::Hub;
use crate::catalog::Ending;
use crate::error::{Error, ErrorKind};
use crate::id::BackupId;
use crate::model::{Telemetry, TelemetryMeaning};

/// Takes in a report. One of a backup that has ended changes nothing: clients report after they were told the end.
///
/// # Errors
///
/// `NotFound` for a backup that there never was.
pub(crate) async fn telemetry(hub: Arc<Hub>, id: BackupId, report: Telemetry) -> Result<(), Error> {
    let Some(job) = hub.job(&id) else {
        return hub.catalog.backup(&id).await.map(drop).map_err(not_found);
    };
    job.count_call();
    job.hear(&report, hub.clock.now());
    if let TelemetryMeaning::Failed(reason) = report.meaning() {
        let mut turn = job.turn.lock().await;
        end_backup(&hub, &job, &mut turn, Ending::Failed, &reason).await;
    }
    Ok(())
}

fn not_found(error: Error) -> Error {
    match error.kind {
        ErrorKind::NotFound => Error::not_found("backup job not found", error.details),
        _ => error,
    }
}
