//! The audit log: added to, read, never changed.

use sqlx::FromRow;

use super::Catalog;
use super::rows::{stored, word};
use super::timestamp::{from_text, to_text};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::limits::{AUDIT_ROWS_MAX, PAGE_ROWS_MAX};
use crate::model::{AuditEntry, AuditFilter, Deed, Outcome, Role};

#[derive(FromRow)]
struct AuditRow {
    id: i64,
    at: String,
    actor: String,
    role: Option<String>,
    peer: Option<String>,
    verb: String,
    object: String,
    outcome: String,
    status: i64,
    request_id: String,
}

impl Catalog {
    /// Records what somebody did. The oldest entries go when there are too many.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn record_deed(&self, deed: &Deed, now: Timestamp) -> Result<(), Error> {
        let mut tx = self.write().await?;
        let inserted = sqlx::query(
            "INSERT INTO audit_log (at, actor, role, peer, verb, object, outcome, status, request_id) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(to_text(now))
        .bind(&deed.actor)
        .bind(deed.role.map(Role::as_str))
        .bind(&deed.peer)
        .bind(deed.verb.as_str())
        .bind(deed.plain_object())
        .bind(Outcome::of_status(deed.status).as_str())
        .bind(deed.status)
        .bind(&deed.request_id)
        .execute(&mut *tx)
        .await?;
        let oldest_kept = inserted.last_insert_rowid() - AUDIT_ROWS_MAX;
        sqlx::query("DELETE FROM audit_log WHERE id <= ?")
            .bind(oldest_kept)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Entries, newest first.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditEntry>, Error> {
        let rows: Vec<AuditRow> = sqlx::query_as(
            "SELECT id, at, actor, role, peer, verb, object, outcome, status, request_id FROM audit_log \
             WHERE (? IS NULL OR id < ?) AND (? IS NULL OR actor = ?) AND (? IS NULL OR verb = ?) \
               AND (? IS NULL OR outcome = ?) \
             ORDER BY id DESC LIMIT ?",
        )
        .bind(filter.before)
        .bind(filter.before)
        .bind(&filter.actor)
        .bind(&filter.actor)
        .bind(&filter.verb)
        .bind(&filter.verb)
        .bind(&filter.outcome)
        .bind(&filter.outcome)
        .bind(filter.limit.unwrap_or(PAGE_ROWS_MAX).min(PAGE_ROWS_MAX))
        .fetch_all(self.reader())
        .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }
}

impl TryFrom<AuditRow> for AuditEntry {
    type Error = Error;

    fn try_from(row: AuditRow) -> Result<Self, Error> {
        let status = u16::try_from(row.status)
            .map_err(|_| Error::invalid("malformed status", format!("status={}", row.status)));
        Ok(Self {
            id: row.id,
            at: from_text("at", &row.at)?,
            deed: Deed {
                actor: row.actor,
                role: row.role.map(|text| word("role", &text)).transpose()?,
                peer: row.peer,
                verb: word("verb", &row.verb)?,
                object: row.object,
                status: stored("status", status)?,
                request_id: row.request_id,
            },
            outcome: word("outcome", &row.outcome)?,
        })
    }
}
