//! Inputs of `/vm-contexts` and `/vmware-credentials`; the engine checks what they say.

use engine::{NewCredential, NewVm, NewVmDisk, VmContextId};
use serde::Deserialize;
use utoipa::ToSchema;

use super::non_empty;
use crate::error::Failure;

/// Register a VM, or update the one of the same name and vCenter.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct VmInput {
    /// Name at the hypervisor.
    #[schema(required = true)]
    #[serde(default)]
    vm_name: String,
    /// Inventory path.
    #[serde(default)]
    vm_path: String,
    /// Id at the hypervisor.
    #[serde(default)]
    vmware_vm_id: String,
    /// Its vCenter.
    #[serde(default)]
    vcenter_host: String,
    /// Its data centre.
    #[serde(default)]
    datacenter: String,
    /// Credentials that reach it.
    #[serde(default)]
    credential_id: Option<i64>,
    /// All its disks.
    #[serde(default)]
    disks: Vec<VmDiskInput>,
}

/// One virtual disk.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct VmDiskInput {
    /// `disk-` and the number of the disk at the hypervisor.
    #[schema(required = true)]
    #[serde(default)]
    disk_id: String,
    /// Exact size.
    #[schema(required = true)]
    #[serde(default)]
    capacity_bytes: u64,
    /// For people.
    #[serde(default)]
    label: Option<String>,
}

impl From<VmInput> for NewVm {
    fn from(input: VmInput) -> Self {
        Self {
            vm_name: input.vm_name,
            vm_path: input.vm_path,
            vmware_vm_id: input.vmware_vm_id,
            vcenter_host: input.vcenter_host,
            datacenter: input.datacenter,
            credential_id: input.credential_id,
            disks: input.disks.into_iter().map(NewVmDisk::from).collect(),
        }
    }
}

impl From<VmDiskInput> for NewVmDisk {
    fn from(input: VmDiskInput) -> Self {
        Self {
            disk_id: input.disk_id,
            capacity_bytes: input.capacity_bytes,
            label: input.label.unwrap_or_default(),
        }
    }
}

/// Record credentials of a vCenter.
#[derive(Default, Deserialize, ToSchema)]
pub(crate) struct CredentialInput {
    /// For people; unique.
    #[schema(required = true)]
    #[serde(default)]
    credential_name: String,
    /// Its vCenter.
    #[schema(required = true)]
    #[serde(default)]
    vcenter_host: String,
    /// User there.
    #[schema(required = true)]
    #[serde(default)]
    username: String,
    /// Never comes back.
    #[schema(required = true)]
    #[serde(default)]
    password: String,
    /// Data centre.
    #[serde(default)]
    datacenter: String,
}

impl CredentialInput {
    /// What the engine stores; every part but the data centre must be there.
    pub(crate) fn check(self) -> Result<NewCredential, Failure> {
        let required = |name: &str, text: String| {
            non_empty(text).ok_or_else(|| Failure::invalid(format!("{name} is required"), ""))
        };
        Ok(NewCredential {
            credential_name: required("credential_name", self.credential_name)?,
            vcenter_host: required("vcenter_host", self.vcenter_host)?,
            username: required("username", self.username)?,
            password: required("password", self.password)?,
            datacenter: self.datacenter,
        })
    }
}

/// The VM that a path names by its id; `None` for a text that can be no id.
pub(crate) fn context(text: &str) -> Option<VmContextId> {
    VmContextId::parse(text).ok()
}
