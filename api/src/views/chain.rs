//! The chain of one disk.

use engine::ChainView as Chain;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::BackupView;

/// The chain of one disk: the full backup first, then its increments. All empty when there is none.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChainView {
    /// Names this chain.
    pub chain_id: String,
    /// The VM in the inventory.
    pub vm_context_id: String,
    /// Name of the VM.
    pub vm_name: String,
    /// Index of the disk.
    pub disk_id: u32,
    /// Where the images are.
    pub repository_id: String,
    /// The backup that the chain stands on.
    pub full_backup_id: String,
    /// Base first; never null.
    pub backups: Vec<BackupView>,
    /// Size of the chain's images.
    pub total_size_bytes: u64,
    /// Length of `backups`.
    pub backup_count: usize,
}

impl From<Chain> for ChainView {
    fn from(chain: Chain) -> Self {
        let backups: Vec<_> = chain.backups.into_iter().map(BackupView::from).collect();
        Self {
            chain_id: chain.chain_id,
            vm_context_id: chain.vm_context_id,
            vm_name: chain.vm_name,
            disk_id: chain.disk_index.get(),
            repository_id: chain.repository_id,
            full_backup_id: chain.full_backup_id,
            backup_count: backups.len(),
            backups,
            total_size_bytes: chain.total_size_bytes,
        }
    }
}
