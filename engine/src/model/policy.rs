//! Policies: where backups go, how long they are kept, where copies of them go; and the copies that were asked for.
//!
//! Nothing here makes a copy or removes a backup: the hub records what is wanted.

use super::{Backup, JobStatus, check_text, words};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::id::{BackupId, CopyId, CopyRuleId, PolicyId, RepositoryId};
use crate::limits::{COPY_RULES_PER_POLICY_MAX, NAME_CHARS_MAX, POLICY_NUMBER_MAX};

/// When a rule wants its copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyMode {
    /// As soon as the backup is complete.
    Immediate,
    /// With a schedule.
    Scheduled,
    /// When somebody asks.
    Manual,
}
words!(
    CopyMode, "copy mode",
    Immediate => "immediate", Scheduled => "scheduled", Manual => "manual",
);

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyStatus {
    /// Asked for; nothing of it exists.
    Pending,
    /// Its files are being written.
    Copying,
    /// Its files are being read again.
    Verifying,
    /// It is there.
    Completed,
    /// It is not, and will not be.
    Failed,
}
words!(
    CopyStatus, "copy status",
    Pending => "pending", Copying => "copying", Verifying => "verifying", Completed => "completed", Failed => "failed",
);

/// What reading a copy again has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verification {
    /// Nothing yet.
    Pending,
    /// It is what the backup is.
    Passed,
    /// It is not.
    Failed,
}
words!(
    Verification, "verification",
    Pending => "pending", Passed => "passed", Failed => "failed",
);

/// A policy to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPolicy {
    /// For people; unique.
    pub name: String,
    /// Whether it is in force.
    pub enabled: bool,
    /// Where its backups go.
    pub primary_repository_id: RepositoryId,
    /// How long its backups are kept; 0 says nothing about it.
    pub retention_days: i64,
    /// Where copies go; each to another repository.
    pub copy_rules: Vec<NewCopyRule>,
}

/// A rule of a policy to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCopyRule {
    /// The caller's own id for it.
    pub id: Option<CopyRuleId>,
    /// Where the copy goes.
    pub destination_repository_id: RepositoryId,
    /// When it is wanted.
    pub copy_mode: CopyMode,
    /// Which of several comes first; 1 before 2.
    pub priority: i64,
    /// Whether it is in force.
    pub enabled: bool,
    /// Whether the copy is to be read again.
    pub verify_after_copy: bool,
}

/// A policy (`backup_policies`) with its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its id.
    pub id: PolicyId,
    /// For people; unique.
    pub name: String,
    /// Whether it is in force.
    pub enabled: bool,
    /// Where its backups go.
    pub primary_repository_id: RepositoryId,
    /// How long its backups are kept; 0 says nothing about it.
    pub retention_days: u32,
    /// Where copies go, by priority.
    pub copy_rules: Vec<CopyRule>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// A rule of a policy (`backup_copy_rules`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyRule {
    /// Its id.
    pub id: CopyRuleId,
    /// Where the copy goes.
    pub destination_repository_id: RepositoryId,
    /// When it is wanted.
    pub copy_mode: CopyMode,
    /// Which of several comes first; 1 before 2.
    pub priority: u32,
    /// Whether it is in force.
    pub enabled: bool,
    /// Whether the copy is to be read again.
    pub verify_after_copy: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

impl NewPolicy {
    /// The policy that this becomes at `at` under `id`; a rule that brings no id gets one from `rule_id`.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for an empty or overlong name, a number out of range, too many rules, a rule into the primary
    /// repository, and two rules with the same id or into the same repository.
    pub fn into_policy(
        self,
        id: PolicyId,
        mut rule_id: impl FnMut() -> CopyRuleId,
        at: Timestamp,
    ) -> Result<Policy, Error> {
        if self.name.trim().is_empty() {
            return Err(Error::invalid("Policy name is required", ""));
        }
        check_text("name", &self.name, NAME_CHARS_MAX)?;
        if self.copy_rules.len() > COPY_RULES_PER_POLICY_MAX {
            let count = self.copy_rules.len();
            let details = format!("count={count} max={COPY_RULES_PER_POLICY_MAX}");
            return Err(Error::invalid("too many copy rules", details));
        }
        let mut copy_rules: Vec<CopyRule> = Vec::with_capacity(self.copy_rules.len());
        for rule in self.copy_rules {
            let rule = CopyRule {
                id: rule.id.unwrap_or_else(&mut rule_id),
                destination_repository_id: rule.destination_repository_id,
                copy_mode: rule.copy_mode,
                priority: number("priority", rule.priority, 1)?,
                enabled: rule.enabled,
                verify_after_copy: rule.verify_after_copy,
                created_at: at,
            };
            check_rule(&self.primary_repository_id, &copy_rules, &rule)?;
            copy_rules.push(rule);
        }
        copy_rules.sort_by(|a, b| (a.priority, &a.id).cmp(&(b.priority, &b.id)));
        Ok(Policy {
            id,
            name: self.name,
            enabled: self.enabled,
            primary_repository_id: self.primary_repository_id,
            retention_days: number("retention_days", self.retention_days, 0)?,
            copy_rules,
            created_at: at,
            updated_at: at,
        })
    }
}

fn check_rule(primary: &RepositoryId, before: &[CopyRule], rule: &CopyRule) -> Result<(), Error> {
    let destination = &rule.destination_repository_id;
    if destination == primary {
        return Err(Error::invalid(
            "a copy rule goes to the primary repository",
            format!("repository_id={destination}"),
        ));
    }
    let same = |other: &CopyRule| other.destination_repository_id == *destination;
    if before.iter().any(same) {
        return Err(Error::invalid(
            "two copy rules go to the same repository",
            format!("repository_id={destination}"),
        ));
    }
    if before.iter().any(|other| other.id == rule.id) {
        let details = format!("copy_rule_id={}", rule.id);
        return Err(Error::invalid("two copy rules have the same id", details));
    }
    Ok(())
}

fn number(field: &str, value: i64, min: u32) -> Result<u32, Error> {
    u32::try_from(value)
        .ok()
        .filter(|value| (min..=POLICY_NUMBER_MAX).contains(value))
        .ok_or_else(|| {
            Error::invalid(
                format!("{field} is out of range"),
                format!("value={value} min={min} max={POLICY_NUMBER_MAX}"),
            )
        })
}

/// A copy of a backup in another repository (`backup_copies`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupCopy {
    /// Its id.
    pub id: CopyId,
    /// What it is a copy of.
    pub source_backup_id: BackupId,
    /// Where it goes.
    pub repository_id: RepositoryId,
    /// The rule that asked for it; absent if somebody did.
    pub copy_rule_id: Option<CopyRuleId>,
    /// How far it is.
    pub status: CopyStatus,
    /// Where its files are; empty until there are any.
    pub file_path: String,
    /// How long they are.
    pub size_bytes: u64,
    /// When the first byte was written.
    pub copy_started_at: Option<Timestamp>,
    /// When the last byte was written.
    pub copy_completed_at: Option<Timestamp>,
    /// When it was read again.
    pub verified_at: Option<Timestamp>,
    /// What that has shown.
    pub verification: Verification,
    /// Why it failed.
    pub error_message: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
}

impl BackupCopy {
    /// A copy of `backup` that somebody asks for: pending, nothing of it exists.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) for a backup that is not complete, or is being removed;
    /// [`Invalid`](crate::ErrorKind::Invalid) for the repository that it is in.
    pub fn asked_for(
        backup: &Backup,
        repository_id: RepositoryId,
        id: CopyId,
        at: Timestamp,
    ) -> Result<Self, Error> {
        if backup.status != JobStatus::Completed || backup.intent.is_some() {
            let details = format!("backup_id={} status={}", backup.id, backup.status);
            return Err(Error::conflict("backup is not completed", details));
        }
        if backup.repository_id == repository_id {
            let details = format!("backup_id={} repository_id={repository_id}", backup.id);
            return Err(Error::invalid("the backup is in this repository", details));
        }
        Ok(Self {
            id,
            source_backup_id: backup.id.clone(),
            repository_id,
            copy_rule_id: None,
            status: CopyStatus::Pending,
            file_path: String::new(),
            size_bytes: 0,
            copy_started_at: None,
            copy_completed_at: None,
            verified_at: None,
            verification: Verification::Pending,
            error_message: None,
            created_at: at,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn rule(destination: &str, priority: i64) -> NewCopyRule {
        NewCopyRule {
            id: None,
            destination_repository_id: RepositoryId::parse(destination).unwrap(),
            copy_mode: CopyMode::Immediate,
            priority,
            enabled: true,
            verify_after_copy: true,
        }
    }

    fn named(id: &str, rule: NewCopyRule) -> NewCopyRule {
        let id = Some(CopyRuleId::parse(id).unwrap());
        NewCopyRule { id, ..rule }
    }

    fn policy(change: impl FnOnce(&mut NewPolicy)) -> Result<Policy, Error> {
        let mut new = NewPolicy {
            name: "daily".to_owned(),
            enabled: true,
            primary_repository_id: RepositoryId::parse("local").unwrap(),
            retention_days: 30,
            copy_rules: Vec::new(),
        };
        change(&mut new);
        let mut made = 0;
        let rule_id = || {
            made += 1;
            CopyRuleId::parse(&format!("made-{made}")).unwrap()
        };
        let id = PolicyId::parse("p").unwrap();
        new.into_policy(id, rule_id, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_policy_that_contradicts_itself_is_refused() {
        let check = |expected: &str, change: fn(&mut NewPolicy)| {
            let error = policy(change).unwrap_err();
            assert_eq!(
                (error.kind, error.message.as_str()),
                (ErrorKind::Invalid, expected)
            );
        };
        check("Policy name is required", |new| new.name.clear());
        check("Policy name is required", |new| new.name = " ".to_owned());
        check("name is too long", |new| {
            new.name = "x".repeat(NAME_CHARS_MAX + 1);
        });
        check("name has control characters", |new| {
            new.name = "a\nb".to_owned();
        });
        check("retention_days is out of range", |new| {
            new.retention_days = -1;
        });
        check("retention_days is out of range", |new| {
            new.retention_days = i64::from(POLICY_NUMBER_MAX) + 1;
        });
        for priority in [0, -1, i64::MIN, i64::from(POLICY_NUMBER_MAX) + 1] {
            let error = policy(|new| new.copy_rules = vec![rule("far", priority)]).unwrap_err();
            assert_eq!(error.message, "priority is out of range", "{priority}");
        }
        check("a copy rule goes to the primary repository", |new| {
            new.copy_rules = vec![rule("far", 1), rule("local", 2)];
        });
        check("two copy rules go to the same repository", |new| {
            new.copy_rules = vec![rule("far", 1), rule("off", 2), rule("far", 3)];
        });
        check("two copy rules have the same id", |new| {
            new.copy_rules = vec![named("r", rule("far", 1)), named("r", rule("off", 2))];
        });
        check("too many copy rules", |new| {
            let rules = 0..=COPY_RULES_PER_POLICY_MAX;
            new.copy_rules = rules.map(|n| rule(&format!("r{n}"), 1)).collect();
        });
    }

    #[test]
    fn rules_are_in_the_order_of_their_priority_and_have_ids() {
        let made = policy(|new| {
            new.retention_days = 0;
            new.copy_rules = vec![
                rule("c", 2),
                named("own", rule("b", 1)),
                rule("a", i64::from(POLICY_NUMBER_MAX)),
            ];
        })
        .unwrap();
        let ids: Vec<_> = made
            .copy_rules
            .iter()
            .map(|rule| rule.id.as_str())
            .collect();
        assert_eq!(ids, ["own", "made-1", "made-2"]);
        assert_eq!(made.retention_days, 0);
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for mode in CopyMode::ALL {
            assert_eq!(mode.as_str().parse::<CopyMode>().unwrap(), *mode);
        }
        for word in ["", "Immediate", "later"] {
            assert!(word.parse::<CopyMode>().is_err(), "{word:?}");
        }
    }
}
