//! The orderly end of a hub.

use super::end_backup::end_backup;
use super::hub::Hub;
use crate::catalog::Ending;

/// Refuses new work, waits for what is being completed, fails what still runs (its clients cannot come back to it), closes
/// the catalog. May be called many times.
pub(crate) async fn shutdown(hub: &Hub) {
    hub.stopping.cancel();
    hub.events.end();
    // A start that is half way either finishes, and is ended below, or finds the exports closed and undoes itself.
    let exports = hub.exports.shut_down();
    hub.tasks.close();
    loop {
        let running: Vec<_> = hub.jobs().values().cloned().collect();
        for job in &running {
            let mut turn = job.turn.lock().await;
            end_backup(hub, job, &mut turn, Ending::Failed, "hub was shut down").await;
        }
        tokio::select! {
            () = hub.tasks.wait() => break,
            () = tokio::time::sleep(RECHECK) => {}
        }
    }
    for export in exports {
        export.stop_requests().await;
        export.withdraw();
    }
    hub.catalog.close().await;
}

/// How long to wait for workflows before looking again for jobs that they have started meanwhile.
const RECHECK: std::time::Duration = std::time::Duration::from_millis(50);
