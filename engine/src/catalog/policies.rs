//! Policies with their rules.

use sqlx::{FromRow, SqliteConnection};

use super::Catalog;
use super::rows::{small, stored, word};
use super::timestamp::{from_text, to_text};
use crate::error::Error;
use crate::id::{CopyRuleId, PolicyId, RepositoryId};
use crate::limits::{PAGE_ROWS_MAX, POLICIES_MAX};
use crate::model::{CopyRule, Policy};

#[derive(FromRow)]
struct PolicyRow {
    id: String,
    name: String,
    enabled: bool,
    primary_repository_id: String,
    retention_days: i64,
    created_at: String,
    updated_at: String,
}

#[derive(FromRow)]
struct RuleRow {
    id: String,
    destination_repository_id: String,
    copy_mode: String,
    priority: i64,
    enabled: bool,
    verify_after_copy: bool,
    created_at: String,
}

impl Catalog {
    /// Stores a policy with all its rules, or nothing of it.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) for a repository that does not exist, [`Conflict`](crate::ErrorKind::Conflict) if the name or an id is
    /// taken, or there are too many policies.
    pub async fn add_policy(&self, policy: &Policy) -> Result<(), Error> {
        let mut tx = self.write().await?;
        check_free(&mut tx, policy).await?;
        check_known(&mut tx, &policy.primary_repository_id).await?;
        sqlx::query(
            "INSERT INTO backup_policies (id, name, enabled, primary_repository_id, retention_days, created_at, updated_at) \
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(policy.id.as_str())
        .bind(&policy.name)
        .bind(policy.enabled)
        .bind(policy.primary_repository_id.as_str())
        .bind(policy.retention_days)
        .bind(to_text(policy.created_at))
        .bind(to_text(policy.updated_at))
        .execute(&mut *tx)
        .await?;
        for rule in &policy.copy_rules {
            insert_rule(&mut tx, &policy.id, rule).await?;
        }
        tx.commit().await.map_err(Error::from)
    }

    /// Every policy, by name.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn policies(&self) -> Result<Vec<Policy>, Error> {
        // One transaction, so that a policy that is made meanwhile is not seen without its rules.
        let mut tx = self.reader().begin().await?;
        let rows: Vec<PolicyRow> = sqlx::query_as(
            "SELECT id, name, enabled, primary_repository_id, retention_days, created_at, updated_at \
             FROM backup_policies ORDER BY name LIMIT ?",
        )
        .bind(POLICIES_MAX)
        .fetch_all(&mut *tx)
        .await?;
        let mut policies = Vec::with_capacity(rows.len());
        for row in rows {
            policies.push(with_rules(&mut tx, row).await?);
        }
        Ok(policies)
    }

    /// One policy.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is none with this id.
    pub async fn policy(&self, id: &PolicyId) -> Result<Policy, Error> {
        let mut tx = self.reader().begin().await?;
        let row: Option<PolicyRow> = sqlx::query_as(
            "SELECT id, name, enabled, primary_repository_id, retention_days, created_at, updated_at \
             FROM backup_policies WHERE id = ?",
        )
        .bind(id.as_str())
        .fetch_optional(&mut *tx)
        .await?;
        with_rules(&mut tx, row.ok_or_else(|| unknown(id))?).await
    }

    /// Removes a policy with its rules. Backups and copies that came of it stay, and name it no longer.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is none with this id.
    pub async fn delete_policy(&self, id: &PolicyId) -> Result<(), Error> {
        let mut tx = self.write().await?;
        check_policy(&mut tx, id).await?;
        sqlx::query("DELETE FROM backup_policies WHERE id = ?")
            .bind(id.as_str())
            .execute(&mut *tx)
            .await?;
        tx.commit().await.map_err(Error::from)
    }
}

/// Refuses a policy that does not exist.
pub(super) async fn check_policy(
    connection: &mut SqliteConnection,
    id: &PolicyId,
) -> Result<(), Error> {
    let known: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM backup_policies WHERE id = ?)")
            .bind(id.as_str())
            .fetch_one(connection)
            .await?;
    match known {
        true => Ok(()),
        false => Err(unknown(id)),
    }
}

fn unknown(id: &PolicyId) -> Error {
    Error::not_found("Policy not found", format!("policy_id={id}"))
}

async fn check_free(tx: &mut SqliteConnection, policy: &Policy) -> Result<(), Error> {
    let name_taken: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM backup_policies WHERE name = ?)")
            .bind(&policy.name)
            .fetch_one(&mut *tx)
            .await?;
    if name_taken {
        let details = format!("name={:?}", policy.name);
        return Err(Error::conflict("policy name is taken", details));
    }
    let count: u32 = sqlx::query_scalar("SELECT COUNT(*) FROM backup_policies")
        .fetch_one(&mut *tx)
        .await?;
    if count >= POLICIES_MAX {
        return Err(Error::conflict(
            "too many policies",
            format!("max={POLICIES_MAX}"),
        ));
    }
    for rule in &policy.copy_rules {
        let taken: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM backup_copy_rules WHERE id = ?)")
                .bind(rule.id.as_str())
                .fetch_one(&mut *tx)
                .await?;
        if taken {
            let details = format!("copy_rule_id={}", rule.id);
            return Err(Error::conflict("copy rule id is taken", details));
        }
    }
    Ok(())
}

async fn check_known(tx: &mut SqliteConnection, id: &RepositoryId) -> Result<(), Error> {
    let known: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM backup_repositories WHERE id = ?)")
            .bind(id.as_str())
            .fetch_one(tx)
            .await?;
    match known {
        true => Ok(()),
        false => Err(Error::not_found(
            "repository not found",
            format!("repository_id={id}"),
        )),
    }
}

async fn insert_rule(
    tx: &mut SqliteConnection,
    policy: &PolicyId,
    rule: &CopyRule,
) -> Result<(), Error> {
    check_known(tx, &rule.destination_repository_id).await?;
    sqlx::query(
        "INSERT INTO backup_copy_rules (id, policy_id, destination_repository_id, copy_mode, priority, enabled, \
         verify_after_copy, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(rule.id.as_str())
    .bind(policy.as_str())
    .bind(rule.destination_repository_id.as_str())
    .bind(rule.copy_mode.as_str())
    .bind(rule.priority)
    .bind(rule.enabled)
    .bind(rule.verify_after_copy)
    .bind(to_text(rule.created_at))
    .execute(tx)
    .await?;
    Ok(())
}

async fn with_rules(tx: &mut SqliteConnection, row: PolicyRow) -> Result<Policy, Error> {
    let rules: Vec<RuleRow> = sqlx::query_as(
        "SELECT id, destination_repository_id, copy_mode, priority, enabled, verify_after_copy, created_at \
         FROM backup_copy_rules WHERE policy_id = ? ORDER BY priority, id LIMIT ?",
    )
    .bind(&row.id)
    .bind(PAGE_ROWS_MAX)
    .fetch_all(tx)
    .await?;
    Ok(Policy {
        id: stored("id", PolicyId::parse(&row.id))?,
        name: row.name,
        enabled: row.enabled,
        primary_repository_id: repository("primary_repository_id", &row.primary_repository_id)?,
        // A legacy hub took negative days, and never used them.
        retention_days: small("retention_days", row.retention_days.max(0))?,
        copy_rules: rules
            .into_iter()
            .map(CopyRule::try_from)
            .collect::<Result<_, _>>()?,
        created_at: from_text("created_at", &row.created_at)?,
        updated_at: from_text("updated_at", &row.updated_at)?,
    })
}

fn repository(column: &'static str, text: &str) -> Result<RepositoryId, Error> {
    stored(column, RepositoryId::parse(text))
}

impl TryFrom<RuleRow> for CopyRule {
    type Error = Error;

    fn try_from(row: RuleRow) -> Result<Self, Error> {
        Ok(Self {
            id: stored("id", CopyRuleId::parse(&row.id))?,
            destination_repository_id: repository(
                "destination_repository_id",
                &row.destination_repository_id,
            )?,
            copy_mode: word("copy_mode", &row.copy_mode)?,
            priority: small("priority", row.priority)?,
            enabled: row.enabled,
            verify_after_copy: row.verify_after_copy,
            created_at: from_text("created_at", &row.created_at)?,
        })
    }
}
