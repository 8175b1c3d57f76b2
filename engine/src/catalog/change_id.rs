//! What the answer to a change-id query is decided from.

use super::Catalog;
use super::finish::load_disks;
use super::rows::{JobRow, select_jobs, stored};
use crate::error::Error;
use crate::id::{BackupId, ChangeId, DiskIndex, VmContextId};
use crate::model::{
    Backup, BackupDisk, ChangeIdFacts, PARENT_MARKER, RunningBackup, RunningDisk, Transfer,
};

impl Catalog {
    /// What [`answer_change_id`](crate::model::answer_change_id) decides from, for a query that names a VM the way clients do
    /// (see [`Vm::answers_to`](crate::model::Vm::answers_to)).
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn change_id_facts(
        &self,
        vm_name: &str,
        disk: DiskIndex,
    ) -> Result<ChangeIdFacts, Error> {
        let vms = self.vms_answering_to(vm_name).await?;
        let mut facts = ChangeIdFacts {
            vms: vms.len(),
            ..ChangeIdFacts::default()
        };
        for vm in &vms {
            if let Some(running) = self.running_backup(&vm.context_id).await? {
                facts.running.push(running);
            }
        }
        if let [vm] = vms.as_slice() {
            facts.latest = self.latest_change_id(&vm.context_id, disk).await?;
        }
        Ok(facts)
    }

    async fn running_backup(&self, vm: &VmContextId) -> Result<Option<RunningBackup>, Error> {
        let mut connection = self.reader().acquire().await?;
        let row: Option<JobRow> = sqlx::query_as(select_jobs!(
            "FROM backup_jobs j WHERE j.vm_context_id = ? AND j.repository_path = ? AND j.status IN ('pending', 'running')"
        ))
        .bind(vm.as_str())
        .bind(PARENT_MARKER)
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let backup = Backup::try_from(row)?;
        let disks = load_disks(&mut connection, &backup.id).await?;
        Ok(Some(RunningBackup {
            backup_type: backup.backup_type,
            // A job without a word on it is a legacy hub's, which always told the node.
            transfer: backup.transfer.unwrap_or(Transfer::Node),
            disks: disks.into_iter().map(running_disk).collect(),
        }))
    }

    /// The newest completed backup of a disk, in whichever repository: a client that runs without a job of ours chooses what
    /// to do with it (legacy client, change id protocol).
    async fn latest_change_id(
        &self,
        vm: &VmContextId,
        disk: DiskIndex,
    ) -> Result<Option<(BackupId, ChangeId)>, Error> {
        let found: Option<(String, String)> = sqlx::query_as(
            "SELECT d.backup_job_id, d.disk_change_id FROM backup_disks d JOIN backup_jobs j ON j.id = d.backup_job_id \
             WHERE j.vm_context_id = ? AND j.repository_path = ? AND j.status = 'completed' AND j.intent IS NULL \
               AND d.disk_index = ? AND d.status = 'completed' AND COALESCE(d.disk_change_id, '') <> '' \
             ORDER BY COALESCE(j.completed_at, d.completed_at, j.created_at) DESC, d.id DESC LIMIT 1",
        )
        .bind(vm.as_str())
        .bind(PARENT_MARKER)
        .bind(disk.get())
        .fetch_optional(self.reader())
        .await?;
        let Some((backup, change_id)) = found else {
            return Ok(None);
        };
        Ok(Some((
            stored("backup_job_id", BackupId::parse_stored(&backup))?,
            stored("disk_change_id", ChangeId::parse(&change_id))?,
        )))
    }
}

fn running_disk(disk: BackupDisk) -> RunningDisk {
    RunningDisk {
        disk_index: disk.disk_index,
        status: disk.status,
        base: disk.parent_backup_id.zip(disk.base_change_id),
    }
}
