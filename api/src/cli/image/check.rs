//! `image check`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use engine::standalone::{self, CheckReport, Repair};
use serde::Serialize;

use super::Common;
use crate::cli::{failed, output};

/// Check the structure of a qcow2 file, and repair it where that is asked.
///
/// Exits 0 when it is clean, 1 when it could not be checked, 2 when it is corrupt, 3 when it only
/// has leaks; after a repair with what is left.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The file; what is below it is not looked at.
    path: PathBuf,
    /// Put refcounts right: those that are too high, or all; no byte of the disk is touched. Nobody
    /// else may be writing the file.
    #[arg(long, short, value_enum, value_name = "WHAT")]
    repair: Option<What>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Leaks,
    All,
}

impl From<What> for Repair {
    fn from(what: What) -> Self {
        match what {
            What::Leaks => Self::Leaks,
            What::All => Self::All,
        }
    }
}

/// What is wrong now, and what was and is repaired.
#[derive(Debug, Default)]
struct Looked {
    report: CheckReport,
    leaks_fixed: u64,
    corruptions_fixed: u64,
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
    corruptions_fixed: u64,
    leaks_fixed: u64,
    image_end_offset: u64,
    total_clusters: u64,
    allocated_clusters: u64,
    fragmented_clusters: u64,
    compressed_clusters: u64,
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
        let looked = match self.repair {
            None => Looked {
                report: standalone::check(&self.path).await?,
                ..Looked::default()
            },
            Some(what) => {
                let done = standalone::repair(&self.path, what.into()).await?;
                Looked {
                    report: done.after,
                    leaks_fixed: done.leaks_fixed,
                    corruptions_fixed: done.corruptions_fixed,
                }
            }
        };
        let report = &looked.report;
        match common.json {
            true => output::json(&Checked {
                filename: self.path.display().to_string(),
                format: "qcow2",
                check_errors: 0,
                corruptions: report.corruptions,
                leaks: report.leaks,
                corruptions_fixed: looked.corruptions_fixed,
                leaks_fixed: looked.leaks_fixed,
                image_end_offset: report.image_end_offset,
                total_clusters: report.total_clusters,
                allocated_clusters: report.allocated_clusters,
                fragmented_clusters: report.fragmented_clusters,
                compressed_clusters: report.compressed_clusters,
                findings: &report.findings,
            })?,
            false => output::line(text(&looked))?,
        }
        Ok(looked.report)
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

fn text(looked: &Looked) -> String {
    let report = &looked.report;
    let mut lines = Vec::new();
    if (looked.leaks_fixed, looked.corruptions_fixed) != (0, 0) {
        lines.push(format!(
            "repaired: corruptions={} leaks={}",
            looked.corruptions_fixed, looked.leaks_fixed
        ));
    }
    lines.extend(report.findings.iter().cloned());
    lines.push(match (report.corruptions, report.leaks) {
        (0, 0) => "no errors".to_owned(),
        (corruptions, leaks) => format!("corruptions={corruptions} leaks={leaks}"),
    });
    let (allocated, total) = (report.allocated_clusters, report.total_clusters);
    lines.push(format!(
        "{allocated} of {total} clusters allocated ({}), {} fragmented, {} compressed, image ends \
         at {}",
        percent(allocated, total),
        percent(report.fragmented_clusters, allocated),
        percent(report.compressed_clusters, allocated),
        report.image_end_offset
    ));
    lines.join("\n")
}

/// A share in hundredths of a percent; of nothing it is 0.
fn percent(part: u64, whole: u64) -> String {
    let hundredths = u128::from(part) * 10_000 / u128::from(whole.max(1));
    format!("{}.{:02} %", hundredths / 100, hundredths % 100)
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

    #[test]
    fn figures_are_told_in_shares() {
        let looked = Looked {
            report: CheckReport {
                total_clusters: 3,
                allocated_clusters: 2,
                fragmented_clusters: 1,
                image_end_offset: 512,
                ..CheckReport::default()
            },
            leaks_fixed: 7,
            corruptions_fixed: 0,
        };
        let expected = "repaired: corruptions=0 leaks=7\nno errors\n2 of 3 clusters allocated \
                        (66.66 %), 50.00 % fragmented, 0.00 % compressed, image ends at 512";
        assert_eq!(text(&looked), expected);
    }
}
