//! Answers a client that asks where its disk's changes start.

use super::hub::Hub;
use crate::error::Error;
use crate::id::DiskIndex;
use crate::model::{ChangeIdAnswer, answer_change_id};

/// The base of the image that is being written for this disk; empty means: copy everything.
pub(crate) async fn change_id(
    hub: &Hub,
    vm_name: &str,
    disk: DiskIndex,
) -> Result<ChangeIdAnswer, Error> {
    // A question about its disks is a sign of a running backup's client.
    for job in hub.jobs().values().filter(|job| job.vm.answers_to(vm_name)) {
        job.count_call();
    }
    let facts = hub.catalog.change_id_facts(vm_name, disk).await?;
    Ok(answer_change_id(&facts, disk))
}
