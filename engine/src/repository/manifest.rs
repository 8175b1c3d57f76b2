//! What stands beside an image, so that a repository tells by itself what it holds: JSON, one file per image.

use serde::{Deserialize, Serialize};

/// The version of the layout below; a reader refuses what it does not know.
pub(crate) const MANIFEST_VERSION: u32 = 1;

/// Facts of one disk of one backup. The field names that a legacy hub wrote keep their meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Layout of this document.
    pub(crate) manifest_version: u32,
    /// The backup.
    pub(crate) backup_id: String,
    /// The VM in the inventory; also the folder's name.
    pub(crate) vm_context_id: String,
    /// The VM's name when the backup was taken.
    pub(crate) vm_name: String,
    /// Position among the VM's disks.
    pub(crate) disk_id: u32,
    /// How many disks the backup has: it is whole only with all of them.
    pub(crate) disks_count: u32,
    /// The hypervisor's key of the disk.
    pub(crate) device_key: u32,
    /// `full` or `incremental`.
    pub(crate) backup_type: String,
    /// The backup below.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) parent_backup_id: Option<String>,
    /// The change id that this disk was completed with.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) change_id: Option<String>,
    /// The change id that the changes were asked from.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) base_change_id: Option<String>,
    /// Size of the virtual disk.
    pub(crate) total_bytes: u64,
    /// Size of the image file when it was sealed.
    pub(crate) size_bytes: u64,
    /// RFC 3339, UTC.
    pub(crate) created_at: String,
    /// RFC 3339, UTC.
    pub(crate) completed_at: String,
    /// The file itself.
    pub(crate) qcow2_info: ImageFacts,
    /// Bytes as the export counted them.
    pub(crate) counters: Counters,
}

/// What the header of the image says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageFacts {
    /// Always `qcow2`.
    pub(crate) format: String,
    pub(crate) virtual_size: u64,
    pub(crate) cluster_size: u32,
    /// As the header has it: relative to the image.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) backing_file: Option<String>,
    /// The root of the hash sidecar beside it, in hexadecimal; absent without one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) hashes_root: Option<String>,
}

/// Each received byte is in exactly one of the other three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub(crate) received_bytes: u64,
    pub(crate) zero_bytes: u64,
    pub(crate) equal_bytes: u64,
    pub(crate) stored_bytes: u64,
}

impl Manifest {
    /// The document as it stands in the file.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }
}
