//! VMs of the inventory and what is needed to reach them.

use engine::{Credential, Vm, VmDisk};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::utc;

/// A VM of the inventory.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VmContextView {
    /// Names it in every other call.
    pub context_id: String,
    /// Name at the hypervisor.
    pub vm_name: String,
    /// Id at the hypervisor.
    pub vmware_vm_id: String,
    /// Inventory path.
    pub vm_path: String,
    /// Its vCenter.
    pub vcenter_host: String,
    /// Its data centre.
    pub datacenter: String,
    /// Credentials that reach it.
    pub credential_id: Option<i64>,
    /// Empty: the hub does not ask the hypervisor.
    pub power_state: String,
    /// Empty: the hub does not ask the hypervisor.
    pub os_type: String,
    /// UTC.
    pub created_at: String,
    /// UTC.
    pub updated_at: String,
    /// Empty: the hub keeps no groups of VMs.
    #[schema(value_type = Vec<Object>)]
    pub groups: Vec<Value>,
    /// Length of `groups`.
    pub group_count: usize,
}

impl From<Vm> for VmContextView {
    fn from(vm: Vm) -> Self {
        Self {
            context_id: vm.context_id.to_string(),
            vm_name: vm.vm_name,
            vmware_vm_id: vm.vmware_vm_id,
            vm_path: vm.vm_path,
            vcenter_host: vm.vcenter_host,
            datacenter: vm.datacenter,
            credential_id: vm.credential_id,
            power_state: String::new(),
            os_type: String::new(),
            created_at: utc(vm.created_at),
            updated_at: utc(vm.updated_at),
            groups: Vec::new(),
            group_count: 0,
        }
    }
}

/// The answer to a registration.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VmRegisteredView {
    /// The VM as it is recorded now.
    #[serde(flatten)]
    pub context: VmContextView,
    /// Whether it was new.
    pub created: bool,
}

impl VmRegisteredView {
    pub(crate) fn new(vm: Vm, created: bool) -> Self {
        Self {
            context: vm.into(),
            created,
        }
    }
}

/// All VMs of the inventory.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VmContextListView {
    /// Never null.
    pub vm_contexts: Vec<VmContextView>,
    /// Length of `vm_contexts`.
    pub count: usize,
}

impl VmContextListView {
    pub(crate) fn new(vms: Vec<Vm>) -> Self {
        Self {
            count: vms.len(),
            vm_contexts: vms.into_iter().map(VmContextView::from).collect(),
        }
    }
}

/// One VM with its disks. What belongs to replication is always empty: the hub only backs up.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VmContextDetailView {
    /// The VM.
    pub context: VmContextView,
    /// Null: no replication.
    #[schema(value_type = Option<Object>)]
    pub current_job: Option<Value>,
    /// Empty: no replication.
    #[schema(value_type = Vec<Object>)]
    pub job_history: Vec<Value>,
    /// Its disks, by disk id.
    pub disks: Vec<VmDiskView>,
    /// Empty: no replication.
    #[schema(value_type = Vec<Object>)]
    pub cbt_history: Vec<Value>,
    /// Null: no replication.
    #[schema(value_type = Option<Object>)]
    pub last_operation: Option<Value>,
}

impl VmContextDetailView {
    pub(crate) fn new(vm: Vm, disks: Vec<VmDisk>) -> Self {
        Self {
            context: vm.into(),
            current_job: None,
            job_history: Vec::new(),
            cbt_history: Vec::new(),
            last_operation: None,
            disks: disks.into_iter().map(VmDiskView::from).collect(),
        }
    }
}

/// Disks of a VM.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VmDiskListView {
    /// By disk id; never null.
    pub disks: Vec<VmDiskView>,
    /// Length of `disks`.
    pub count: usize,
}

impl VmDiskListView {
    pub(crate) fn new(disks: Vec<VmDisk>) -> Self {
        Self {
            count: disks.len(),
            disks: disks.into_iter().map(VmDiskView::from).collect(),
        }
    }
}

/// One virtual disk of a VM.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VmDiskView {
    /// `disk-` and the number of the disk at the hypervisor.
    pub disk_id: String,
    /// Rounded up.
    pub size_gb: u64,
    /// Exact size.
    pub capacity_bytes: u64,
    /// For people.
    pub label: String,
}

impl From<VmDisk> for VmDiskView {
    fn from(disk: VmDisk) -> Self {
        Self {
            disk_id: disk.disk_id,
            size_gb: disk.size_gb,
            capacity_bytes: disk.capacity_bytes,
            label: disk.label,
        }
    }
}

/// Credentials of a vCenter; the password never comes back.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CredentialView {
    /// What a VM names.
    pub id: i64,
    /// For people; unique.
    pub credential_name: String,
    /// Its vCenter.
    pub vcenter_host: String,
    /// User there.
    pub username: String,
    /// Data centre.
    pub datacenter: String,
}

impl From<Credential> for CredentialView {
    fn from(credential: Credential) -> Self {
        Self {
            id: credential.id,
            credential_name: credential.credential_name,
            vcenter_host: credential.vcenter_host,
            username: credential.username,
            datacenter: credential.datacenter,
        }
    }
}
