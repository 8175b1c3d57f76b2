//! How far a running backup is: counted by the hub, with the client's reports as hints where the hub cannot know.

use std::collections::BTreeMap;

use super::{BackupType, Telemetry};
use crate::clock::Timestamp;
use crate::id::DiskIndex;

/// How far one disk is, as the hub counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskShare {
    /// Which disk.
    pub disk_index: DiskIndex,
    /// Its size in bytes.
    pub capacity_bytes: u64,
    /// Bytes that came in for it; more than its size where a client repeats itself.
    pub received_bytes: u64,
    /// Nothing more will come.
    pub is_complete: bool,
}

/// What a running backup shows of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What the job is doing, in a word.
    pub phase: String,
    /// Bytes received so far.
    pub bytes_transferred: u64,
    /// Bytes per second over the last interval.
    pub transfer_speed_bps: u64,
    /// Seconds until the end, as far as anybody can tell; 0 is unknown.
    pub eta_seconds: u64,
    /// 0 to 100; never goes back.
    pub percent: f64,
    /// When the client last reported.
    pub last_telemetry_at: Option<Timestamp>,
}

/// Measures one running backup. Time and counts are given to it.
///
/// The share of a disk is what came in for it, or what its client says, whichever is more: of an increment only the client
/// knows how much will come. Nothing a client says makes a figure go back, and silence changes nothing.
#[derive(Debug, Clone)]
pub struct Meter {
    backup_type: BackupType,
    /// What the client said of each disk, between 0 and 1.
    disk_hints: BTreeMap<DiskIndex, f64>,
    /// What the client said of the whole backup, between 0 and 1.
    hint: f64,
    hinted_speed_bps: u64,
    hinted_eta_seconds: u64,
    sampled_at: Timestamp,
    sampled_bytes: u64,
    shown: Progress,
}

impl Meter {
    /// The meter of a backup that starts now.
    #[must_use]
    pub fn new(backup_type: BackupType, now: Timestamp) -> Self {
        Self {
            backup_type,
            disk_hints: BTreeMap::new(),
            hint: 0.0,
            hinted_speed_bps: 0,
            hinted_eta_seconds: 0,
            sampled_at: now,
            sampled_bytes: 0,
            shown: Progress {
                phase: READY.to_owned(),
                bytes_transferred: 0,
                transfer_speed_bps: 0,
                eta_seconds: 0,
                percent: 0.0,
                last_telemetry_at: None,
            },
        }
    }

    /// Takes in a report of the client.
    pub fn hear(&mut self, report: &Telemetry, disks: &[DiskShare], now: Timestamp) {
        self.shown.last_telemetry_at = Some(now);
        if let Some(phase) = report.phase() {
            self.shown.phase = phase;
        }
        if let Ok(speed @ 1..) = u64::try_from(report.transfer_speed_bps) {
            self.hinted_speed_bps = speed;
        }
        if let Ok(eta @ 1..) = u64::try_from(report.eta_seconds) {
            self.hinted_eta_seconds = eta;
        }
        for disk in &report.disks {
            self.hint_disk(disk.disk_index, disk.share());
        }
        // A client sends its disks one after the other. What it says is of the disk that it is at, unless it counts out of
        // as many bytes as all disks have, or does not say out of how many.
        let total: u64 = sum(disks.iter().map(|disk| disk.capacity_bytes));
        let of_one_disk = u64::try_from(report.total_bytes).is_ok_and(|of| of > 0 && of < total);
        let current = disks.iter().find(|disk| !disk.is_complete);
        match current {
            Some(disk) if report.disk_is_over() => self.hint_disk(disk.disk_index, 1.0),
            Some(disk) if of_one_disk => self.hint_disk(disk.disk_index, report.share()),
            Some(_) => self.hint = self.hint.max(report.share()),
            None => {}
        }
        self.update(disks);
    }

    /// Takes in the counts of now.
    pub fn sample(&mut self, disks: &[DiskShare], now: Timestamp) {
        let received = sum(disks.iter().map(|disk| disk.received_bytes));
        if received > 0 && self.shown.phase == READY {
            self.shown.phase = TRANSFERRING.to_owned();
        }
        let elapsed_ms = (now - self.sampled_at).whole_milliseconds();
        if elapsed_ms < 0 {
            // The clock was set back: measure from here.
            (self.sampled_at, self.sampled_bytes) = (now, received);
        } else if let Some(elapsed_ms) = u128::try_from(elapsed_ms)
            .ok()
            .filter(|ms| *ms >= SAMPLE_MS)
        {
            let came = u128::from(received.saturating_sub(self.sampled_bytes));
            let speed = u64::try_from(came * 1000 / elapsed_ms).unwrap_or(u64::MAX);
            self.shown.transfer_speed_bps = speed;
            (self.sampled_at, self.sampled_bytes) = (now, received);
        }
        self.update(disks);
    }

    /// How much of a disk is done, in percent.
    #[must_use]
    pub fn disk_percent(&self, disk: &DiskShare) -> f64 {
        self.share(disk).clamp(0.0, 1.0) * 100.0
    }

    /// What the backup shows now.
    #[must_use]
    pub fn shown(&self) -> &Progress {
        &self.shown
    }

    fn hint_disk(&mut self, disk: DiskIndex, share: f64) {
        let hint = self.disk_hints.entry(disk).or_default();
        *hint = hint.max(share);
    }

    fn update(&mut self, disks: &[DiskShare]) {
        let total = sum(disks.iter().map(|disk| disk.capacity_bytes));
        let received = sum(disks.iter().map(|disk| disk.received_bytes));
        let by_disks: f64 = disks
            .iter()
            .map(|disk| self.share(disk) * fraction(disk.capacity_bytes, total))
            .sum();
        // Sums of rounded shares stay a little below all.
        let all = disks.iter().all(|disk| disk.is_complete);
        let share = if all {
            1.0
        } else {
            by_disks.max(self.hint).clamp(0.0, 1.0)
        };
        let shown = &mut self.shown;
        shown.bytes_transferred = shown.bytes_transferred.max(received);
        shown.percent = shown.percent.max(share * 100.0).min(100.0);
        if received == 0 {
            shown.transfer_speed_bps = self.hinted_speed_bps;
        }
        shown.eta_seconds = match (self.backup_type, shown.transfer_speed_bps) {
            (BackupType::Full, speed @ 1..) if received > 0 => {
                total.saturating_sub(received) / speed
            }
            // How much of an increment is still to come only its client knows.
            _ => self.hinted_eta_seconds,
        };
    }

    fn share(&self, disk: &DiskShare) -> f64 {
        if disk.is_complete {
            return 1.0;
        }
        let hint = self.disk_hints.get(&disk.disk_index).copied();
        fraction(disk.received_bytes, disk.capacity_bytes).max(hint.unwrap_or_default())
    }
}

/// `part` of `whole`, between 0 and 1; 0 of nothing.
#[must_use]
pub fn fraction(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    let millionths = u128::from(part.min(whole)) * 1_000_000 / u128::from(whole);
    f64::from(u32::try_from(millionths).unwrap_or(1_000_000)) / 1e6
}

fn sum(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

/// The exports accept, nothing has come.
const READY: &str = "ready";
/// Data has come.
const TRANSFERRING: &str = "transferring";
/// A speed over less time than this says nothing.
const SAMPLE_MS: u128 = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use time::Duration;

    const MIB: u64 = 1 << 20;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + Duration::seconds(seconds)
    }

    fn disk(n: u32, capacity: u64, received: u64, is_complete: bool) -> DiskShare {
        DiskShare {
            disk_index: DiskIndex::new(n),
            capacity_bytes: capacity,
            received_bytes: received,
            is_complete,
        }
    }

    fn says(percent: f64, of_bytes: u64) -> Telemetry {
        Telemetry {
            progress_percent: percent,
            total_bytes: i64::try_from(of_bytes).unwrap(),
            ..Telemetry::default()
        }
    }

    fn near(meter: &Meter, percent: f64) {
        let shown = meter.shown().percent;
        assert!(
            (shown - percent).abs() < 0.01,
            "{shown} instead of {percent}"
        );
    }

    #[test]
    fn the_hub_counts_by_itself() {
        let mut meter = Meter::new(BackupType::Full, at(0));
        assert_eq!(meter.shown().phase, "ready");
        meter.sample(&[disk(0, 100 * MIB, 0, false)], at(2));
        assert_eq!(meter.shown().phase, "ready");
        meter.sample(&[disk(0, 100 * MIB, 20 * MIB, false)], at(4));
        let shown = meter.shown();
        assert_eq!(
            (
                shown.phase.as_str(),
                shown.bytes_transferred,
                shown.transfer_speed_bps,
                shown.eta_seconds
            ),
            ("transferring", 20 * MIB, 10 * MIB, 8)
        );
        near(&meter, 20.0);
        // Too early to measure: the speed stays, the bytes do not.
        meter.sample(&[disk(0, 100 * MIB, 30 * MIB, false)], at(4));
        assert_eq!(meter.shown().transfer_speed_bps, 10 * MIB);
        near(&meter, 30.0);
        // Nothing came: that is the speed.
        meter.sample(&[disk(0, 100 * MIB, 30 * MIB, false)], at(8));
        meter.sample(&[disk(0, 100 * MIB, 30 * MIB, false)], at(12));
        assert_eq!(
            (meter.shown().transfer_speed_bps, meter.shown().eta_seconds),
            (0, 0)
        );
        assert_eq!(meter.shown().last_telemetry_at, None);
    }

    #[test]
    fn a_clock_that_is_set_back_does_no_harm() {
        let mut meter = Meter::new(BackupType::Full, at(1000));
        meter.sample(&[disk(0, 100 * MIB, 20 * MIB, false)], at(1));
        meter.sample(&[disk(0, 100 * MIB, 30 * MIB, false)], at(3));
        assert_eq!(meter.shown().transfer_speed_bps, 5 * MIB);
    }

    #[test]
    fn what_a_client_says_is_of_the_disk_that_it_sends() {
        let mut disks = [disk(0, 100 * MIB, 0, false), disk(1, 300 * MIB, 0, false)];
        let mut meter = Meter::new(BackupType::Incremental, at(0));
        meter.hear(&says(50.0, 100 * MIB), &disks, at(1));
        near(&meter, 12.5);
        // After the disk everything is zero and the status is an end, which it is not.
        let over = Telemetry {
            status: "completed".to_owned(),
            current_phase: "completed".to_owned(),
            ..Telemetry::default()
        };
        meter.hear(&over, &disks, at(2));
        near(&meter, 25.0);
        assert_eq!(meter.shown().phase, "ready");
        disks[0].is_complete = true;
        meter.hear(&says(10.0, 300 * MIB), &disks, at(3));
        near(&meter, 32.5);
        // It begins again, or goes mad: nothing goes back, and nothing is more than all.
        meter.hear(&says(1.0, 300 * MIB), &disks, at(4));
        near(&meter, 32.5);
        meter.hear(&says(1e9, 300 * MIB), &disks, at(5));
        near(&meter, 100.0);
        meter.sample(&disks, at(6));
        near(&meter, 100.0);
        assert_eq!(meter.shown().last_telemetry_at, Some(at(5)));
    }

    #[test]
    fn all_disks_are_all_there_is() {
        let mut meter = Meter::new(BackupType::Full, at(0));
        let disks = [0, 1, 2].map(|n| disk(n, 7 * MIB, 0, true));
        meter.sample(&disks[..2], at(1));
        assert_eq!(meter.shown().percent, 100.0);
        let mut meter = Meter::new(BackupType::Full, at(0));
        meter.sample(&disks, at(1));
        assert_eq!(meter.shown().percent, 100.0);
    }

    #[test]
    fn what_a_client_says_of_all_bytes_is_of_the_backup() {
        let disks = [disk(0, 100 * MIB, 0, false), disk(1, 300 * MIB, 0, false)];
        let mut meter = Meter::new(BackupType::Full, at(0));
        meter.hear(&says(10.0, 400 * MIB), &disks, at(1));
        near(&meter, 10.0);
        meter.hear(&says(40.0, 0), &disks, at(1));
        near(&meter, 40.0);
        let by_disk = Telemetry {
            disks: vec![super::super::DiskTelemetry {
                disk_index: DiskIndex::new(1),
                progress_percent: 100.0,
                ..Default::default()
            }],
            ..Telemetry::default()
        };
        meter.hear(&by_disk, &disks, at(2));
        near(&meter, 75.0);
    }

    #[test]
    fn silence_and_zero_change_nothing() {
        let disks = [disk(0, 100 * MIB, 0, false)];
        let mut meter = Meter::new(BackupType::Incremental, at(0));
        let full = Telemetry {
            current_phase: "transferring".to_owned(),
            transfer_speed_bps: 7,
            eta_seconds: 9,
            progress_percent: 30.0,
            ..Telemetry::default()
        };
        meter.hear(&full, &disks, at(1));
        meter.sample(&disks, at(3));
        let before = meter.shown().clone();
        assert_eq!((before.transfer_speed_bps, before.eta_seconds), (7, 9));
        let odd = Telemetry {
            eta_seconds: -4,
            transfer_speed_bps: -1,
            progress_percent: -1.0,
            ..Telemetry::default()
        };
        for report in [Telemetry::default(), odd] {
            meter.hear(&report, &disks, at(1));
            assert_eq!(meter.shown(), &before);
        }
    }
}
