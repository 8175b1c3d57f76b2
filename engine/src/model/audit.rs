//! Who did what: one entry for each call that changes something, also where it was refused.

use super::{Role, Verb, words};
use crate::clock::Timestamp;
use crate::limits::AUDIT_OBJECT_CHARS_MAX;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It did what was asked.
    Done,
    /// The caller may not, or what was asked cannot be.
    Refused,
    /// The hub could not.
    Failed,
}
words!(
    Outcome, "outcome",
    Done => "done", Refused => "refused", Failed => "failed",
);

impl Outcome {
    /// How a call with this HTTP status ended.
    #[must_use]
    pub const fn of_status(status: u16) -> Self {
        match status {
            0..400 => Self::Done,
            400..500 => Self::Refused,
            _ => Self::Failed,
        }
    }
}

/// A call to record. No field holds what a caller sent in a body, so no secret gets here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// Who: a token's name, or what a caller without one is called.
    pub actor: String,
    /// What it is; nothing for a caller who is not known.
    pub role: Option<Role>,
    /// Where it called from.
    pub peer: Option<String>,
    /// What it asked for.
    pub verb: Verb,
    /// To what: `name=value`, as the path or the answer names it.
    pub object: String,
    /// The HTTP status of the answer; 0 for a command line.
    pub status: u16,
    /// The id of the request; empty for a command line.
    pub request_id: String,
}

impl Deed {
    /// The object as it is recorded: of bounded length, without what would break a line.
    #[must_use]
    pub fn plain_object(&self) -> String {
        let plain = |c: char| if c.is_control() { '?' } else { c };
        let object = self.object.chars().map(plain);
        object.take(AUDIT_OBJECT_CHARS_MAX).collect()
    }
}

/// A recorded call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// Grows with every entry.
    pub id: i64,
    /// When the call ended.
    pub at: Timestamp,
    /// What was done.
    pub deed: Deed,
    /// How it ended.
    pub outcome: Outcome,
}

/// Which entries; all that are given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Of this actor.
    pub actor: Option<String>,
    /// Of this verb.
    pub verb: Option<String>,
    /// With this outcome.
    pub outcome: Option<String>,
    /// Older than this entry.
    pub before: Option<i64>,
    /// At most so many; [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX) if not given.
    pub limit: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_how_a_call_ended() {
        let check = |status, outcome| assert_eq!(Outcome::of_status(status), outcome, "{status}");
        for status in [0, 200, 201, 302] {
            check(status, Outcome::Done);
        }
        for status in [400, 401, 403, 409, 499] {
            check(status, Outcome::Refused);
        }
        for status in [500, 503, 507] {
            check(status, Outcome::Failed);
        }
    }

    #[test]
    fn an_object_fits_a_line() {
        let deed = Deed {
            actor: "a".to_owned(),
            role: None,
            peer: None,
            verb: Verb::DeleteBackup,
            object: format!("backup_id=a\nb\u{1b}{}", "x".repeat(1000)),
            status: 200,
            request_id: String::new(),
        };
        let plain = deed.plain_object();
        assert!(plain.starts_with("backup_id=a?b?x"), "{plain}");
        assert_eq!(plain.chars().count(), AUDIT_OBJECT_CHARS_MAX);
    }
}
