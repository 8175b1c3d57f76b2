//! The lines at the end. People and scripts quote them; keep them stable.

use std::fmt::Write;
use std::time::Duration;

use indicatif::HumanBytes;

use crate::{BackupReport, DiskReport};

const MIB: f64 = 1024.0 * 1024.0;

/// The whole summary, without a final line break.
pub(super) fn text(report: &BackupReport) -> String {
    let mut out = format!(
        "backup {} vm={} type={} repository={}",
        report.backup_id, report.vm_name, report.backup_type, report.repository_id
    );
    if let Some(reason) = &report.type_reason {
        push_line(&mut out, &format!("type reason: {reason}"));
    }
    for disk in &report.disks {
        push_line(&mut out, &disk_line(disk));
    }
    let size = report.sum(|disk| disk.size_bytes);
    let sent = report.sum(|disk| disk.sent_bytes);
    push_line(
        &mut out,
        &format!(
            "transferred {} of {} in {:.1} seconds ({:.1} MiB/s)",
            HumanBytes(sent),
            HumanBytes(size),
            report.elapsed.as_secs_f64(),
            mib_per_second(size, report.elapsed)
        ),
    );
    let unchanged = report.sum(|disk| disk.unchanged_bytes);
    if unchanged > 0 {
        push_line(
            &mut out,
            &format!(
                "backup was done incrementally, reused {} ({}%)",
                HumanBytes(unchanged),
                percent(unchanged, size)
            ),
        );
    }
    let zero = report.sum(|disk| disk.zero_bytes);
    if zero > 0 {
        push_line(
            &mut out,
            &format!(
                "backup is sparse: {} ({}%) zero data",
                HumanBytes(zero),
                percent(zero, size)
            ),
        );
    }
    for warning in &report.warnings {
        push_line(
            &mut out,
            &format!("warning: {}: {}", warning.name, warning.text),
        );
    }
    out
}

/// What was done with one disk.
pub(super) fn disk_line(disk: &DiskReport) -> String {
    let mut line = format!(
        "{}: size {}, read {}, sent {}, zero {}, unchanged {}, in {:.1} s ({:.1} MiB/s)",
        disk.disk_id,
        HumanBytes(disk.size_bytes),
        HumanBytes(disk.read_bytes),
        HumanBytes(disk.sent_bytes),
        HumanBytes(disk.zero_bytes),
        HumanBytes(disk.unchanged_bytes),
        disk.elapsed.as_secs_f64(),
        mib_per_second(disk.size_bytes, disk.elapsed)
    );
    if let Some(hub) = &disk.hub {
        let _ = write!(
            line,
            "; hub: stored {}, equal to the parent {}",
            HumanBytes(hub.stored_bytes),
            HumanBytes(hub.equal_bytes)
        );
    }
    line
}

fn push_line(out: &mut String, line: &str) {
    out.push('\n');
    out.push_str(line);
}

fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    u64::try_from(u128::from(part) * 100 / u128::from(whole)).unwrap_or(100)
}

fn mib_per_second(bytes: u64, elapsed: Duration) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rate is shown with one decimal"
    )]
    let mib = bytes as f64 / MIB;
    mib / elapsed.as_secs_f64().max(0.001)
}
