//! Who did what.

use engine::AuditEntry;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::utc;

/// A page of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditListView {
    /// Newest first; never null.
    pub entries: Vec<AuditEntryView>,
    /// What to give as `before` for the next page; null when this one is empty.
    pub next_before: Option<i64>,
}

impl AuditListView {
    pub(crate) fn new(entries: Vec<AuditEntry>) -> Self {
        Self {
            next_before: entries.last().map(|entry| entry.id),
            entries: entries.into_iter().map(AuditEntryView::from).collect(),
        }
    }
}

/// One call that changed something, or was refused.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditEntryView {
    /// Grows with every entry.
    pub id: i64,
    /// When the call ended; UTC.
    pub time: String,
    /// A token's name; `loopback` or `anonymous` for trusted callers without one, `unknown` for
    /// callers who were not let in, `command line` for changes in the data folder.
    pub actor: String,
    /// What the actor is; null when it is not known.
    pub role: Option<String>,
    /// Address of the caller.
    pub peer: Option<String>,
    /// What was asked for.
    pub verb: String,
    /// To what.
    pub object: String,
    /// `done`, `refused` or `failed`.
    pub outcome: String,
    /// HTTP status of the answer; 0 for the command line.
    pub status: u16,
    /// Found in the answer and in the log.
    pub request_id: String,
}

impl From<AuditEntry> for AuditEntryView {
    fn from(entry: AuditEntry) -> Self {
        let deed = entry.deed;
        Self {
            id: entry.id,
            time: utc(entry.at),
            actor: deed.actor,
            role: deed.role.map(|role| role.to_string()),
            peer: deed.peer,
            verb: deed.verb.to_string(),
            object: deed.object,
            outcome: entry.outcome.to_string(),
            status: deed.status,
            request_id: deed.request_id,
        }
    }
}
