//! Progress on stderr: a bar per disk on a terminal, plain lines elsewhere.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use super::complain;
use super::summary::disk_line;
use crate::{DiskReport, Progress, Warning};

const TEMPLATE: &str =
    "{prefix} [{wide_bar}] {percent:>3}% {bytes}/{total_bytes} {bytes_per_sec} eta {eta}";

/// At most one line per disk in this time.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// A bar per disk.
#[derive(Debug)]
pub(super) struct Bars {
    all: MultiProgress,
    bars: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    pub(super) fn new() -> Self {
        Self {
            all: MultiProgress::new(),
            bars: Mutex::default(),
        }
    }

    fn say(&self, text: &str) {
        if self.all.println(text).is_err() {
            complain(text);
        }
    }
}

impl Progress for Bars {
    fn job_started(&self, backup_id: &str, backup_type: &str, type_reason: Option<&str>) {
        self.say(&job_line(backup_id, backup_type, type_reason));
    }

    fn disk_started(&self, disk_id: &str, source: &str, total_bytes: u64) {
        let bar = self.all.add(ProgressBar::new(total_bytes));
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(format!("{disk_id} {source}"));
        locked(&self.bars).insert(disk_id.to_owned(), bar);
    }

    fn advanced(&self, disk_id: &str, bytes: u64) {
        if let Some(bar) = locked(&self.bars).get(disk_id) {
            bar.inc(bytes);
        }
    }

    fn disk_finished(&self, disk: &DiskReport) {
        if let Some(bar) = locked(&self.bars).get(&disk.disk_id) {
            bar.finish();
        }
    }

    fn warning(&self, warning: &Warning) {
        self.say(&warning_line(warning));
    }
}

/// Plain lines, for logs.
#[derive(Debug, Default)]
pub(super) struct Lines {
    disks: Mutex<HashMap<String, LineState>>,
}

#[derive(Debug)]
struct LineState {
    total_bytes: u64,
    done_bytes: u64,
    told_at: Instant,
}

impl Progress for Lines {
    fn job_started(&self, backup_id: &str, backup_type: &str, type_reason: Option<&str>) {
        complain(&job_line(backup_id, backup_type, type_reason));
    }

    fn disk_started(&self, disk_id: &str, source: &str, total_bytes: u64) {
        complain(&format!("{disk_id}: {source}, {}", HumanBytes(total_bytes)));
        let state = LineState {
            total_bytes,
            done_bytes: 0,
            told_at: Instant::now(),
        };
        locked(&self.disks).insert(disk_id.to_owned(), state);
    }

    fn advanced(&self, disk_id: &str, bytes: u64) {
        let mut disks = locked(&self.disks);
        let Some(state) = disks.get_mut(disk_id) else {
            return;
        };
        state.done_bytes += bytes;
        if state.told_at.elapsed() >= LINE_INTERVAL {
            state.told_at = Instant::now();
            complain(&format!(
                "{disk_id}: {} of {}",
                HumanBytes(state.done_bytes),
                HumanBytes(state.total_bytes)
            ));
        }
    }

    fn disk_finished(&self, disk: &DiskReport) {
        complain(&disk_line(disk));
    }

    fn warning(&self, warning: &Warning) {
        complain(&warning_line(warning));
    }
}

fn job_line(backup_id: &str, backup_type: &str, type_reason: Option<&str>) -> String {
    match type_reason {
        Some(reason) => format!("backup {backup_id}: {backup_type} ({reason})"),
        None => format!("backup {backup_id}: {backup_type}"),
    }
}

fn warning_line(warning: &Warning) -> String {
    format!("warning: {}: {}", warning.name, warning.text)
}

/// A panic elsewhere must not cost the progress display.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
