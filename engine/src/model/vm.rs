//! The inventory: VMs, their disks and credentials.

use crate::clock::Timestamp;
use crate::error::Error;
use crate::id::{DeviceKey, VmContextId};
use crate::limits::{DISK_CAPACITY_BYTES_MAX, DISKS_PER_VM_MAX, NAME_CHARS_MAX, VM_PATH_CHARS_MAX};

/// A VM to register, or to update: the same name and vCenter mean the same VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVm {
    /// Name in the inventory; not empty.
    pub vm_name: String,
    /// Inventory path; its last element names the VM in the client's requests.
    pub vm_path: String,
    /// The hypervisor's own id of the VM; may be empty.
    pub vmware_vm_id: String,
    /// The vCenter that the VM belongs to; may be empty.
    pub vcenter_host: String,
    /// The data centre that the VM belongs to; may be empty.
    pub datacenter: String,
    /// The credential that a node needs to read it.
    pub credential_id: Option<i64>,
    /// Its disks. One that is no longer named is forgotten.
    pub disks: Vec<NewVmDisk>,
}

/// A disk of a VM to register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVmDisk {
    /// `disk-` and the device key, such as `disk-2000`.
    pub disk_id: String,
    /// Size of the virtual disk in bytes; at least 1.
    pub capacity_bytes: u64,
    /// What people call it; may be empty.
    pub label: String,
}

impl NewVm {
    /// The disks' device keys in the order of `disks`, after checking the whole VM.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for an empty or overlong text, a malformed or repeated disk id, a capacity of zero or
    /// above the limit, or too many disks.
    pub fn check(&self) -> Result<Vec<DeviceKey>, Error> {
        if self.vm_name.trim().is_empty() {
            return Err(Error::invalid("vm_name is required", ""));
        }
        check_text("vm_name", &self.vm_name, NAME_CHARS_MAX)?;
        check_text("vm_path", &self.vm_path, VM_PATH_CHARS_MAX)?;
        check_text("vmware_vm_id", &self.vmware_vm_id, NAME_CHARS_MAX)?;
        check_text("vcenter_host", &self.vcenter_host, NAME_CHARS_MAX)?;
        check_text("datacenter", &self.datacenter, NAME_CHARS_MAX)?;
        if self.disks.len() > DISKS_PER_VM_MAX {
            let details = format!("count={} max={DISKS_PER_VM_MAX}", self.disks.len());
            return Err(Error::invalid("too many disks", details));
        }
        let mut keys = Vec::with_capacity(self.disks.len());
        for disk in &self.disks {
            let key = DeviceKey::from_disk_id(&disk.disk_id)?;
            if keys.contains(&key) {
                return Err(Error::invalid(
                    "disk id is repeated",
                    format!("disk_id={}", disk.disk_id),
                ));
            }
            check_text("label", &disk.label, NAME_CHARS_MAX)?;
            if disk.capacity_bytes == 0 || disk.capacity_bytes > DISK_CAPACITY_BYTES_MAX {
                let details = format!(
                    "disk_id={} capacity_bytes={} max={DISK_CAPACITY_BYTES_MAX}",
                    disk.disk_id, disk.capacity_bytes
                );
                return Err(Error::invalid("capacity_bytes is out of range", details));
            }
            keys.push(key);
        }
        Ok(keys)
    }
}

/// Refuses a text that the database could not hold, or that would break a log line.
pub(crate) fn check_text(field: &str, text: &str, chars_max: usize) -> Result<(), Error> {
    let chars = text.chars().count();
    if chars > chars_max {
        return Err(Error::invalid(
            format!("{field} is too long"),
            format!("chars={chars} max={chars_max}"),
        ));
    }
    if text.contains(char::is_control) {
        return Err(Error::invalid(
            format!("{field} has control characters"),
            format!("text={text:?}"),
        ));
    }
    Ok(())
}

/// A VM of the inventory (`vm_replication_contexts`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Its id.
    pub context_id: VmContextId,
    /// Name in the inventory.
    pub vm_name: String,
    /// Inventory path.
    pub vm_path: String,
    /// The hypervisor's own id of the VM; may be empty.
    pub vmware_vm_id: String,
    /// The vCenter that the VM belongs to; may be empty.
    pub vcenter_host: String,
    /// The data centre that the VM belongs to; may be empty.
    pub datacenter: String,
    /// The credential that a node needs to read it.
    pub credential_id: Option<i64>,
    /// When it was registered.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

impl Vm {
    /// Whether a client that asks for `query` means this VM: its name, or the last element of its inventory path, in which
    /// the hypervisor escapes `/` as `%2f` (legacy client, change id protocol).
    #[must_use]
    pub fn answers_to(&self, query: &str) -> bool {
        let last = self.vm_path.rsplit('/').next().unwrap_or_default();
        let plain_query = unescape_inventory_name(query);
        [self.vm_name.as_str(), last].into_iter().any(|name| {
            !name.is_empty() && (name == query || unescape_inventory_name(name) == plain_query)
        })
    }
}

/// Undoes the hypervisor's escaping of inventory names: `/`, `\` and `%` appear as `%2f`, `%5c` and `%25`.
#[must_use]
pub fn unescape_inventory_name(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find('%') {
        plain.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 3)
            .unwrap_or_default()
            .to_ascii_lowercase();
        let (text, length) = match code.as_str() {
            "2f" => ("/", 3),
            "5c" => ("\\", 3),
            "25" => ("%", 3),
            _ => ("%", 1),
        };
        plain.push_str(text);
        rest = &rest[at + length..];
    }
    plain.push_str(rest);
    plain
}

/// A disk of a VM. A list of them is ordered by device key; the position is the disk index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDisk {
    /// `disk-` and the device key.
    pub disk_id: String,
    /// The device key.
    pub device_key: DeviceKey,
    /// Size of the virtual disk in bytes.
    pub capacity_bytes: u64,
    /// The same in GiB, rounded up.
    pub size_gb: u64,
    /// What people call it; may be empty.
    pub label: String,
}

/// A credential to store; the password in plain text, so it is neither shown nor compared.
#[derive(Clone)]
pub struct NewCredential {
    /// Its name, unique.
    pub credential_name: String,
    /// The vCenter it opens.
    pub vcenter_host: String,
    /// The user.
    pub username: String,
    /// The password, in plain text.
    pub password: String,
    /// The data centre; may be empty.
    pub datacenter: String,
}

impl std::fmt::Debug for NewCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewCredential")
            .field("credential_name", &self.credential_name)
            .field("vcenter_host", &self.vcenter_host)
            .field("username", &self.username)
            .field("datacenter", &self.datacenter)
            .finish_non_exhaustive()
    }
}

/// A stored credential, without its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Its id.
    pub id: i64,
    /// Its name, unique.
    pub credential_name: String,
    /// The vCenter it opens.
    pub vcenter_host: String,
    /// The user.
    pub username: String,
    /// The data centre; may be empty.
    pub datacenter: String,
}
