//! Inputs of `/backups`. The order of checks and their texts are the wire contract.

use std::collections::BTreeMap;

use engine::{
    BackupFilter, BackupId, ChangeId, CompleteDisk, DiskIndex, PolicyId, RepositoryId,
    RequestedType, StartBackup, Transfer,
};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::non_empty;
use crate::error::Failure;

/// Start a backup of all disks of a VM.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct StartBackupInput {
    /// Name of the VM.
    #[schema(required = true)]
    #[serde(default)]
    vm_name: String,
    /// Where the images go.
    #[schema(required = true)]
    #[serde(default)]
    repository_id: String,
    /// `full`, `incremental`, or `auto`: an increment where a parent is good, else full.
    #[schema(required = true)]
    #[serde(default)]
    backup_type: String,
    /// `node` (default): the node appliance is told to push the data; `direct`: the caller pushes it.
    #[serde(default)]
    transfer: String,
    /// Recorded with the backup; it must exist.
    #[serde(default)]
    policy_id: String,
    /// Echoed.
    #[schema(value_type = BTreeMap<String, String>)]
    #[serde(default)]
    tags: BTreeMap<String, Option<String>>,
}

impl StartBackupInput {
    /// The engine's request, and the tags to echo.
    pub(crate) fn check(self) -> Result<(StartBackup, BTreeMap<String, String>), Failure> {
        if self.vm_name.is_empty() {
            return Err(Failure::invalid("vm_name is required", ""));
        }
        if self.repository_id.is_empty() {
            return Err(Failure::invalid("repository_id is required", ""));
        }
        let policy_id = non_empty(self.policy_id).map(|id| PolicyId::parse(&id));
        let request = StartBackup {
            backup_type: requested_type(&self.backup_type)?,
            transfer: transfer(&self.transfer)?,
            repository_id: RepositoryId::parse(&self.repository_id)?,
            vm_name: self.vm_name,
            policy_id: policy_id.transpose()?,
        };
        let tags = self.tags.into_iter();
        Ok((
            request,
            tags.map(|(k, v)| (k, v.unwrap_or_default())).collect(),
        ))
    }
}

fn requested_type(text: &str) -> Result<RequestedType, Failure> {
    text.parse().map_err(|_| {
        let details = format!("backup_type={text:?}");
        Failure::invalid("backup_type must be 'full' or 'incremental'", details)
    })
}

fn transfer(text: &str) -> Result<Transfer, Failure> {
    match text {
        "" => Ok(Transfer::Node),
        named => named.parse().map_err(|_| {
            let details = format!("transfer={named:?}");
            Failure::invalid("transfer must be 'node' or 'direct'", details)
        }),
    }
}

/// Filters; all that are given must hold.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Name of the VM.
    #[param(required = false)]
    vm_name: String,
    /// The VM in the inventory.
    #[param(required = false)]
    vm_context_id: String,
    /// Where the images are.
    #[param(required = false)]
    repository_id: String,
    /// pending, running, completed, failed or cancelled.
    #[param(required = false)]
    status: String,
    /// full or incremental.
    #[param(required = false)]
    backup_type: String,
    /// Most rows to return, a number; 1000 when absent or more.
    #[param(required = false)]
    limit: String,
    /// Rows to skip, a number.
    #[param(required = false)]
    offset: String,
}

impl ListQuery {
    /// The engine's filter; none for a query that asks for nothing: the legacy hub answers it with an empty list.
    pub(crate) fn check(self) -> Result<Option<BackupFilter>, Failure> {
        let filter = BackupFilter {
            limit: count("limit", &self.limit)?,
            offset: count("offset", &self.offset)?.unwrap_or(0),
            vm_name: non_empty(self.vm_name),
            vm_context_id: non_empty(self.vm_context_id),
            repository_id: non_empty(self.repository_id),
            status: non_empty(self.status),
            backup_type: non_empty(self.backup_type),
        };
        let asks = filter != BackupFilter::default() || !self.offset.is_empty();
        Ok(asks.then_some(filter))
    }
}

fn count(name: &str, text: &str) -> Result<Option<u32>, Failure> {
    match text {
        "" => Ok(None),
        digits => digits
            .parse()
            .map(Some)
            .map_err(|error: std::num::ParseIntError| {
                Failure::invalid(format!("invalid {name}"), error.to_string())
            }),
    }
}

/// Both are required.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct StatsQuery {
    /// Name of the VM.
    vm_name: String,
    /// Where the images are.
    repository_id: String,
}

impl StatsQuery {
    /// VM and repository.
    pub(crate) fn check(self) -> Result<(String, String), Failure> {
        if self.vm_name.is_empty() || self.repository_id.is_empty() {
            let error = "vm_name and repository_id are required";
            return Err(Failure::invalid(error, ""));
        }
        Ok((self.vm_name, self.repository_id))
    }
}

/// Which disk.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct ChangeIdQuery {
    /// Name of the VM, or the last part of its inventory path.
    vm_name: String,
    /// Index of the disk; 0 when absent.
    #[param(required = false)]
    disk_id: String,
}

impl ChangeIdQuery {
    pub(crate) fn check(self) -> Result<(String, DiskIndex), Failure> {
        if self.vm_name.is_empty() {
            return Err(Failure::invalid("missing vm_name", ""));
        }
        Ok((self.vm_name, disk_index(&self.disk_id)?))
    }
}

/// Which chain; the VM of the path unless one of the two names another.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct ChainQuery {
    /// The VM in the inventory.
    #[param(required = false)]
    vm_context_id: String,
    /// Name of the VM.
    #[param(required = false)]
    vm_name: String,
    /// Index of the disk; 0 when absent.
    #[param(required = false)]
    disk_id: String,
    /// Where the images are.
    #[param(required = false)]
    repository_id: String,
}

impl ChainQuery {
    /// VM (name or context id), disk, repository.
    pub(crate) fn check(
        self,
        path_vm: String,
    ) -> Result<(String, DiskIndex, Option<String>), Failure> {
        let named = non_empty(self.vm_context_id).or(non_empty(self.vm_name));
        let disk = disk_index(&self.disk_id)?;
        Ok((
            named.unwrap_or(path_vm),
            disk,
            non_empty(self.repository_id),
        ))
    }
}

fn disk_index(text: &str) -> Result<DiskIndex, Failure> {
    match text {
        "" => Ok(DiskIndex::new(0)),
        digits => digits
            .parse()
            .map_err(|error: engine::Error| Failure::invalid("invalid disk_id", error.to_string())),
    }
}

/// One disk has been transferred.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct CompleteDiskInput {
    /// The hypervisor's position of this disk at this backup.
    #[schema(required = true)]
    #[serde(default)]
    change_id: String,
    /// Index of the disk; 0 when absent.
    #[serde(default)]
    disk_id: i64,
    /// Ignored: the hub counts what it receives.
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "decoded so that a wrong type is refused as it always was"
    )]
    bytes_transferred: i64,
}

impl CompleteDiskInput {
    pub(crate) fn check(self, backup_id: &str) -> Result<CompleteDisk, Failure> {
        if self.change_id.is_empty() {
            return Err(Failure::invalid("missing change_id", ""));
        }
        let unknown = |disk_index: &dyn std::fmt::Display| {
            let details =
                format!("backup disk not found: job_id={backup_id} disk_index={disk_index}");
            Failure::not_found("backup job not found", details)
        };
        let disk_index = u32::try_from(self.disk_id).map_err(|_| unknown(&self.disk_id))?;
        Ok(CompleteDisk {
            backup_id: BackupId::parse_stored(backup_id).map_err(|_| unknown(&disk_index))?,
            disk_index: DiskIndex::new(disk_index),
            change_id: ChangeId::parse(&self.change_id)?,
        })
    }
}

/// The job that a path names, in the words of `/telemetry`.
pub(crate) fn job_id(text: &str) -> Result<BackupId, Failure> {
    BackupId::parse_stored(text)
        .map_err(|error| Failure::not_found("backup job not found", error.details))
}

/// The backup that a path names; a text that can be no id names none.
pub(crate) fn stored_backup_id(text: &str) -> Result<BackupId, Failure> {
    BackupId::parse_stored(text)
        .map_err(|error| Failure::not_found("backup not found", error.details))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(body: serde_json::Value) -> Result<StartBackup, Failure> {
        let input: StartBackupInput = serde_json::from_value(body).unwrap();
        input.check().map(|(request, _)| request)
    }

    #[test]
    fn a_start_is_checked_in_the_order_of_the_contract() {
        let check = |body: serde_json::Value, expected: &str| {
            let refusal = format!("{:?}", start(body.clone()).unwrap_err());
            assert!(refusal.contains(expected), "{body}: {refusal}");
            assert!(refusal.contains("400"), "{body}: {refusal}");
        };
        use serde_json::json;
        check(json!({}), "vm_name is required");
        check(json!({"repository_id": "r"}), "vm_name is required");
        check(json!({"vm_name": "v"}), "repository_id is required");
        check(
            json!({"vm_name": "v", "backup_type": "x"}),
            "repository_id is required",
        );
        let unnamed = json!({"vm_name": "v", "repository_id": "r"});
        check(unnamed, "backup_type must be 'full' or 'incremental'");
        for wrong in ["Full", "differential", "full "] {
            check(
                json!({"vm_name": "v", "repository_id": "r", "backup_type": wrong}),
                "backup_type must be 'full' or 'incremental'",
            );
        }
        check(
            json!({"vm_name": "v", "repository_id": "r", "backup_type": "full", "transfer": "x"}),
            "transfer must be 'node' or 'direct'",
        );
        check(
            json!({"vm_name": "v", "repository_id": "../r", "backup_type": "full"}),
            "repository",
        );
    }

    #[test]
    fn a_start_becomes_the_engines_request() {
        use serde_json::json;
        let request = start(json!({
            "vm_name": "v", "repository_id": "local", "backup_type": "auto", "transfer": "direct",
            "policy_id": ""
        }))
        .unwrap();
        assert_eq!(request.backup_type, RequestedType::Auto);
        assert_eq!(request.transfer, Transfer::Direct);
        assert_eq!(request.policy_id, None);
        let request =
            start(json!({"vm_name": "v", "repository_id": "local", "backup_type": "full"}))
                .unwrap();
        assert_eq!(request.transfer, Transfer::Node);
    }

    #[test]
    fn a_completion_needs_a_change_id_first() {
        let check = |disk_id: i64, change_id: &str, backup: &str, status: &str, error: &str| {
            let input = CompleteDiskInput {
                change_id: change_id.to_owned(),
                disk_id,
                bytes_transferred: 0,
            };
            let refusal = format!("{:?}", input.check(backup).unwrap_err());
            assert!(
                refusal.contains(status) && refusal.contains(error),
                "{refusal}"
            );
        };
        check(0, "", "backup-v-1", "400", "missing change_id");
        check(-1, "", "backup-v-1", "400", "missing change_id");
        check(-1, "x/1", "backup-v-1", "404", "backup job not found");
        check(0, "x/1", "a/b", "404", "backup job not found");
    }

    #[test]
    fn a_disk_index_is_a_decimal_number() {
        assert_eq!(disk_index("").unwrap().get(), 0);
        assert_eq!(disk_index("3").unwrap().get(), 3);
        for wrong in ["x", "-1", "1.0", " 1"] {
            assert!(disk_index(wrong).is_err(), "{wrong:?}");
        }
    }
}
