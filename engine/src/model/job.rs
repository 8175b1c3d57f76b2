//! The life of a backup job.

use super::words;
use crate::clock::Timestamp;
use crate::error::Error;

/// The name of a job's state, as the database and the API show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobStatus {
    /// Accepted, nothing done yet.
    Pending,
    /// Data is expected or arriving.
    Running,
    /// Every disk is published.
    Completed,
    /// Ended by an error.
    Failed,
    /// Ended by a request.
    Cancelled,
}
words!(
    JobStatus, "job status",
    Pending => "pending", Running => "running", Completed => "completed", Failed => "failed", Cancelled => "cancelled",
);

impl JobStatus {
    /// Whether nothing will change any more.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// A job's state with its data.
///
/// ```text
/// pending ─▶ running ─▶ completed
///    │          ├─▶ failed
///    │          └─▶ cancelled
///    └─▶ failed / cancelled
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// Accepted, nothing done yet.
    Pending,
    /// Data is expected or arriving.
    Running {
        /// When it started to run.
        started_at: Timestamp,
    },
    /// Every disk is published.
    Completed {
        /// When it started to run.
        started_at: Timestamp,
        /// When the last disk was published.
        at: Timestamp,
    },
    /// Ended by an error.
    Failed {
        /// When it failed.
        at: Timestamp,
        /// Why.
        reason: String,
    },
    /// Ended by a request.
    Cancelled {
        /// When it was cancelled.
        at: Timestamp,
        /// By whom or why.
        reason: String,
    },
}

/// What can happen to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// It starts to run.
    Start {
        /// When.
        at: Timestamp,
    },
    /// Its last disk is published.
    Complete {
        /// When.
        at: Timestamp,
    },
    /// Something went wrong.
    Fail {
        /// When.
        at: Timestamp,
        /// What.
        reason: String,
    },
    /// Somebody asked for its end.
    Cancel {
        /// When.
        at: Timestamp,
        /// Who or why.
        reason: String,
    },
}

/// An event that has no meaning in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidTransition {
    /// Name of the state.
    pub state: &'static str,
    /// Name of the event.
    pub event: &'static str,
}

impl From<InvalidTransition> for Error {
    fn from(refused: InvalidTransition) -> Self {
        Self::conflict(
            "operation does not fit the current state",
            format!("state={} event={}", refused.state, refused.event),
        )
    }
}

impl JobState {
    /// The state after `event`.
    ///
    /// # Errors
    /// [`InvalidTransition`] if the event has no meaning in this state.
    pub fn apply(self, event: JobEvent) -> Result<Self, InvalidTransition> {
        use {JobEvent as E, JobState as S};
        Ok(match (self, event) {
            (S::Pending, E::Start { at }) => S::Running { started_at: at },
            (S::Running { started_at }, E::Complete { at }) => S::Completed { started_at, at },
            (S::Pending | S::Running { .. }, E::Fail { at, reason }) => S::Failed { at, reason },
            (S::Pending | S::Running { .. }, E::Cancel { at, reason }) => {
                S::Cancelled { at, reason }
            }
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
    pub const fn status(&self) -> JobStatus {
        match self {
            Self::Pending => JobStatus::Pending,
            Self::Running { .. } => JobStatus::Running,
            Self::Completed { .. } => JobStatus::Completed,
            Self::Failed { .. } => JobStatus::Failed,
            Self::Cancelled { .. } => JobStatus::Cancelled,
        }
    }
}

impl JobEvent {
    /// The event's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Complete { .. } => "complete",
            Self::Fail { .. } => "fail",
            Self::Cancel { .. } => "cancel",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_and_event() {
        let at = Timestamp::UNIX_EPOCH;
        let reason = || "why".to_owned();
        let states = [
            JobState::Pending,
            JobState::Running { started_at: at },
            JobState::Completed { started_at: at, at },
            JobState::Failed {
                at,
                reason: reason(),
            },
            JobState::Cancelled {
                at,
                reason: reason(),
            },
        ];
        let events = [
            JobEvent::Start { at },
            JobEvent::Complete { at },
            JobEvent::Fail {
                at,
                reason: reason(),
            },
            JobEvent::Cancel {
                at,
                reason: reason(),
            },
        ];
        let allowed = [
            ("pending", "start", "running"),
            ("pending", "fail", "failed"),
            ("pending", "cancel", "cancelled"),
            ("running", "complete", "completed"),
            ("running", "fail", "failed"),
            ("running", "cancel", "cancelled"),
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
        assert_eq!(states.len(), JobStatus::ALL.len());
    }

    #[test]
    fn words_are_read_back() {
        for status in JobStatus::ALL {
            assert_eq!(status.as_str().parse::<JobStatus>().ok(), Some(*status));
        }
        assert!("done".parse::<JobStatus>().is_err());
    }
}
