//! What a client reports of its backup, and what that means. A report is a hint: what arrived the hub counts itself, and
//! only `/complete` completes a disk.

use super::JobStatus;
use crate::id::DiskIndex;
use crate::limits::{ERROR_TEXT_BYTES_MAX, PHASE_CHARS_MAX};

/// A report, as it came (legacy client, telemetry). Empty and zero mean: nothing is said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Telemetry {
    /// `running`, `completed`, `failed` or any other word.
    pub status: String,
    /// What the client is doing, in a word.
    pub current_phase: String,
    /// Bytes copied so far, out of `total_bytes`.
    pub bytes_transferred: i64,
    /// Bytes that `bytes_transferred` and `progress_percent` are a part of: of one disk, with legacy clients.
    pub total_bytes: i64,
    /// Bytes per second.
    pub transfer_speed_bps: i64,
    /// Seconds until the end; negative where a client has miscounted.
    pub eta_seconds: i64,
    /// May exceed 100 where a client has miscounted.
    pub progress_percent: f64,
    /// The same, disk by disk.
    pub disks: Vec<DiskTelemetry>,
    /// Something went wrong.
    pub error: Option<ClientError>,
}

/// A report of one disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiskTelemetry {
    /// Which disk.
    pub disk_index: DiskIndex,
    /// Bytes copied so far.
    pub bytes_transferred: i64,
    /// Bytes to copy.
    pub total_bytes: i64,
    /// `transferring`, `completed` or any other word.
    pub status: String,
    /// 0 to 100.
    pub progress_percent: f64,
}

/// What went wrong at the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientError {
    /// In its own words.
    pub message: String,
    /// A code of its own; may be empty.
    pub code: String,
}

/// What a report asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TelemetryMeaning {
    /// The client lives; its figures are hints.
    Progress,
    /// The client has given up: the backup fails with this reason.
    Failed(String),
}

impl Telemetry {
    /// What the report asks for. `completed` is sent after every disk and before it is declared complete, so it means no
    /// more than that this disk's transfer is over.
    #[must_use]
    pub fn meaning(&self) -> TelemetryMeaning {
        let given_up = self.status == JobStatus::Failed.as_str();
        match &self.error {
            Some(error) => TelemetryMeaning::Failed(error.sentence()),
            None if given_up => TelemetryMeaning::Failed("client reported a failure".to_owned()),
            None => TelemetryMeaning::Progress,
        }
    }

    /// The phase, if it is one that a running job can show: the words of a job's end are the hub's to say.
    #[must_use]
    pub fn phase(&self) -> Option<String> {
        let phase: String = self
            .current_phase
            .trim()
            .chars()
            .filter(|c| !c.is_control())
            .take(PHASE_CHARS_MAX)
            .collect();
        let is_state = JobStatus::ALL.iter().any(|state| state.as_str() == phase);
        (!phase.is_empty() && !is_state).then_some(phase)
    }

    /// Whether the transfer of the disk that is being sent is over.
    #[must_use]
    pub fn disk_is_over(&self) -> bool {
        self.status == JobStatus::Completed.as_str()
    }

    /// How much of `total_bytes` is done, between 0 and 1; 0 where nothing is said.
    #[must_use]
    pub fn share(&self) -> f64 {
        share(
            self.progress_percent,
            self.bytes_transferred,
            self.total_bytes,
        )
    }
}

impl DiskTelemetry {
    /// How much of the disk is done, between 0 and 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        if self.status == JobStatus::Completed.as_str() {
            return 1.0;
        }
        share(
            self.progress_percent,
            self.bytes_transferred,
            self.total_bytes,
        )
    }
}

impl ClientError {
    fn sentence(&self) -> String {
        let message: String = self.message.trim().chars().map(plain).collect();
        let message = &message[..message.floor_char_boundary(ERROR_TEXT_BYTES_MAX / 2)];
        let code: String = self.code.trim().chars().map(plain).take(80).collect();
        match (message.is_empty(), code.is_empty()) {
            (true, true) => "client reported an error".to_owned(),
            (true, false) => format!("client reported an error: code={code}"),
            (false, true) => format!("client reported an error: {message}"),
            (false, false) => format!("client reported an error: {message} code={code}"),
        }
    }
}

/// A text from outside stays on its line.
fn plain(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}

fn share(percent: f64, bytes: i64, of_bytes: i64) -> f64 {
    if percent.is_finite() && percent > 0.0 {
        return (percent / 100.0).min(1.0);
    }
    match (u64::try_from(bytes), u64::try_from(of_bytes)) {
        (Ok(bytes), Ok(of_bytes)) => super::fraction(bytes, of_bytes),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(status: &str, phase: &str) -> Telemetry {
        Telemetry {
            status: status.to_owned(),
            current_phase: phase.to_owned(),
            ..Telemetry::default()
        }
    }

    #[test]
    fn only_a_failure_ends_a_backup() {
        for status in [
            "",
            "running",
            "completed",
            "cancelled",
            "pending",
            "FAILED",
            "x",
        ] {
            assert_eq!(
                report(status, "").meaning(),
                TelemetryMeaning::Progress,
                "{status:?}"
            );
        }
        let reason = |report: &Telemetry| match report.meaning() {
            TelemetryMeaning::Failed(reason) => reason,
            TelemetryMeaning::Progress => panic!("{report:?}"),
        };
        assert_eq!(reason(&report("failed", "")), "client reported a failure");
        let with = |message: &str, code: &str| Telemetry {
            error: Some(ClientError {
                message: message.to_owned(),
                code: code.to_owned(),
            }),
            ..report("running", "")
        };
        assert_eq!(
            reason(&with("disk\ngone", "")),
            "client reported an error: disk gone"
        );
        assert_eq!(reason(&with("", "E1")), "client reported an error: code=E1");
        assert_eq!(
            reason(&with("a", "b")),
            "client reported an error: a code=b"
        );
        assert_eq!(reason(&with(" ", "")), "client reported an error");
        let long = reason(&with(&"ü".repeat(1 << 20), &"x".repeat(1 << 20)));
        assert!(long.len() <= ERROR_TEXT_BYTES_MAX, "{}", long.len());
    }

    #[test]
    fn a_phase_is_short_and_never_the_word_of_an_end() {
        let phase = |text: &str| report("", text).phase();
        assert_eq!(phase(" transferring "), Some("transferring".to_owned()));
        for word in [
            "",
            "  ",
            "completed",
            "failed",
            "cancelled",
            "running",
            "pending",
        ] {
            assert_eq!(phase(word), None, "{word:?}");
        }
        assert_eq!(phase("a\0b\n"), Some("ab".to_owned()));
        let long = phase(&"ö".repeat(80)).unwrap();
        assert_eq!(long.chars().count(), PHASE_CHARS_MAX);
    }

    #[test]
    fn a_share_is_between_nothing_and_all() {
        let check = |percent: f64, bytes: i64, of: i64, expected: f64| {
            let report = Telemetry {
                progress_percent: percent,
                bytes_transferred: bytes,
                total_bytes: of,
                ..Telemetry::default()
            };
            assert!(
                (report.share() - expected).abs() < 1e-9,
                "{report:?} {}",
                report.share()
            );
        };
        check(0.0, 0, 0, 0.0);
        check(40.0, 0, 0, 0.4);
        check(250.0, 0, 0, 1.0);
        check(-3.0, 0, 0, 0.0);
        check(f64::NAN, 0, 0, 0.0);
        check(f64::INFINITY, 0, 0, 0.0);
        check(0.0, 1, 4, 0.25);
        check(0.0, 5, 4, 1.0);
        check(0.0, -5, 4, 0.0);
        check(0.0, 5, i64::MIN, 0.0);
        check(0.0, i64::MAX, i64::MAX, 1.0);
    }
}
