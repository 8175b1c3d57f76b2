//! Makes policies, and records the copies that are asked for.

use super::hub::Hub;
use crate::error::Error;
use crate::id::{BackupId, CopyId, CopyRuleId, PolicyId, RepositoryId};
use crate::model::{BackupCopy, NewPolicy, Policy};
use crate::random;

/// Makes a policy with its rules.
pub(crate) async fn create_policy(hub: &Hub, new: NewPolicy) -> Result<Policy, Error> {
    let id = PolicyId::from_random(random::half());
    let rule_id = || CopyRuleId::from_random(random::half());
    let policy = new.into_policy(id, rule_id, hub.clock.now())?;
    hub.catalog.add_policy(&policy).await?;
    tracing::info!(policy_id = %policy.id, rules = policy.copy_rules.len(), "policy made");
    Ok(policy)
}

/// Records that a copy of a backup is wanted.
pub(crate) async fn ask_for_copy(
    hub: &Hub,
    backup: &BackupId,
    repository: &RepositoryId,
) -> Result<BackupCopy, Error> {
    let id = CopyId::from_random(random::half());
    hub.catalog
        .ask_for_copy(backup, repository, id, hub.clock.now())
        .await
}
