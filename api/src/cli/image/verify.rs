//! `image verify`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use engine::standalone::{self, Damage, DamageKind, Verified, VerifiedFile};
use serde::Serialize;

use super::{Common, Format, source};
use crate::cli::{failed, output};

/// Compare the data of sealed images with the hashes that were recorded when it came.
///
/// Reads the hashes of FILE from FILE.hashes, and does the same for everything below it. Exits 0 when every file was
/// compared and is good, 1 when one could not be compared, 2 when one is damaged.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The file.
    path: PathBuf,
    /// Read only one of several parts of the data: `2/7` is the second of seven.
    #[arg(long, value_name = "N/M", value_parser = part)]
    part: Option<(u64, u64)>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    filename: String,
    /// `good`, `damaged`, `no-hashes` or `failed`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    checked_clusters: u64,
    skipped_clusters: u64,
    damaged_clusters: u64,
    mapping_differences: u64,
    damages: Vec<Range>,
}

#[derive(Debug, Serialize)]
struct Range {
    start: u64,
    length: u64,
    /// `content`, `unreadable`, `mapping` or `hashes`.
    kind: &'static str,
}

impl Verify {
    pub(super) async fn run(self, common: &Common) -> ExitCode {
        match self.look(common).await {
            Ok(files) => verdict(&files),
            Err(error) => failed(&error),
        }
    }

    async fn look(self, common: &Common) -> anyhow::Result<Vec<VerifiedFile>> {
        let image = source(self.path, Some(Format::Qcow2), &common.roots);
        let files = standalone::verify(image, self.part).await?;
        let views: Vec<File> = files.iter().map(File::of).collect();
        match common.json {
            true => output::json(&views)?,
            false => output::line(views.iter().map(File::text).collect::<Vec<_>>().join("\n"))?,
        }
        Ok(files)
    }
}

impl File {
    fn of(file: &VerifiedFile) -> Self {
        let (state, error, report) = match &file.outcome {
            Verified::NoHashes => ("no-hashes", None, None),
            Verified::Failed(error) => ("failed", Some(error.to_string()), None),
            Verified::Compared(report) if report.damaged_clusters == 0 => {
                ("good", None, Some(report))
            }
            Verified::Compared(report) => ("damaged", None, Some(report)),
        };
        let report = report.cloned().unwrap_or_default();
        Self {
            filename: file.path.display().to_string(),
            state,
            error,
            checked_clusters: report.checked_clusters,
            skipped_clusters: report.skipped_clusters,
            damaged_clusters: report.damaged_clusters,
            mapping_differences: report.mapping_differences,
            damages: report.damages.iter().map(Range::of).collect(),
        }
    }

    fn text(&self) -> String {
        let error = self.error.iter().map(|error| format!("  {error}"));
        let damages = self.damages.iter().map(|range| {
            format!(
                "  damaged: {} start={} length={}",
                range.kind, range.start, range.length
            )
        });
        let counts = format!(
            "{}: {} checked={} skipped={} damaged={}",
            self.filename,
            self.state,
            self.checked_clusters,
            self.skipped_clusters,
            self.damaged_clusters
        );
        let lines: Vec<String> = std::iter::once(counts)
            .chain(error)
            .chain(damages)
            .collect();
        lines.join("\n")
    }
}

impl Range {
    fn of(damage: &Damage) -> Self {
        let kind = match damage.kind {
            DamageKind::Content => "content",
            DamageKind::Unreadable => "unreadable",
            DamageKind::Mapping => "mapping",
            DamageKind::Hashes => "hashes",
        };
        Self {
            start: damage.offset,
            length: damage.len_bytes,
            kind,
        }
    }
}

fn verdict(files: &[VerifiedFile]) -> ExitCode {
    let is_damaged = |file: &VerifiedFile| matches!(&file.outcome, Verified::Compared(report) if report.damaged_clusters > 0);
    let is_compared = |file: &VerifiedFile| matches!(file.outcome, Verified::Compared(_));
    if files.iter().any(is_damaged) {
        ExitCode::from(2)
    } else if files.iter().all(is_compared) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Reads `N/M`; whether there is such a part is the engine's affair.
fn part(text: &str) -> Result<(u64, u64), String> {
    let wrong = || format!("not N/M: text={text:?}");
    let (part, of) = text.split_once('/').ok_or_else(wrong)?;
    Ok((
        part.parse().map_err(|_| wrong())?,
        of.parse().map_err(|_| wrong())?,
    ))
}
