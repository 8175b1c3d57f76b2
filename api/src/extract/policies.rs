//! Inputs of `/policies` and of copies. The order of checks and their texts are the wire contract.

use engine::{CopyMode, CopyRuleId, NewCopyRule, NewPolicy, PolicyId, RepositoryId};
use serde::Deserialize;
use utoipa::ToSchema;

use super::non_empty;
use crate::error::Failure;

/// Make a policy.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct PolicyInput {
    /// For people; unique.
    #[schema(required = true)]
    #[serde(default)]
    name: String,
    /// Whether it is in force; `false` when absent.
    #[serde(default)]
    enabled: bool,
    /// Where its backups go.
    #[schema(required = true)]
    #[serde(default)]
    primary_repository_id: String,
    /// How long its backups are kept; 0, or absent, says nothing about it.
    #[schema(minimum = 0, maximum = 2147483647)]
    #[serde(default)]
    retention_days: i64,
    /// Where copies go; each to another repository.
    #[schema(max_items = 32)]
    #[serde(default)]
    copy_rules: Vec<CopyRuleInput>,
}

/// A rule of a policy.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct CopyRuleInput {
    /// The caller's own id for it, at most 64 characters; made when absent.
    #[serde(default)]
    id: Option<String>,
    /// Where the copy goes.
    #[schema(required = true)]
    #[serde(default)]
    destination_repository_id: String,
    /// `immediate` (default), `scheduled` or `manual`.
    #[serde(default)]
    copy_mode: Option<String>,
    /// Which of several comes first; at least 1.
    #[schema(required = true, minimum = 1, maximum = 2147483647)]
    #[serde(default)]
    priority: i64,
    /// Whether it is in force; `false` when absent.
    #[serde(default)]
    enabled: bool,
    /// Whether the copy is to be read again; `false` when absent.
    #[serde(default)]
    verify_after_copy: bool,
}

impl PolicyInput {
    pub(crate) fn check(self) -> Result<NewPolicy, Failure> {
        if self.name.is_empty() {
            return Err(Failure::invalid("Policy name is required", ""));
        }
        if self.primary_repository_id.is_empty() {
            return Err(Failure::invalid("Primary repository ID is required", ""));
        }
        Ok(NewPolicy {
            primary_repository_id: RepositoryId::parse(&self.primary_repository_id)?,
            name: self.name,
            enabled: self.enabled,
            retention_days: self.retention_days,
            copy_rules: self
                .copy_rules
                .into_iter()
                .map(CopyRuleInput::check)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl CopyRuleInput {
    fn check(self) -> Result<NewCopyRule, Failure> {
        if self.destination_repository_id.is_empty() {
            return Err(Failure::invalid(
                "Destination repository ID is required",
                "",
            ));
        }
        let id = self.id.and_then(non_empty);
        Ok(NewCopyRule {
            id: id.map(|id| CopyRuleId::parse(&id)).transpose()?,
            destination_repository_id: RepositoryId::parse(&self.destination_repository_id)?,
            copy_mode: copy_mode(self.copy_mode.as_deref().unwrap_or_default())?,
            priority: self.priority,
            enabled: self.enabled,
            verify_after_copy: self.verify_after_copy,
        })
    }
}

fn copy_mode(text: &str) -> Result<CopyMode, Failure> {
    match text {
        "" => Ok(CopyMode::Immediate),
        named => named.parse().map_err(|error: engine::Error| {
            let error_text = "copy_mode must be 'immediate', 'scheduled' or 'manual'";
            Failure::invalid(error_text, error.details)
        }),
    }
}

/// Ask for a copy of a backup.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct CopyInput {
    /// Where the copy goes.
    #[schema(required = true)]
    #[serde(default)]
    repository_id: String,
}

impl CopyInput {
    pub(crate) fn check(self) -> Result<RepositoryId, Failure> {
        if self.repository_id.is_empty() {
            return Err(Failure::invalid("Repository ID is required", ""));
        }
        Ok(RepositoryId::parse(&self.repository_id)?)
    }
}

/// The policy that a path names; a text that can be no id names none.
pub(crate) fn policy_id(text: &str) -> Result<PolicyId, Failure> {
    PolicyId::parse(text).map_err(|error| Failure::not_found("Policy not found", error.details))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(body: Value) -> Result<NewPolicy, Failure> {
        let input: PolicyInput = serde_json::from_value(body).unwrap();
        input.check()
    }

    #[test]
    fn what_is_absent_is_off() {
        let made = policy(json!({
            "name": "daily", "primary_repository_id": "local",
            "copy_rules": [{"id": "", "destination_repository_id": "far", "priority": 1}]
        }));
        let made = made.unwrap();
        assert_eq!((made.enabled, made.retention_days), (false, 0));
        let rule = &made.copy_rules[0];
        assert_eq!((&rule.id, rule.copy_mode), (&None, CopyMode::Immediate));
        assert!(!rule.enabled && !rule.verify_after_copy);
    }

    #[test]
    fn a_policy_is_checked_in_the_order_of_the_contract() {
        let with_rule = |rule: Value| json!({"name": "n", "primary_repository_id": "local", "copy_rules": [rule]});
        let check = |body: Value, expected: &str| {
            let refusal = format!("{:?}", policy(body.clone()).unwrap_err());
            assert!(refusal.contains("400"), "{body}: {refusal}");
            assert!(refusal.contains(expected), "{body}: {refusal}");
        };
        check(json!({}), "Policy name is required");
        check(
            json!({"primary_repository_id": "local"}),
            "Policy name is required",
        );
        check(json!({"name": "n"}), "Primary repository ID is required");
        check(
            json!({"name": "n", "primary_repository_id": "../x"}),
            "malformed repository id",
        );
        check(
            with_rule(json!({})),
            "Destination repository ID is required",
        );
        for mode in ["Immediate", "later"] {
            let rule = json!({"destination_repository_id": "far", "copy_mode": mode});
            check(with_rule(rule), "copy_mode must be");
        }
        let long = "x".repeat(65);
        let rule = json!({"destination_repository_id": "far", "id": long});
        check(with_rule(rule), "malformed copy rule id");
    }
}
