//! `image check`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use engine::standalone::{self, CheckReport};
use serde::Serialize;

use super::Common;
use crate::cli::{failed, output};

/// Check the structure of a qcow2 file.
///
/// Exits 0 when it is clean, 1 when it could not be checked, 2 when it is corrupt, 3 when it only
/// has leaks.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The file; what is below it is not looked at.
    path: PathBuf,
}

/// qemu-img's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Checked<'a> {
    filename: String,
    format: &'static str,
    check_errors: u64,
    corruptions: u64,
    leaks: u64,
    image_end_offset: u64,
    total_clusters: u64,
    allocated_clusters: u64,
    findings: &'a [String],
}

impl Check {
    pub(super) async fn run(self, common: &Common) -> ExitCode {
        match self.look(common).await {
            Ok(report) => verdict(&report),
            Err(error) => failed(&error),
        }
    }

    async fn look(self, common: &Common) -> anyhow::Result<CheckReport> {
        let report = standalone::check(&self.path).await?;
        match common.json {
            true => output::json(&Checked {
                filename: self.path.display().to_string(),
                format: "qcow2",
                check_errors: 0,
                corruptions: report.corruptions,
                leaks: report.leaks,
                image_end_offset: report.image_end_offset,
                total_clusters: report.total_clusters,
                allocated_clusters: report.allocated_clusters,
                findings: &report.findings,
            })?,
            false => output::line(text(&report))?,
        }
        Ok(report)
    }
}

fn verdict(report: &CheckReport) -> ExitCode {
    match report {
        CheckReport {
            corruptions: 1.., ..
        } => ExitCode::from(2),
        CheckReport { leaks: 1.., .. } => ExitCode::from(3),
        _ => ExitCode::SUCCESS,
    }
}

fn text(report: &CheckReport) -> String {
    let verdict = match (report.corruptions, report.leaks) {
        (0, 0) => "no errors".to_owned(),
        (corruptions, leaks) => format!("corruptions={corruptions} leaks={leaks}"),
    };
    let used = format!(
        "{} of {} clusters allocated, image ends at {}",
        report.allocated_clusters, report.total_clusters, report.image_end_offset
    );
    let findings = report.findings.iter().map(String::as_str);
    findings
        .chain([verdict.as_str(), used.as_str()])
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_is_that_of_qemu_img_check() {
        let check = |corruptions, leaks, expected: u8| {
            let report = CheckReport {
                corruptions,
                leaks,
                ..CheckReport::default()
            };
            let (got, expected) = (verdict(&report), ExitCode::from(expected));
            assert_eq!(format!("{got:?}"), format!("{expected:?}"));
        };
        check(0, 0, 0);
        check(1, 0, 2);
        check(1, 1, 2);
        check(0, 1, 3);
    }
}
