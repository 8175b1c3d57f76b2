//! The facts in the database. The only SQL of the hub is in this folder.

mod types;

pub use types::*;

use crate::clock::Timestamp;
use crate::error::Error;
use crate::id::{BackupId, DiskIndex, RepositoryId, VmContextId};
use crate::model::*;

/// The database of a hub. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalog {
    pool: sqlx::SqlitePool,
}

#[expect(
    unused_variables,
    clippy::unimplemented,
    reason = "bodies follow in the next commit"
)]
impl Catalog {
    /// Opens the database at `url` (`sqlite:PATH`), creating and migrating it as needed.
    pub async fn open(url: &str) -> Result<Self, Error> {
        unimplemented!()
    }
    /// Waits for running statements and closes every connection.
    pub async fn close(&self) {
        unimplemented!()
    }
    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), Error> {
        unimplemented!()
    }

    /// Registers a VM, or updates the one with this name and vCenter; `true` if it is new.
    pub async fn register_vm(&self, vm: &NewVm, now: Timestamp) -> Result<(Vm, bool), Error> {
        unimplemented!()
    }
    /// Every VM, by name.
    pub async fn vms(&self) -> Result<Vec<Vm>, Error> {
        unimplemented!()
    }
    /// The VM with this id, else the one with exactly this name; several of that name are a conflict.
    pub async fn vm_by_name_or_id(&self, name_or_id: &str) -> Result<Vm, Error> {
        unimplemented!()
    }
    /// The VMs that a legacy client can mean: see [`Vm::answers_to`].
    pub async fn vms_answering_to(&self, name: &str) -> Result<Vec<Vm>, Error> {
        unimplemented!()
    }
    /// The VM's disks by device key: the position is the disk index.
    pub async fn vm_disks(&self, vm: &VmContextId) -> Result<Vec<VmDisk>, Error> {
        unimplemented!()
    }

    /// Stores a credential.
    pub async fn add_credential(
        &self,
        credential: &SealedCredential,
        now: Timestamp,
    ) -> Result<Credential, Error> {
        unimplemented!()
    }
    /// A credential with its encrypted password.
    pub async fn credential(&self, id: i64) -> Result<StoredCredential, Error> {
        unimplemented!()
    }
    /// Makes the repository unless it is there; then its path must be the same.
    pub async fn ensure_repository(
        &self,
        repository: &NewLocalRepository,
        now: Timestamp,
    ) -> Result<RepositorySummary, Error> {
        unimplemented!()
    }
    /// One repository.
    pub async fn repository(&self, id: &RepositoryId) -> Result<RepositorySummary, Error> {
        unimplemented!()
    }
    /// Every repository, by name.
    pub async fn repositories(&self) -> Result<Vec<RepositorySummary>, Error> {
        unimplemented!()
    }

    /// An id for a backup of `vm_name` that no row has.
    pub async fn free_backup_id(&self, vm_name: &str, now: Timestamp) -> Result<BackupId, Error> {
        unimplemented!()
    }
    /// What [`plan_backup`] chooses from: completed disks of completed backups of this VM in this repository.
    pub async fn parents_for(
        &self,
        vm: &VmContextId,
        repository: &RepositoryId,
    ) -> Result<Vec<ParentCandidate>, Error> {
        unimplemented!()
    }
    /// Records a backup with its disks, running, with intent `creating`. Conflict if one is pending or running for this VM.
    pub async fn begin_backup(
        &self,
        backup: &BeginBackup,
        now: Timestamp,
    ) -> Result<Backup, Error> {
        unimplemented!()
    }
    /// Files and exports are there: clears the intent, sets the disks running.
    pub async fn backup_ready(&self, id: &BackupId, now: Timestamp) -> Result<(), Error> {
        unimplemented!()
    }
    /// Records what is about to happen to the files, or that it has happened (`None`).
    pub async fn set_intent(&self, id: &BackupId, intent: Option<Intent>) -> Result<(), Error> {
        unimplemented!()
    }
    /// Records that a disk is complete and durable. Idempotent.
    pub async fn complete_disk(
        &self,
        disk: &CompleteDisk,
        counters: DiskCounters,
        now: Timestamp,
    ) -> Result<DiskCompletion, Error> {
        unimplemented!()
    }
    /// All disks are published: completes the backup, its context and chains; clears the intent. Idempotent: `false` if it was completed before.
    pub async fn finish_backup(&self, id: &BackupId, now: Timestamp) -> Result<bool, Error> {
        unimplemented!()
    }
    /// Ends the backup without success. Idempotent: `false`, and nothing changes, if it has ended before. The intent stays as it is.
    pub async fn fail_backup(
        &self,
        id: &BackupId,
        ending: Ending,
        reason: &str,
        now: Timestamp,
    ) -> Result<bool, Error> {
        unimplemented!()
    }
    /// Undoes a refused start: removes the rows of a backup that never completed. Idempotent.
    pub async fn delete_backup_rows(&self, id: &BackupId) -> Result<(), Error> {
        unimplemented!()
    }
    /// Records progress of a running backup; without effect on one that has ended.
    pub async fn update_progress(
        &self,
        id: &BackupId,
        progress: &Progress,
        now: Timestamp,
    ) -> Result<(), Error> {
        unimplemented!()
    }

    /// One backup.
    pub async fn backup(&self, id: &BackupId) -> Result<Backup, Error> {
        unimplemented!()
    }
    /// Backups (no legacy per-disk rows), newest first.
    pub async fn backups(&self, filter: &BackupFilter) -> Result<Vec<Backup>, Error> {
        unimplemented!()
    }
    /// The disks of a backup, by index.
    pub async fn backup_disks(&self, id: &BackupId) -> Result<Vec<BackupDisk>, Error> {
        unimplemented!()
    }
    /// Pending and running backups, oldest first.
    pub async fn running_jobs(&self) -> Result<Vec<Backup>, Error> {
        unimplemented!()
    }
    /// What recovery has to look at: pending, running, or with an intent.
    pub async fn unfinished_jobs(&self) -> Result<Vec<UnfinishedJob>, Error> {
        unimplemented!()
    }
    /// What [`answer_change_id`] decides from.
    pub async fn change_id_facts(
        &self,
        vm_name: &str,
        disk: DiskIndex,
    ) -> Result<ChangeIdFacts, Error> {
        unimplemented!()
    }
    /// The newest completed point of a disk and everything below it, base first; empty if there is none.
    pub async fn chain(
        &self,
        vm: &VmContextId,
        disk: DiskIndex,
        repository: Option<&RepositoryId>,
    ) -> Result<Vec<ChainPoint>, Error> {
        unimplemented!()
    }
    /// The images that one disk of a backup stands on, itself first, down to the base.
    pub async fn layers(&self, id: &BackupId, disk: DiskIndex) -> Result<Vec<ChainPoint>, Error> {
        unimplemented!()
    }
}
