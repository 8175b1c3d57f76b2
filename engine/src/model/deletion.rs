//! Whether a backup may be deleted. Nothing is ever rebased to make it possible: what stands on it goes first.

use crate::clock::Timestamp;
use crate::error::Error;
use crate::id::{BackupId, RepositoryId};

use super::{Backup, Intent, JobStatus};

/// How long a repository keeps what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// The repository.
    pub repository_id: RepositoryId,
    /// Nothing is ever deleted from it.
    pub is_immutable: bool,
    /// Days from a backup's end for which it stays.
    pub min_retention_days: u32,
}

/// What stands in the way of a deletion besides the backup itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dependents {
    /// Backups with a disk that stands on one of this backup.
    pub children: Vec<BackupId>,
    /// Where it is mounted for a restore.
    pub mounts: Vec<String>,
    /// Copies of it that are being made or checked.
    pub copies: Vec<String>,
}

/// Refuses the deletion of a backup that must stay.
///
/// # Errors
/// [`Conflict`](crate::ErrorKind::Conflict); the details name what is in the way.
pub fn check_deletion(
    backup: &Backup,
    retention: &Retention,
    dependents: &Dependents,
    now: Timestamp,
) -> Result<(), Error> {
    let id = &backup.id;
    let refused = |message: &str, details: String| Err(Error::conflict(message, details));
    if !backup.is_point() {
        // A legacy hub wrote one such row per disk; it goes with the backup that it belongs to.
        return refused(
            "backup is a part of another one",
            format!("backup_id={id} file_path={}", backup.file_path),
        );
    }
    match (backup.status, backup.intent) {
        (JobStatus::Pending | JobStatus::Running, _) => {
            return refused(
                "backup is running",
                format!("cancel it first backup_id={id} status={}", backup.status),
            );
        }
        (_, Some(intent @ (Intent::Creating | Intent::Publishing))) => {
            return refused(
                "backup is being changed",
                format!("backup_id={id} intent={intent}"),
            );
        }
        // A deletion that broke off is taken up again.
        (_, Some(Intent::Deleting) | None) => {}
    }
    if let [first, ..] = dependents.children.as_slice() {
        let count = dependents.children.len();
        let list: Vec<&str> = dependents
            .children
            .iter()
            .take(CHILDREN_NAMED)
            .map(BackupId::as_str)
            .collect();
        let more = if count > list.len() { ", …" } else { "" };
        let details = format!(
            "delete {first} first backup_id={id} count={count} dependents=[{}{more}]",
            list.join(", ")
        );
        return refused("backup has dependent backups", details);
    }
    if let Some(mount) = dependents.mounts.first() {
        return refused(
            "backup is in use",
            format!("backup_id={id} mount_id={mount}"),
        );
    }
    if let Some(copy) = dependents.copies.first() {
        return refused("backup is in use", format!("backup_id={id} copy_id={copy}"));
    }
    // What failed holds nothing that is worth to be kept.
    if backup.status != JobStatus::Completed {
        return Ok(());
    }
    if retention.is_immutable {
        let details = format!("backup_id={id} repository_id={}", retention.repository_id);
        return refused("repository is immutable", details);
    }
    let since = backup.completed_at.unwrap_or(backup.created_at);
    let until = since.saturating_add(time::Duration::days(retention.min_retention_days.into()));
    if now < until {
        let details = format!(
            "backup_id={id} repository_id={} min_retention_days={}",
            retention.repository_id, retention.min_retention_days
        );
        return refused("minimum retention period not met", details);
    }
    Ok(())
}

/// How many dependents an error names; the count tells the rest.
const CHILDREN_NAMED: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::VmContextId;
    use crate::model::{BackupType, PARENT_MARKER};
    use time::Duration;

    fn at(days: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + Duration::days(days)
    }

    fn id(n: usize) -> BackupId {
        BackupId::parse(&format!("backup-web-{n}")).unwrap()
    }

    fn backup(status: JobStatus, intent: Option<Intent>) -> Backup {
        Backup {
            id: id(1),
            vm_context_id: VmContextId::parse("ctx-web").unwrap(),
            context_id: None,
            vm_name: "web".to_owned(),
            repository_id: RepositoryId::parse("local").unwrap(),
            policy_id: None,
            backup_type: BackupType::Full,
            type_reason: None,
            transfer: None,
            status,
            intent,
            current_phase: String::new(),
            file_path: PARENT_MARKER.to_owned(),
            bytes_transferred: 0,
            total_bytes: 0,
            disks_count: 1,
            change_id: None,
            error_message: None,
            transfer_speed_bps: 0,
            eta_seconds: 0,
            progress_percent: 0.0,
            created_at: at(0),
            started_at: Some(at(0)),
            completed_at: status.has_ended().then(|| at(1)),
            last_telemetry_at: None,
        }
    }

    fn retention(is_immutable: bool, min_retention_days: u32) -> Retention {
        Retention {
            repository_id: RepositoryId::parse("local").unwrap(),
            is_immutable,
            min_retention_days,
        }
    }

    fn refusal(backup: &Backup, retention: &Retention, dependents: &Dependents) -> Option<String> {
        let checked = check_deletion(backup, retention, dependents, at(5));
        checked.err().map(|error| {
            assert_eq!(error.kind, crate::ErrorKind::Conflict);
            error.to_string()
        })
    }

    #[test]
    fn every_state_and_intent() {
        let intents = [
            None,
            Some(Intent::Creating),
            Some(Intent::Publishing),
            Some(Intent::Deleting),
        ];
        let mut allowed = Vec::new();
        for status in JobStatus::ALL {
            for intent in intents {
                let backup = backup(*status, intent);
                if refusal(&backup, &retention(false, 0), &Dependents::default()).is_none() {
                    allowed.push((*status, intent));
                }
            }
        }
        use JobStatus as S;
        let deleting = Some(Intent::Deleting);
        let expected = [
            (S::Completed, None),
            (S::Completed, deleting),
            (S::Failed, None),
            (S::Failed, deleting),
            (S::Cancelled, None),
            (S::Cancelled, deleting),
        ];
        assert_eq!(allowed, expected);
    }

    #[test]
    fn what_depends_on_it_is_named() {
        let completed = backup(JobStatus::Completed, None);
        let none = retention(false, 0);
        let children = Dependents {
            children: (2..20).map(id).collect(),
            ..Dependents::default()
        };
        let told = refusal(&completed, &none, &children).unwrap();
        assert!(
            told.contains("delete backup-web-2 first") && told.contains("count=18"),
            "{told}"
        );
        assert!(told.contains("backup-web-11, …]"), "{told}");
        let mounted = Dependents {
            mounts: vec!["m1".to_owned()],
            ..Dependents::default()
        };
        assert!(
            refusal(&completed, &none, &mounted)
                .unwrap()
                .contains("mount_id=m1")
        );
        let copied = Dependents {
            copies: vec!["c1".to_owned()],
            ..Dependents::default()
        };
        assert!(
            refusal(&completed, &none, &copied)
                .unwrap()
                .contains("copy_id=c1")
        );
    }

    #[test]
    fn a_repository_keeps_what_it_has_promised() {
        let (completed, failed) = (
            backup(JobStatus::Completed, None),
            backup(JobStatus::Failed, None),
        );
        let nothing = Dependents::default();
        for (rule, word) in [
            (retention(true, 0), Some("repository is immutable")),
            (
                retention(false, 5),
                Some("minimum retention period not met"),
            ),
            (retention(false, 4), None),
        ] {
            let told = refusal(&completed, &rule, &nothing);
            assert_eq!(told.is_some(), word.is_some(), "{told:?}");
            assert!(
                told.unwrap_or_default()
                    .starts_with(word.unwrap_or_default())
            );
            assert_eq!(refusal(&failed, &rule, &nothing), None);
        }
    }

    #[test]
    fn a_legacy_row_of_one_disk_is_not_deleted_alone() {
        let row = Backup {
            file_path: "/srv/x.qcow2".to_owned(),
            ..backup(JobStatus::Completed, None)
        };
        assert!(
            refusal(&row, &retention(false, 0), &Dependents::default())
                .unwrap()
                .contains("part of another")
        );
    }
}
