//! `image changes`.

use std::ops::Range;
use std::path::PathBuf;

use clap::Args;
use engine::standalone;
use serde::Serialize;

use super::{Common, Format, source};
use crate::cli::output;

/// What may have changed between two points, from their maps alone.
///
/// The points share a layer: the older one is below the newer one, or both stand on a third one. What is not listed reads
/// the same in both.
#[derive(Debug, Args)]
pub(crate) struct Changes {
    /// The newer point: the tip of its chain.
    newer: PathBuf,
    /// The older point.
    #[arg(long, value_name = "OLDER")]
    since: PathBuf,
    /// Format of the newer one; needed where magic and file name do not agree.
    #[arg(long, short, value_enum)]
    format: Option<Format>,
    /// Format of the older one.
    #[arg(long, short = 'F', value_enum)]
    older_format: Option<Format>,
}

/// The names of `image map`.
#[derive(Debug, Serialize)]
struct Run {
    start: u64,
    length: u64,
}

impl From<Range<u64>> for Run {
    fn from(range: Range<u64>) -> Self {
        Self {
            start: range.start,
            length: range.end - range.start,
        }
    }
}

impl Changes {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let newer = source(self.newer, self.format, &common.roots);
        let older = source(self.since, self.older_format, &common.roots);
        let ranges = standalone::changes(&newer, &older).await?;
        let runs: Vec<_> = ranges.into_iter().map(Run::from).collect();
        match common.json {
            true => output::json(&runs)?,
            false => output::line(text(&runs))?,
        }
        Ok(())
    }
}

fn text(runs: &[Run]) -> String {
    let head = ["OFFSET", "LENGTH"].map(str::to_owned).to_vec();
    let rows = runs
        .iter()
        .map(|run| vec![format!("{:#x}", run.start), format!("{:#x}", run.length)]);
    output::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
