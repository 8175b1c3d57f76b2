//! How many callers who are not known get an entry in the audit log.

use std::sync::{Mutex, PoisonError};

use engine::Timestamp;
use time::Duration;

use crate::limits::AUDITED_STRANGERS_PER_MINUTE;

/// What is left of this minute's entries. Without it anybody who reaches the port could push
/// everything else out of the log, and keep the database busy.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    minute: Mutex<Option<Minute>>,
}

#[derive(Debug, Clone, Copy)]
struct Minute {
    since: Timestamp,
    entries: u32,
}

impl Strangers {
    /// Takes one of this minute's entries, if there is one.
    pub(crate) fn may_be_recorded(&self, now: Timestamp) -> bool {
        let mut held = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back begins a new minute, too.
        let current = held.filter(|minute| {
            minute.since <= now && now < minute.since.saturating_add(Duration::MINUTE)
        });
        let minute = current.unwrap_or(Minute {
            since: now,
            entries: 0,
        });
        let is_left = minute.entries < AUDITED_STRANGERS_PER_MINUTE;
        *held = Some(Minute {
            entries: minute.entries + u32::from(is_left),
            ..minute
        });
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_so_many_entries_and_the_next_as_many_again() {
        let strangers = Strangers::default();
        let start = Timestamp::UNIX_EPOCH;
        let recorded = |now| (0..1000).filter(|_| strangers.may_be_recorded(now)).count();
        let all = AUDITED_STRANGERS_PER_MINUTE as usize;
        assert_eq!(recorded(start), all);
        assert_eq!(recorded(start + Duration::seconds(59)), 0);
        assert_eq!(recorded(start + Duration::seconds(60)), all);
        assert_eq!(recorded(start), all, "the clock was set back");
    }
}
