//! The inventory: VMs and their disks.

use sqlx::{FromRow, SqliteConnection};

use super::Catalog;
use super::rows::{signed, stored, unsigned};
use super::timestamp::{from_text, to_text};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::id::{DeviceKey, VmContextId};
use crate::limits::{DISKS_PER_VM_MAX, ID_ATTEMPTS_MAX, INVENTORY_ROWS_MAX};
use crate::model::{NewVm, Vm, VmDisk};

/// `SELECT` of [`VmRow`]s, with the rest of the statement.
macro_rules! select_vms {
    ($rest:literal) => {
        concat!(
            "SELECT context_id, vm_name, vm_path, vmware_vm_id, vcenter_host, datacenter, credential_id, created_at, updated_at ",
            "FROM vm_replication_contexts ",
            $rest
        )
    };
}

#[derive(FromRow)]
struct VmRow {
    context_id: String,
    vm_name: String,
    vm_path: String,
    vmware_vm_id: Option<String>,
    vcenter_host: String,
    datacenter: String,
    credential_id: Option<i64>,
    created_at: String,
    updated_at: String,
}

#[derive(FromRow)]
struct VmDiskRow {
    disk_id: String,
    capacity_bytes: i64,
    size_gb: i64,
    label: String,
}

impl Catalog {
    /// Registers a VM with its disks, or updates the one that is meant; `true` if it is new.
    ///
    /// The one that is meant has the same name and vCenter; failing that, the same hypervisor id and vCenter: it was renamed.
    /// Disks that are no longer named are forgotten; their backups stay.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) as [`NewVm::check`], and for an unknown credential; [`Conflict`](crate::ErrorKind::Conflict) if name and
    /// hypervisor id belong to different VMs.
    pub async fn register_vm(&self, vm: &NewVm, now: Timestamp) -> Result<(Vm, bool), Error> {
        let keys = vm.check()?;
        let mut tx = self.write().await?;
        check_credential(&mut tx, vm.credential_id).await?;
        let known = find_registered(&mut tx, vm).await?;
        let created = known.is_none();
        let id = match known {
            Some(id) => {
                update_vm(&mut tx, &id, vm, now).await?;
                id
            }
            None => insert_vm(&mut tx, vm, now).await?,
        };
        store_disks(&mut tx, &id, vm, &keys, now).await?;
        let row: VmRow = sqlx::query_as(select_vms!("WHERE context_id = ?"))
            .bind(&id)
            .fetch_one(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok((row.try_into()?, created))
    }

    /// Every VM, by name.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn vms(&self) -> Result<Vec<Vm>, Error> {
        let rows: Vec<VmRow> =
            sqlx::query_as(select_vms!("ORDER BY vm_name, vcenter_host LIMIT ?"))
                .bind(INVENTORY_ROWS_MAX)
                .fetch_all(self.reader())
                .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// The VM with this id, else the one with exactly this name.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is none, [`Conflict`](crate::ErrorKind::Conflict) if several vCenters have a VM of this name.
    pub async fn vm_by_name_or_id(&self, name_or_id: &str) -> Result<Vm, Error> {
        let rows: Vec<VmRow> = sqlx::query_as(select_vms!(
            "WHERE context_id = ? OR vm_name = ? ORDER BY vcenter_host LIMIT 20"
        ))
        .bind(name_or_id)
        .bind(name_or_id)
        .fetch_all(self.reader())
        .await?;
        let mut found = rows
            .into_iter()
            .map(Vm::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(at) = found
            .iter()
            .position(|vm| vm.context_id.as_str() == name_or_id)
        {
            return Ok(found.swap_remove(at));
        }
        if found.len() > 1 {
            let which: Vec<_> = found
                .iter()
                .map(|vm| format!("{} on {:?}", vm.context_id, vm.vcenter_host))
                .collect();
            let details = format!(
                "several VMs have this name, use an id vm_name={name_or_id:?} vms=[{}]",
                which.join(", ")
            );
            return Err(Error::conflict("VM name is ambiguous", details));
        }
        found.pop().ok_or_else(|| {
            let quoted: String = name_or_id.chars().take(80).collect();
            Error::not_found("VM not found", format!("vm_name={quoted:?}"))
        })
    }

    /// The VM with this id.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is none.
    pub async fn vm_by_id(&self, id: &VmContextId) -> Result<Vm, Error> {
        let row: Option<VmRow> = sqlx::query_as(select_vms!("WHERE context_id = ?"))
            .bind(id.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.ok_or_else(|| Error::not_found("VM not found", format!("context_id={id}")))?
            .try_into()
    }

    /// The VMs that a legacy client can mean by `name`: see [`Vm::answers_to`].
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn vms_answering_to(&self, name: &str) -> Result<Vec<Vm>, Error> {
        let mut vms = self.vms().await?;
        vms.retain(|vm| vm.answers_to(name));
        Ok(vms)
    }

    /// The VM's disks by device key: the position is the disk index. Empty for an unknown VM.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn vm_disks(&self, vm: &VmContextId) -> Result<Vec<VmDisk>, Error> {
        let rows: Vec<VmDiskRow> = sqlx::query_as(
            "SELECT disk_id, capacity_bytes, size_gb, label FROM vm_disks WHERE vm_context_id = ? ORDER BY id LIMIT ?",
        )
        .bind(vm.as_str())
        .bind(i64::try_from(DISKS_PER_VM_MAX).expect("the limit is a small constant"))
        .fetch_all(self.reader())
        .await?;
        let mut disks = rows
            .into_iter()
            .map(VmDisk::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        disks.sort_by_key(|disk| disk.device_key);
        Ok(disks)
    }
}

async fn check_credential(tx: &mut SqliteConnection, id: Option<i64>) -> Result<(), Error> {
    let Some(id) = id else { return Ok(()) };
    let known: Option<i64> = sqlx::query_scalar("SELECT id FROM vmware_credentials WHERE id = ?")
        .bind(id)
        .fetch_optional(tx)
        .await?;
    known
        .map(drop)
        .ok_or_else(|| Error::invalid("unknown credential", format!("credential_id={id}")))
}

async fn find_registered(tx: &mut SqliteConnection, vm: &NewVm) -> Result<Option<String>, Error> {
    let by_name: Option<String> = sqlx::query_scalar(
        "SELECT context_id FROM vm_replication_contexts WHERE vm_name = ? AND vcenter_host = ?",
    )
    .bind(&vm.vm_name)
    .bind(&vm.vcenter_host)
    .fetch_optional(&mut *tx)
    .await?;
    if vm.vmware_vm_id.is_empty() {
        return Ok(by_name);
    }
    let by_hypervisor_id: Option<String> =
        sqlx::query_scalar("SELECT context_id FROM vm_replication_contexts WHERE vmware_vm_id = ? AND vcenter_host = ?")
            .bind(&vm.vmware_vm_id)
            .bind(&vm.vcenter_host)
            .fetch_optional(&mut *tx)
            .await?;
    match (by_name, by_hypervisor_id) {
        (Some(name), Some(id)) if name != id => Err(Error::conflict(
            "VM name and id belong to different VMs",
            format!(
                "vm_name={:?} context_id={name} vmware_vm_id={:?} context_id={id}",
                vm.vm_name, vm.vmware_vm_id
            ),
        )),
        (by_name, by_hypervisor_id) => Ok(by_name.or(by_hypervisor_id)),
    }
}

async fn insert_vm(tx: &mut SqliteConnection, vm: &NewVm, now: Timestamp) -> Result<String, Error> {
    let id = free_vm_id(tx, &vm.vm_name, now).await?;
    sqlx::query(
        "INSERT INTO vm_replication_contexts (context_id, vm_name, vm_path, vmware_vm_id, vcenter_host, datacenter, \
         credential_id, created_at, updated_at) VALUES (?, ?, ?, NULLIF(?, ''), ?, ?, ?, ?, ?)",
    )
    .bind(id.as_str())
    .bind(&vm.vm_name)
    .bind(&vm.vm_path)
    .bind(&vm.vmware_vm_id)
    .bind(&vm.vcenter_host)
    .bind(&vm.datacenter)
    .bind(vm.credential_id)
    .bind(to_text(now))
    .bind(to_text(now))
    .execute(tx)
    .await?;
    Ok(id.into())
}

async fn update_vm(
    tx: &mut SqliteConnection,
    id: &str,
    vm: &NewVm,
    now: Timestamp,
) -> Result<(), Error> {
    // What the caller does not know stays: a client that only has the disks must not erase what discovery found.
    sqlx::query(
        "UPDATE vm_replication_contexts SET vm_name = ?, vm_path = COALESCE(NULLIF(?, ''), vm_path), \
         vmware_vm_id = COALESCE(NULLIF(?, ''), vmware_vm_id), datacenter = COALESCE(NULLIF(?, ''), datacenter), \
         credential_id = COALESCE(?, credential_id), updated_at = ? WHERE context_id = ?",
    )
    .bind(&vm.vm_name)
    .bind(&vm.vm_path)
    .bind(&vm.vmware_vm_id)
    .bind(&vm.datacenter)
    .bind(vm.credential_id)
    .bind(to_text(now))
    .bind(id)
    .execute(tx)
    .await?;
    Ok(())
}

async fn free_vm_id(
    tx: &mut SqliteConnection,
    vm_name: &str,
    now: Timestamp,
) -> Result<VmContextId, Error> {
    for ordinal in 0..ID_ATTEMPTS_MAX {
        let id = VmContextId::generate(vm_name, now, ordinal);
        let taken: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM vm_replication_contexts WHERE context_id = ?")
                .bind(id.as_str())
                .fetch_optional(&mut *tx)
                .await?;
        if taken.is_none() {
            return Ok(id);
        }
    }
    Err(Error::conflict(
        "no free vm context id",
        format!("vm_name={vm_name:?} attempts={ID_ATTEMPTS_MAX}"),
    ))
}

async fn store_disks(
    tx: &mut SqliteConnection,
    vm_id: &str,
    vm: &NewVm,
    keys: &[DeviceKey],
    now: Timestamp,
) -> Result<(), Error> {
    let known: Vec<String> =
        sqlx::query_scalar("SELECT disk_id FROM vm_disks WHERE vm_context_id = ?")
            .bind(vm_id)
            .fetch_all(&mut *tx)
            .await?;
    let wanted: Vec<String> = keys.iter().map(|key| key.to_disk_id()).collect();
    for gone in known.iter().filter(|disk_id| !wanted.contains(disk_id)) {
        sqlx::query("DELETE FROM vm_disks WHERE vm_context_id = ? AND disk_id = ?")
            .bind(vm_id)
            .bind(gone)
            .execute(&mut *tx)
            .await?;
    }
    for (disk, disk_id) in vm.disks.iter().zip(&wanted) {
        let capacity = signed("capacity_bytes", disk.capacity_bytes)?;
        let size_gb = signed("size_gb", disk.capacity_bytes.div_ceil(1 << 30))?;
        let statement = if known.contains(disk_id) {
            "UPDATE vm_disks SET capacity_bytes = ?, size_gb = ?, label = ?, updated_at = ? WHERE vm_context_id = ? AND disk_id = ?"
        } else {
            "INSERT INTO vm_disks (capacity_bytes, size_gb, label, updated_at, vm_context_id, disk_id, created_at) \
             VALUES (?, ?, ?, ?, ?, ?, ?)"
        };
        let mut query = sqlx::query(statement)
            .bind(capacity)
            .bind(size_gb)
            .bind(&disk.label)
            .bind(to_text(now))
            .bind(vm_id)
            .bind(disk_id);
        if !known.contains(disk_id) {
            query = query.bind(to_text(now));
        }
        query.execute(&mut *tx).await?;
    }
    Ok(())
}

impl TryFrom<VmRow> for Vm {
    type Error = Error;

    fn try_from(row: VmRow) -> Result<Self, Error> {
        Ok(Self {
            context_id: stored("context_id", VmContextId::parse(&row.context_id))?,
            vm_name: row.vm_name,
            vm_path: row.vm_path,
            vmware_vm_id: row.vmware_vm_id.unwrap_or_default(),
            vcenter_host: row.vcenter_host,
            datacenter: row.datacenter,
            credential_id: row.credential_id,
            created_at: from_text("created_at", &row.created_at)?,
            updated_at: from_text("updated_at", &row.updated_at)?,
        })
    }
}

impl TryFrom<VmDiskRow> for VmDisk {
    type Error = Error;

    fn try_from(row: VmDiskRow) -> Result<Self, Error> {
        Ok(Self {
            device_key: stored("disk_id", DeviceKey::from_disk_id(&row.disk_id))?,
            disk_id: row.disk_id,
            capacity_bytes: unsigned("capacity_bytes", row.capacity_bytes)?,
            size_gb: unsigned("size_gb", row.size_gb)?,
            label: row.label,
        })
    }
}
