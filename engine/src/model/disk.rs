//! The life of one disk of a backup.

use super::{InvalidTransition, words};
use crate::clock::Timestamp;
use crate::id::ChangeId;

/// The name of a disk's state, as the database and the API show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskStatus {
    /// Its image and export are not ready yet.
    Pending,
    /// Its export accepts data.
    Running,
    /// Its data is complete and durable.
    Completed,
    /// Ended by an error or a cancellation.
    Failed,
}
words!(
    DiskStatus, "disk status",
    Pending => "pending", Running => "running", Completed => "completed", Failed => "failed",
);

/// A disk's state with its data.
///
/// ```text
/// pending ─▶ running ─▶ completed
///    │          └─▶ failed
///    └─▶ failed
/// ```
/// A completed disk of a job that fails stays completed: it says what arrived, and the job says that it does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskState {
    /// Its image and export are not ready yet.
    Pending,
    /// Its export accepts data.
    Running,
    /// Its data is complete and durable.
    Completed {
        /// When.
        at: Timestamp,
        /// The change-tracking position it stands for.
        change_id: ChangeId,
    },
    /// Ended by an error or a cancellation.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What can happen to a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskEvent {
    /// Its export accepts data.
    Start,
    /// Its data is complete and durable.
    Complete {
        /// When.
        at: Timestamp,
        /// The change-tracking position it stands for.
        change_id: ChangeId,
    },
    /// Its job ends without it.
    Fail {
        /// Why.
        reason: String,
    },
}

impl DiskState {
    /// The state after `event`. Completing a completed disk again with the same change id changes nothing: clients repeat
    /// the call when they did not hear the answer.
    ///
    /// # Errors
    /// [`InvalidTransition`] if the event has no meaning in this state.
    pub fn apply(self, event: DiskEvent) -> Result<Self, InvalidTransition> {
        use {DiskEvent as E, DiskState as S};
        Ok(match (self, event) {
            (S::Pending, E::Start) => S::Running,
            (S::Running, E::Complete { at, change_id }) => S::Completed { at, change_id },
            (
                S::Completed { at, change_id },
                E::Complete {
                    change_id: repeated,
                    ..
                },
            ) if change_id == repeated => S::Completed { at, change_id },
            (S::Pending | S::Running, E::Fail { reason }) => S::Failed { reason },
            (state, event) => {
                return Err(InvalidTransition {
                    state: state.status().as_str(),
                    event: event.name(),
                });
            }
        })
    }

    /// The state's name.
    #[must_use]
    pub const fn status(&self) -> DiskStatus {
        match self {
            Self::Pending => DiskStatus::Pending,
            Self::Running => DiskStatus::Running,
            Self::Completed { .. } => DiskStatus::Completed,
            Self::Failed { .. } => DiskStatus::Failed,
        }
    }
}

impl DiskEvent {
    /// The event's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Complete { .. } => "complete",
            Self::Fail { .. } => "fail",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ChangeId {
        ChangeId::parse(text).expect("a change id")
    }

    #[test]
    fn every_state_and_event() {
        let at = Timestamp::UNIX_EPOCH;
        let states = [
            DiskState::Pending,
            DiskState::Running,
            DiskState::Completed {
                at,
                change_id: id("a/1"),
            },
            DiskState::Failed {
                reason: "why".to_owned(),
            },
        ];
        let events = [
            DiskEvent::Start,
            DiskEvent::Complete {
                at,
                change_id: id("a/1"),
            },
            DiskEvent::Fail {
                reason: "why".to_owned(),
            },
        ];
        let allowed = [
            ("pending", "start", "running"),
            ("pending", "fail", "failed"),
            ("running", "complete", "completed"),
            ("running", "fail", "failed"),
            ("completed", "complete", "completed"),
        ];
        let mut taken = Vec::new();
        for state in &states {
            for event in &events {
                let (from, by) = (state.status().as_str(), event.name());
                match state.clone().apply(event.clone()) {
                    Ok(next) => taken.push((from, by, next.status().as_str())),
                    Err(refused) => assert_eq!(
                        refused,
                        InvalidTransition {
                            state: from,
                            event: by
                        }
                    ),
                }
            }
        }
        assert_eq!(taken, allowed);
        assert_eq!(states.len(), DiskStatus::ALL.len());
    }

    #[test]
    fn a_repeated_completion_must_say_the_same() {
        let first = Timestamp::UNIX_EPOCH;
        let later = first + time::Duration::HOUR;
        let done = DiskState::Completed {
            at: first,
            change_id: id("a/1"),
        };
        let same = DiskEvent::Complete {
            at: later,
            change_id: id("a/1"),
        };
        assert_eq!(done.clone().apply(same), Ok(done.clone()));
        let other = DiskEvent::Complete {
            at: later,
            change_id: id("a/2"),
        };
        assert!(done.apply(other).is_err());
    }
}
