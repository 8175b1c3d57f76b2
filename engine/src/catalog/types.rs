//! What the catalog's methods take and give beyond the model's own types.

use std::fmt;

use crate::config::Secret;
use crate::id::{BackupId, DeviceKey, DiskIndex, ExportName, PolicyId, RepositoryId, VmContextId};
use crate::model::{
    Backup, BackupDisk, BackupType, Credential, DeclaredParent, DiskCounters, FullReason, Transfer,
};

/// A credential to store. The password is encrypted already: the catalog never sees it in plain text.
#[derive(Clone)]
pub struct SealedCredential {
    /// Its name, unique.
    pub credential_name: String,
    /// The vCenter it opens.
    pub vcenter_host: String,
    /// The user.
    pub username: String,
    /// The password as base64 of nonce and ciphertext; not empty.
    pub password_encrypted: String,
    /// The data centre; may be empty.
    pub datacenter: String,
}

/// A stored credential with its encrypted password.
#[derive(Clone)]
pub struct StoredCredential {
    /// The credential.
    pub credential: Credential,
    /// The password as base64 of nonce and ciphertext.
    pub password_encrypted: String,
}

impl fmt::Debug for SealedCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedCredential")
            .field("credential_name", &self.credential_name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for StoredCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredCredential")
            .field("credential", &self.credential)
            .finish_non_exhaustive()
    }
}

/// The password of a share as a row has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredPassword {
    /// Base64 of nonce and ciphertext.
    Sealed(String),
    /// As a legacy hub left it.
    Plain(Secret),
}

/// A repository on a folder of this hub, to make if it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLocalRepository {
    /// Its id.
    pub id: RepositoryId,
    /// Its name, unique.
    pub name: String,
    /// Its root folder, absolute.
    pub path: String,
}

/// A backup to record, with everything that was decided about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeginBackup {
    /// Its id, from [`Catalog::free_backup_id`](super::Catalog::free_backup_id).
    pub id: BackupId,
    /// The VM.
    pub vm_context_id: VmContextId,
    /// Where it goes.
    pub repository_id: RepositoryId,
    /// The policy that asked for it.
    pub policy_id: Option<PolicyId>,
    /// What it holds.
    pub backup_type: BackupType,
    /// Why it is not what an increment would be.
    pub type_reason: Option<FullReason>,
    /// Who moves the data.
    pub transfer: Transfer,
    /// Its disks; at least one.
    pub disks: Vec<BeginDisk>,
}

/// One disk of a backup to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeginDisk {
    /// Position among the VM's disks; unique in the backup.
    pub disk_index: DiskIndex,
    /// The hypervisor's key of the disk; unique in the backup.
    pub device_key: DeviceKey,
    /// Size of the virtual disk in bytes.
    pub capacity_bytes: u64,
    /// Final path of its image.
    pub image_path: String,
    /// The export it is written through.
    pub export_name: ExportName,
    /// What it stands on.
    pub parent: Option<DeclaredParent>,
    /// Why it stands alone in an increment.
    pub parent_reason: Option<FullReason>,
}

/// How a backup ends without success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Something went wrong.
    Failed,
    /// Somebody asked for it.
    Cancelled,
}

/// What completing a disk changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskCompletion {
    /// The disk was completed before, with the same change id: nothing changed.
    pub repeated: bool,
    /// Disks of the backup that are not completed. At 0 the backup is ready to be published.
    pub remaining: u32,
}

/// Progress of one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskProgress {
    /// The disk.
    pub disk_index: DiskIndex,
    /// Its bytes so far.
    pub counters: DiskCounters,
}

/// A job that recovery has to look at.
#[derive(Debug, Clone, PartialEq)]
pub struct UnfinishedJob {
    /// The job: pending, running, or with an intent that was not cleared.
    pub backup: Backup,
    /// Its disks, in order.
    pub disks: Vec<BackupDisk>,
}

/// A backup whose deletion has begun.
#[derive(Debug, Clone, PartialEq)]
pub struct Deletion {
    /// The backup as it was before.
    pub backup: Backup,
    /// Its disks, in order.
    pub disks: Vec<BackupDisk>,
}

/// One point of a chain: a disk and the backup that it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct ChainPoint {
    /// The backup.
    pub backup: Backup,
    /// The disk.
    pub disk: BackupDisk,
}
