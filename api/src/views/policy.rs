//! Policies, and the copies that were asked for.

use engine::{BackupCopy, CopyRule, Policy, PolicyId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::utc;

/// Where backups go, how long they are kept, where copies of them go. Recorded; nothing acts on it yet.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PolicyView {
    /// What the start of a backup names.
    pub id: String,
    /// For people; unique.
    pub name: String,
    /// Whether it is in force.
    pub enabled: bool,
    /// Where its backups go.
    pub primary_repository_id: String,
    /// How long its backups are kept; 0 says nothing about it.
    pub retention_days: u32,
    /// By priority; never null.
    pub copy_rules: Vec<CopyRuleView>,
    /// UTC.
    pub created_at: String,
    /// UTC.
    pub updated_at: String,
}

impl From<Policy> for PolicyView {
    fn from(policy: Policy) -> Self {
        let rules = policy.copy_rules.into_iter();
        Self {
            copy_rules: rules
                .map(|rule| CopyRuleView::new(&policy.id, rule))
                .collect(),
            id: policy.id.into(),
            name: policy.name,
            enabled: policy.enabled,
            primary_repository_id: policy.primary_repository_id.into(),
            retention_days: policy.retention_days,
            created_at: utc(policy.created_at),
            updated_at: utc(policy.updated_at),
        }
    }
}

/// A rule of a policy.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CopyRuleView {
    /// Its id.
    pub id: String,
    /// The policy that it belongs to.
    pub policy_id: String,
    /// Where the copy goes.
    pub destination_repository_id: String,
    /// `immediate`, `scheduled` or `manual`.
    pub copy_mode: String,
    /// Which of several comes first; 1 before 2.
    pub priority: u32,
    /// Whether it is in force.
    pub enabled: bool,
    /// Whether the copy is to be read again.
    pub verify_after_copy: bool,
    /// UTC.
    pub created_at: String,
}

impl CopyRuleView {
    fn new(policy: &PolicyId, rule: CopyRule) -> Self {
        Self {
            id: rule.id.into(),
            policy_id: policy.to_string(),
            destination_repository_id: rule.destination_repository_id.into(),
            copy_mode: rule.copy_mode.to_string(),
            priority: rule.priority,
            enabled: rule.enabled,
            verify_after_copy: rule.verify_after_copy,
            created_at: utc(rule.created_at),
        }
    }
}

/// The answer to a deletion.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeletedPolicyView {
    /// For people.
    pub message: String,
    /// The policy that was.
    pub id: String,
}

impl DeletedPolicyView {
    pub(crate) fn new(id: PolicyId) -> Self {
        Self {
            message: "Policy deleted successfully".to_owned(),
            id: id.into(),
        }
    }
}

/// A copy of a backup in another repository.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BackupCopyView {
    /// Its id.
    pub id: String,
    /// What it is a copy of.
    pub source_backup_id: String,
    /// Where it goes.
    pub repository_id: String,
    /// The rule that asked for it; absent if somebody did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub copy_rule_id: Option<String>,
    /// `pending`, `copying`, `verifying`, `completed` or `failed`.
    pub status: String,
    /// Where its files are; empty until there are any.
    pub file_path: String,
    /// How long they are.
    pub size_bytes: u64,
    /// UTC.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub copy_started_at: Option<String>,
    /// UTC.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub copy_completed_at: Option<String>,
    /// UTC.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verified_at: Option<String>,
    /// `pending`, `passed` or `failed`.
    pub verification_status: String,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_message: Option<String>,
    /// UTC.
    pub created_at: String,
}

impl From<BackupCopy> for BackupCopyView {
    fn from(copy: BackupCopy) -> Self {
        Self {
            id: copy.id.into(),
            source_backup_id: copy.source_backup_id.into(),
            repository_id: copy.repository_id.into(),
            copy_rule_id: copy.copy_rule_id.map(Into::into),
            status: copy.status.to_string(),
            file_path: copy.file_path,
            size_bytes: copy.size_bytes,
            copy_started_at: copy.copy_started_at.map(utc),
            copy_completed_at: copy.copy_completed_at.map(utc),
            verified_at: copy.verified_at.map(utc),
            verification_status: copy.verification.to_string(),
            error_message: copy.error_message,
            created_at: utc(copy.created_at),
        }
    }
}

/// The answer to somebody who asked for a copy.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CopyAskedView {
    /// The text that clients know; the copy has only been asked for.
    pub message: String,
    /// The copy.
    pub copy_id: String,
    /// `pending`.
    pub status: String,
}

impl From<BackupCopy> for CopyAskedView {
    fn from(copy: BackupCopy) -> Self {
        Self {
            message: "Backup copy triggered successfully".to_owned(),
            copy_id: copy.id.into(),
            status: copy.status.to_string(),
        }
    }
}
