//! The façade: one method per thing that the hub can do.

use std::path::Path;
use std::sync::Arc;

use nbd_server::{Listener, Statistics as NbdStatistics};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::{EngineConfig, Secret};
use crate::error::Error;
use crate::export::ExportRegistry;
use crate::id::{BackupId, DiskIndex, PolicyId, RepositoryId, VmContextId};
use crate::model::{
    AuditEntry, AuditFilter, Backup, BackupCopy, BackupDisk, BackupFilter, BackupPage, BackupStats,
    Caller, ChainLayer, ChainView, ChangeIdAnswer, Comparison, CompleteDisk, Credential, Deed,
    NewCredential, NewPolicy, NewRepository, NewToken, NewVm, Place, Policy, Removal,
    RepositoryState, RepositorySummary, StartBackup, StartedBackup, StorageSeen, Telemetry, Token,
    Vm, VmDisk,
};
use crate::workflow::{self, Hooks, Hub, Subscription};

/// The hub in process. Cheap to clone; all clones are one hub.
#[derive(Clone)]
pub struct Engine {
    pub(crate) hub: Arc<Hub>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("exports", &self.hub.exports)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens (creates, migrates) the catalog and the default repository `local` under `data_dir`, and recovers what a
    /// crash left.
    ///
    /// # Errors
    ///
    /// `Unavailable` while another hub has the data folder, `Invalid` for a configuration that cannot be, and what the
    /// database and the files say.
    pub async fn open(config: EngineConfig, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        Self::open_with(config, clock, Hooks::default()).await
    }

    /// Opens a hub with something between it and the world.
    pub(crate) async fn open_with(
        config: EngineConfig,
        clock: Arc<dyn Clock>,
        hooks: Hooks,
    ) -> Result<Self, Error> {
        Ok(Self {
            hub: workflow::open(config, clock, hooks).await?,
        })
    }

    /// What the NBD listener serves.
    #[must_use]
    pub fn exports(&self) -> Arc<ExportRegistry> {
        Arc::clone(&self.hub.exports)
    }

    /// Serves [`exports`](Self::exports) on a bound listener until `stop` is cancelled and its sessions have drained. All
    /// listeners share their limits.
    pub async fn serve_nbd(&self, listener: Listener, stop: CancellationToken) {
        let listener = listener.with_gate(self.hub.nbd.clone());
        listener.serve(self.exports(), stop).await;
    }

    /// What the NBD listeners counted since the hub was opened.
    #[must_use]
    pub fn nbd_statistics(&self) -> NbdStatistics {
        self.hub.nbd.statistics()
    }

    /// Registers a VM, or updates the one with this name and vCenter; `true` if it is new.
    ///
    /// # Errors
    ///
    /// `Invalid` for what cannot be a VM.
    pub async fn register_vm(&self, vm: NewVm) -> Result<(Vm, bool), Error> {
        self.hub
            .catalog
            .register_vm(&vm, self.hub.clock.now())
            .await
    }

    /// Every VM, by name.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn vms(&self) -> Result<Vec<Vm>, Error> {
        self.hub.catalog.vms().await
    }

    /// The VM with this id, else the one with exactly this name.
    ///
    /// # Errors
    ///
    /// `NotFound`, and `Conflict` if several have the name.
    pub async fn vm(&self, name_or_id: &str) -> Result<Vm, Error> {
        self.hub.catalog.vm_by_name_or_id(name_or_id).await
    }

    /// The VM with this id.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn vm_by_id(&self, id: &VmContextId) -> Result<Vm, Error> {
        self.hub.catalog.vm_by_id(id).await
    }

    /// The VM's disks by device key: the position is the disk index.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn vm_disks(&self, id: &VmContextId) -> Result<Vec<VmDisk>, Error> {
        self.hub.catalog.vm_disks(id).await
    }

    /// Stores a credential, its password encrypted.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the hub has no credential key, `Conflict` if the name is taken.
    pub async fn add_credential(&self, credential: NewCredential) -> Result<Credential, Error> {
        workflow::add_credential(&self.hub, credential).await
    }

    /// Every repository with its state now, by name.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn repositories(&self) -> Result<Vec<(RepositorySummary, RepositoryState)>, Error> {
        workflow::repositories(&self.hub).await
    }

    /// One repository with its state now.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn repository(
        &self,
        id: &RepositoryId,
    ) -> Result<(RepositorySummary, RepositoryState), Error> {
        workflow::repository(&self.hub, id).await
    }

    /// Makes a repository, after mounting its share and writing there once.
    ///
    /// # Errors
    ///
    /// `Invalid` for what cannot be a repository, `Conflict` if its name is taken or another one is there, `Unsupported` for a
    /// password without a credential key, `Unavailable` for a place that cannot be used.
    pub async fn create_repository(&self, new: NewRepository) -> Result<RepositorySummary, Error> {
        workflow::create_repository(&self.hub, new).await
    }

    /// Whether a place could become a repository; nothing is recorded.
    ///
    /// # Errors
    ///
    /// As [`create_repository`](Self::create_repository).
    pub async fn try_place(
        &self,
        place: Place,
        password: Option<Secret>,
    ) -> Result<StorageSeen, Error> {
        workflow::try_place(&self.hub, place, password).await
    }

    /// The storage of a repository as it is now; what is seen is recorded. With `write`, a file is made and removed first.
    ///
    /// # Errors
    ///
    /// `NotFound`, `Unavailable` if it cannot be used.
    pub async fn look_at_repository(
        &self,
        id: &RepositoryId,
        write: bool,
    ) -> Result<(RepositorySummary, StorageSeen), Error> {
        workflow::look_at_repository(&self.hub, id, write).await
    }

    /// Looks at the storage of every repository that is switched on: how many answered, how many did not.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn refresh_storage(&self) -> Result<(usize, usize), Error> {
        workflow::refresh_storage(&self.hub).await
    }

    /// Forgets a repository that holds no backup; its files stay.
    ///
    /// # Errors
    ///
    /// `NotFound`, `Conflict` for the default one or if a policy names it.
    pub async fn delete_repository(&self, id: &RepositoryId) -> Result<Removal, Error> {
        workflow::delete_repository(&self.hub, id).await
    }

    /// Starts a backup. When it returns, every export accepts data, and a node that has to has been told. A start that
    /// fails leaves nothing behind.
    ///
    /// # Errors
    ///
    /// `NotFound` (`VM not found`, `No disks found for VM`, `repository not found`), `Conflict` while a backup of the VM runs,
    /// `NoParent` (`no previous backup found`), `Invalid` (`VM context missing credential_id`), `NodeUnreachable`, `NodeRefused`,
    /// and what the stores say.
    ///
    /// # Cancel safety
    ///
    /// The start goes on; only the answer is lost.
    pub async fn start_backup(&self, request: StartBackup) -> Result<StartedBackup, Error> {
        let work = workflow::start_backup(Arc::clone(&self.hub), request);
        self.hub.finish(work).await
    }

    /// Completes one disk: its data is durable when this returns. The last disk publishes the backup. May be repeated.
    ///
    /// # Errors
    ///
    /// `NotFound` (`backup job not found`), `Conflict` if the backup has ended otherwise or the disk was completed with
    /// another change id; `NoSpace`, `Unavailable` if the storage failed, and then the backup has failed.
    ///
    /// # Cancel safety
    ///
    /// The completion goes on; only the answer is lost.
    pub async fn complete_disk(&self, request: CompleteDisk) -> Result<(), Error> {
        let work = workflow::complete_disk(Arc::clone(&self.hub), request);
        self.hub.finish(work).await
    }

    /// Takes in what a client reports of its backup. A report never completes a disk, and one that comes late changes
    /// nothing; one of a failure ends the backup, and its files are gone when this returns.
    ///
    /// # Errors
    ///
    /// `NotFound` (`backup job not found`).
    ///
    /// # Cancel safety
    ///
    /// The report is taken in; only the answer is lost.
    pub async fn telemetry(&self, id: &BackupId, report: Telemetry) -> Result<(), Error> {
        let work = workflow::telemetry(Arc::clone(&self.hub), id.clone(), report);
        self.hub.finish(work).await
    }

    /// Ends a running backup; its files are gone when this returns.
    ///
    /// # Errors
    ///
    /// `NotFound`, and `Conflict` if it has ended.
    ///
    /// # Cancel safety
    ///
    /// The cancellation goes on; only the answer is lost.
    pub async fn cancel_backup(&self, id: &BackupId) -> Result<(), Error> {
        let work = workflow::cancel(Arc::clone(&self.hub), id.clone());
        self.hub.finish(work).await
    }

    /// Deletes a backup that has ended, with its files. Nothing is rebased: what stands on it goes first.
    ///
    /// # Errors
    ///
    /// `NotFound` (`backup not found`), and `Conflict` while it runs, another backup stands on it, somebody reads it, or its
    /// repository keeps it.
    ///
    /// # Cancel safety
    ///
    /// The deletion goes on; only the answer is lost.
    pub async fn delete_backup(&self, id: &BackupId) -> Result<(), Error> {
        let work = workflow::delete_backup(Arc::clone(&self.hub), id.clone());
        self.hub.finish(work).await
    }

    /// Backups, newest first.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn backups(&self, filter: BackupFilter) -> Result<Vec<Backup>, Error> {
        Ok(self.backup_page(filter).await?.backups)
    }

    /// A page of backups, newest first, and how many there are on all pages.
    ///
    /// # Errors
    ///
    /// `NotFound` (`VM not found`), if the filter names a VM that there is not.
    pub async fn backup_page(&self, filter: BackupFilter) -> Result<BackupPage, Error> {
        workflow::backups(&self.hub, &filter).await
    }

    /// Sums over the completed backups of a VM, by its name, in a repository; zeros if there are none.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn backup_stats(
        &self,
        vm_name: &str,
        repository: &str,
    ) -> Result<BackupStats, Error> {
        self.hub.catalog.backup_stats(vm_name, repository).await
    }

    /// One backup.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn backup(&self, id: &BackupId) -> Result<Backup, Error> {
        workflow::backup(&self.hub, id).await
    }

    /// What happens to all backups from now on, for live views. Nobody waits for a slow one: it is told how much it lost.
    ///
    /// # Errors
    ///
    /// `Unavailable` with too many of them, or at the hub's end.
    pub fn subscribe(&self) -> Result<Subscription, Error> {
        self.hub.events.subscribe()
    }

    /// Ends every subscription, and takes no new one: the first step of an orderly end, because whoever serves them waits
    /// for them.
    pub fn end_subscriptions(&self) {
        self.hub.events.end();
    }

    /// The disks of a backup, by index, with absolute image paths; those that are being written with live counters.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn backup_disks(&self, id: &BackupId) -> Result<Vec<BackupDisk>, Error> {
        workflow::backup_disks(&self.hub, id).await
    }

    /// Where the changes of a disk start, for the backup that runs; empty means: copy everything.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn change_id(&self, vm_name: &str, disk: DiskIndex) -> Result<ChangeIdAnswer, Error> {
        workflow::change_id(&self.hub, vm_name, disk).await
    }

    /// The newest completed point of a disk and everything below it, base first.
    ///
    /// # Errors
    ///
    /// `NotFound` for an unknown VM.
    pub async fn chain(
        &self,
        vm: &str,
        disk: DiskIndex,
        repository: Option<&str>,
    ) -> Result<ChainView, Error> {
        workflow::chain(&self.hub, vm, disk, repository).await
    }

    /// The images of a completed point's disk, tip first, as the files tell it.
    ///
    /// # Errors
    ///
    /// `NotFound`, `Conflict` if the backup is not complete, `Corrupt` if its files are not what they should be.
    pub async fn chain_layers(
        &self,
        id: &BackupId,
        disk: DiskIndex,
    ) -> Result<Vec<ChainLayer>, Error> {
        workflow::chain_layers(&self.hub, id, disk).await
    }

    /// Writes one disk of a completed point to a new, thin raw file, and returns the disk's size in bytes. The file appears
    /// under its name only when it is whole and durable.
    ///
    /// # Errors
    ///
    /// As [`chain_layers`](Self::chain_layers); `Conflict` also if `target` exists.
    ///
    /// # Cancel safety
    ///
    /// A copy that has begun goes on to its end.
    pub async fn restore_disk(
        &self,
        id: &BackupId,
        disk: DiskIndex,
        target: &Path,
    ) -> Result<u64, Error> {
        workflow::restore_disk(&self.hub, id, disk, target).await
    }

    /// Compares one disk of a completed point byte for byte with a raw file; where one is longer, its tail must be zero.
    ///
    /// # Errors
    ///
    /// As [`chain_layers`](Self::chain_layers); `NotFound` also without the file.
    pub async fn compare_disk(
        &self,
        id: &BackupId,
        disk: DiskIndex,
        raw: &Path,
    ) -> Result<Comparison, Error> {
        workflow::compare_disk(&self.hub, id, disk, raw).await
    }

    /// Records what somebody did.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn record(&self, deed: &Deed) -> Result<(), Error> {
        let now = self.hub.clock.now();
        self.hub.catalog.record_deed(deed, now).await
    }

    /// What was done, newest first.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditEntry>, Error> {
        self.hub.catalog.audit(filter).await
    }

    /// Makes a policy with its rules. It is recorded; nothing acts on it.
    ///
    /// # Errors
    ///
    /// `Invalid` for a policy that contradicts itself, `NotFound` (`repository not found`), `Conflict` if the name or the id of a
    /// rule is taken.
    pub async fn create_policy(&self, policy: NewPolicy) -> Result<Policy, Error> {
        workflow::create_policy(&self.hub, policy).await
    }

    /// Every policy, by name.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn policies(&self) -> Result<Vec<Policy>, Error> {
        self.hub.catalog.policies().await
    }

    /// One policy.
    ///
    /// # Errors
    ///
    /// `NotFound` (`Policy not found`).
    pub async fn policy(&self, id: &PolicyId) -> Result<Policy, Error> {
        self.hub.catalog.policy(id).await
    }

    /// Removes a policy with its rules; backups and copies that came of it stay.
    ///
    /// # Errors
    ///
    /// `NotFound` (`Policy not found`).
    pub async fn delete_policy(&self, id: &PolicyId) -> Result<(), Error> {
        self.hub.catalog.delete_policy(id).await
    }

    /// The copies of a backup, oldest first; none of an unknown backup.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn copies(&self, backup: &BackupId) -> Result<Vec<BackupCopy>, Error> {
        self.hub.catalog.copies(backup).await
    }

    /// Records that a copy of a completed backup is wanted in another repository. It stays pending: nothing makes copies yet.
    ///
    /// # Errors
    ///
    /// `NotFound` (`backup not found`, `repository not found`), `Invalid` for the repository that the backup is in, `Conflict` for a
    /// second copy there, a backup that is not complete and a repository that is disabled.
    pub async fn ask_for_copy(
        &self,
        backup: &BackupId,
        repository: &RepositoryId,
    ) -> Result<BackupCopy, Error> {
        workflow::ask_for_copy(&self.hub, backup, repository).await
    }

    /// Who holds this token.
    ///
    /// # Errors
    ///
    /// `Unauthenticated` for a token that is not known.
    pub async fn authenticate(&self, presented: &Secret) -> Result<Caller, Error> {
        workflow::authenticate(&self.hub, presented).await
    }

    /// Makes a token; its text is told this once.
    ///
    /// # Errors
    ///
    /// `Invalid` for what cannot be a token, `NotFound` for an unknown job, `Conflict` if the name is taken.
    pub async fn create_token(&self, token: &NewToken) -> Result<(Token, Secret), Error> {
        workflow::create_token(&self.hub.catalog, token, self.hub.clock.now()).await
    }

    /// Every token, by name.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn tokens(&self) -> Result<Vec<Token>, Error> {
        self.hub.catalog.tokens().await
    }

    /// Forgets a token: the next call with it is refused.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn revoke_token(&self, name: &str) -> Result<(), Error> {
        self.hub.catalog.revoke_token(name).await
    }

    /// Whether the database answers.
    ///
    /// # Errors
    ///
    /// `Unavailable`.
    pub async fn healthy(&self) -> Result<(), Error> {
        self.hub.catalog.ping().await
    }

    /// Refuses new work, waits for what is being completed, fails what still runs, closes the catalog. May be called
    /// many times.
    pub async fn shutdown(&self) {
        workflow::shutdown(&self.hub).await;
    }
}
