//! Who may do what: one table of roles and verbs, and nothing else decides.

use super::{Vm, words};
use crate::error::Error;
use crate::id::BackupId;

/// What a caller is to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything, the tokens of others included.
    Admin,
    /// Runs backups. What destroys points or changes where they go is an admin's.
    Operator,
    /// Looks.
    ReadOnly,
    /// Moves the data of one job.
    Node,
    /// A caller without a token from where the hub asks for none: the legacy tunnel and GUI. No token has this role. It may
    /// do all that an admin may but make tokens, which would outlive the trust.
    Trusted,
}
words!(
    Role, "role",
    Admin => "admin", Operator => "operator", ReadOnly => "read-only", Node => "node", Trusted => "trusted",
);

/// What can be done. Every route of the API declares one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Looks at backups, their disks and chains.
    ReadBackups,
    /// Starts a backup.
    StartBackup,
    /// Asks where the changes of a disk start.
    ReadChangeId,
    /// Completes a disk.
    CompleteDisk,
    /// Tells how a job goes.
    ReportTelemetry,
    /// Ends a running backup.
    CancelBackup,
    /// Removes a point for good.
    DeleteBackup,
    /// Asks for a copy of a point in another repository.
    CopyBackup,
    /// Looks at policies.
    ReadPolicies,
    /// Makes and removes policies.
    ManagePolicies,
    /// Looks at VMs.
    ReadVms,
    /// Registers a VM, or changes it.
    RegisterVm,
    /// Stores a password of a hypervisor.
    AddCredential,
    /// Looks at repositories.
    ReadRepositories,
    /// Looks at a repository's storage and records what is found.
    CheckRepository,
    /// Makes and removes repositories, tries what could become one.
    ManageRepositories,
    /// Reads the metrics.
    ReadMetrics,
    /// Reads who did what.
    ReadAudit,
    /// Makes, lists and revokes tokens.
    ManageTokens,
}
words!(
    Verb, "verb",
    ReadBackups => "read_backups", StartBackup => "start_backup", ReadChangeId => "read_change_id",
    CompleteDisk => "complete_disk", ReportTelemetry => "report_telemetry", CancelBackup => "cancel_backup",
    DeleteBackup => "delete_backup", CopyBackup => "copy_backup", ReadPolicies => "read_policies",
    ManagePolicies => "manage_policies", ReadVms => "read_vms", RegisterVm => "register_vm", AddCredential => "add_credential",
    ReadRepositories => "read_repositories", CheckRepository => "check_repository",
    ManageRepositories => "manage_repositories", ReadMetrics => "read_metrics", ReadAudit => "read_audit",
    ManageTokens => "manage_tokens",
);

impl Verb {
    /// Whether a call leaves a row in the audit log when it is allowed. Telemetry comes every few seconds of every job and
    /// decides nothing, so it does not. Refusals are recorded for all of these.
    #[must_use]
    pub const fn changes_state(self) -> bool {
        match self {
            Self::ReadBackups
            | Self::ReadChangeId
            | Self::ReportTelemetry
            | Self::ReadPolicies
            | Self::ReadVms
            | Self::ReadRepositories
            | Self::ReadMetrics
            | Self::ReadAudit => false,
            Self::StartBackup
            | Self::CompleteDisk
            | Self::CancelBackup
            | Self::DeleteBackup
            | Self::CopyBackup
            | Self::ManagePolicies
            | Self::RegisterVm
            | Self::AddCredential
            | Self::CheckRepository
            | Self::ManageRepositories
            | Self::ManageTokens => true,
        }
    }
}

/// How far a role reaches with a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// To everything.
    All,
    /// To the job that the token is bound to.
    Own,
    /// To nothing.
    Nothing,
}

/// The table.
#[must_use]
pub const fn reach(role: Role, verb: Verb) -> Reach {
    use Reach::{All, Nothing as No, Own};
    // Columns: admin, operator, read-only, node, trusted.
    let [admin, operator, read_only, node, trusted] = match verb {
        Verb::ReadBackups => [All, All, All, No, All],
        Verb::StartBackup => [All, All, No, No, All],
        Verb::ReadChangeId => [All, All, All, Own, All],
        Verb::CompleteDisk => [All, All, No, Own, All],
        Verb::ReportTelemetry => [All, All, No, Own, All],
        Verb::CancelBackup => [All, All, No, No, All],
        Verb::DeleteBackup => [All, No, No, No, All],
        Verb::CopyBackup => [All, All, No, No, All],
        Verb::ReadPolicies => [All, All, All, No, All],
        Verb::ManagePolicies => [All, No, No, No, All],
        Verb::ReadVms => [All, All, All, No, All],
        Verb::RegisterVm => [All, All, No, No, All],
        Verb::AddCredential => [All, No, No, No, All],
        Verb::ReadRepositories => [All, All, All, No, All],
        Verb::CheckRepository => [All, All, No, No, All],
        Verb::ManageRepositories => [All, No, No, No, All],
        Verb::ReadMetrics => [All, All, All, No, All],
        Verb::ReadAudit => [All, No, No, No, All],
        Verb::ManageTokens => [All, No, No, No, No],
    };
    match role {
        Role::Admin => admin,
        Role::Operator => operator,
        Role::ReadOnly => read_only,
        Role::Node => node,
        Role::Trusted => trusted,
    }
}

/// Who asks, once it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// What the audit log calls it: the token's name, or `loopback`.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// The job that it is bound to; only nodes are.
    pub job: Option<BoundJob>,
}

/// The job of a node's token, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundJob {
    /// The job.
    pub id: BackupId,
    /// Its VM.
    pub vm: Vm,
    /// Whether it is pending or running.
    pub is_running: bool,
}

/// What a request names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// The job in its path.
    pub job: Option<String>,
    /// The VM in its query, the way clients name one.
    pub vm_name: Option<String>,
}

impl Caller {
    /// Whether the caller may do this to that.
    ///
    /// # Errors
    /// [`Forbidden`](crate::ErrorKind::Forbidden), with the reason.
    pub fn permit(&self, verb: Verb, target: &Target) -> Result<(), Error> {
        let role = self.role;
        match (reach(role, verb), &self.job) {
            (Reach::All, _) => Ok(()),
            (Reach::Own, Some(job)) if job.owns(verb, target) => Ok(()),
            (Reach::Own, Some(job)) => Err(Error::forbidden(
                "token is bound to another job",
                format!("verb={verb} job_id={}", job.id),
            )),
            (Reach::Own, None) | (Reach::Nothing, _) => Err(Error::forbidden(
                "not allowed for this role",
                format!("role={role} verb={verb}"),
            )),
        }
    }
}

impl BoundJob {
    /// A change id is asked for by the VM's name, and only while the job runs: after it the answer would be about another
    /// job. Everything else names the job itself; a completion may be repeated after the end.
    fn owns(&self, verb: Verb, target: &Target) -> bool {
        match verb {
            Verb::ReadChangeId => {
                let asked = target.vm_name.as_deref();
                self.is_running && asked.is_some_and(|name| self.vm.answers_to(name))
            }
            _ => target.job.as_deref() == Some(self.id.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::error::ErrorKind;
    use crate::id::VmContextId;

    /// What each role may do, said the other way round than the table says it.
    fn expected(role: Role, verb: Verb) -> Reach {
        let reads = [
            Verb::ReadBackups,
            Verb::ReadChangeId,
            Verb::ReadPolicies,
            Verb::ReadVms,
            Verb::ReadRepositories,
            Verb::ReadMetrics,
        ];
        let runs = [
            Verb::StartBackup,
            Verb::CompleteDisk,
            Verb::ReportTelemetry,
            Verb::CancelBackup,
            Verb::CopyBackup,
            Verb::RegisterVm,
            Verb::CheckRepository,
        ];
        let own = [
            Verb::ReadChangeId,
            Verb::CompleteDisk,
            Verb::ReportTelemetry,
        ];
        let all = |allowed: bool| match allowed {
            true => Reach::All,
            false => Reach::Nothing,
        };
        match role {
            Role::Admin => Reach::All,
            Role::Trusted => all(verb != Verb::ManageTokens),
            Role::Operator => all(reads.contains(&verb) || runs.contains(&verb)),
            Role::ReadOnly => all(reads.contains(&verb)),
            Role::Node if own.contains(&verb) => Reach::Own,
            Role::Node => Reach::Nothing,
        }
    }

    fn caller(role: Role, job: Option<BoundJob>) -> Caller {
        let name = role.to_string();
        Caller { name, role, job }
    }

    fn job(is_running: bool) -> BoundJob {
        BoundJob {
            id: BackupId::parse("backup-web-1").unwrap(),
            vm: Vm {
                context_id: VmContextId::parse("ctx-web-1").unwrap(),
                vm_name: "web".to_owned(),
                vm_path: "/DC/vm/front%2fweb".to_owned(),
                vmware_vm_id: String::new(),
                vcenter_host: String::new(),
                datacenter: String::new(),
                credential_id: None,
                created_at: Timestamp::UNIX_EPOCH,
                updated_at: Timestamp::UNIX_EPOCH,
            },
            is_running,
        }
    }

    #[test]
    fn every_role_reaches_as_far_with_every_verb_as_it_should() {
        for role in Role::ALL {
            for verb in Verb::ALL {
                assert_eq!(reach(*role, *verb), expected(*role, *verb), "{role} {verb}");
                let permitted = caller(*role, None).permit(*verb, &Target::default());
                assert_eq!(permitted.is_ok(), reach(*role, *verb) == Reach::All);
                if let Err(error) = permitted {
                    assert_eq!(error.kind, ErrorKind::Forbidden);
                }
            }
        }
    }

    #[test]
    fn nobody_without_a_job_changes_anything_but_by_a_role_that_runs_things() {
        for verb in Verb::ALL.iter().filter(|verb| verb.changes_state()) {
            assert_eq!(reach(Role::ReadOnly, *verb), Reach::Nothing, "{verb}");
            assert_ne!(reach(Role::Node, *verb), Reach::All, "{verb}");
        }
    }

    #[test]
    fn a_node_reaches_its_own_job_only() {
        let node = caller(Role::Node, Some(job(true)));
        let target = |job: Option<&str>, vm_name: Option<&str>| Target {
            job: job.map(str::to_owned),
            vm_name: vm_name.map(str::to_owned),
        };
        let check = |verb, target: &Target, allowed: bool| {
            assert_eq!(
                node.permit(verb, target).is_ok(),
                allowed,
                "{verb} {target:?}"
            );
        };
        for verb in [Verb::CompleteDisk, Verb::ReportTelemetry] {
            check(verb, &target(Some("backup-web-1"), None), true);
            check(verb, &target(Some("backup-web-2"), None), false);
            check(verb, &target(Some("backup-web-1 "), None), false);
            check(verb, &target(None, Some("web")), false);
            check(verb, &target(None, None), false);
        }
        for (name, allowed) in [
            ("web", true),
            ("front/web", true),
            ("front%2fweb", true),
            ("", false),
            ("we", false),
            ("db", false),
        ] {
            check(Verb::ReadChangeId, &target(None, Some(name)), allowed);
        }
        check(
            Verb::ReadChangeId,
            &target(Some("backup-web-1"), None),
            false,
        );
        check(
            Verb::CancelBackup,
            &target(Some("backup-web-1"), None),
            false,
        );
    }

    #[test]
    fn an_ended_job_lets_its_node_repeat_a_completion_and_nothing_else() {
        let node = caller(Role::Node, Some(job(false)));
        let own = Target {
            job: Some("backup-web-1".to_owned()),
            vm_name: Some("web".to_owned()),
        };
        assert!(node.permit(Verb::CompleteDisk, &own).is_ok());
        assert!(node.permit(Verb::ReadChangeId, &own).is_err());
    }
}
