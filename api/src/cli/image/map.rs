//! `image map`.

use std::path::PathBuf;

use clap::Args;
use engine::standalone::{self, MapExtent};
use serde::Serialize;

use super::{Common, Format, source};
use crate::cli::output;

/// Which image of the chain answers for which part of the device.
#[derive(Debug, Args)]
pub(crate) struct Map {
    /// The tip of the chain.
    path: PathBuf,
    /// Its format; needed where magic and file name do not agree.
    #[arg(long, short, value_enum)]
    format: Option<Format>,
}

/// qemu-img's names.
#[derive(Debug, Serialize)]
struct Run {
    start: u64,
    length: u64,
    depth: u32,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

impl From<MapExtent> for Run {
    fn from(extent: MapExtent) -> Self {
        Self {
            start: extent.offset,
            length: extent.len_bytes,
            depth: extent.depth,
            present: extent.present,
            zero: extent.zero,
            data: extent.present && !extent.zero,
            compressed: extent.compressed,
            offset: extent.host_offset,
        }
    }
}

impl Map {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let extents = standalone::map(&source(self.path, self.format, &common.roots)).await?;
        let runs: Vec<_> = extents.into_iter().map(Run::from).collect();
        match common.json {
            true => output::json(&runs)?,
            false => output::line(text(&runs))?,
        }
        Ok(())
    }
}

fn text(runs: &[Run]) -> String {
    let head = ["OFFSET", "LENGTH", "DEPTH", "STATE", "AT"].map(str::to_owned);
    let rows = runs.iter().map(|run| {
        let state = match (run.present, run.zero) {
            (_, true) => "zero",
            (true, false) if run.compressed => "compressed",
            (true, false) => "data",
            (false, false) => "absent",
        };
        vec![
            format!("{:#x}", run.start),
            format!("{:#x}", run.length),
            run.depth.to_string(),
            state.to_owned(),
            run.offset.map(|at| format!("{at:#x}")).unwrap_or_default(),
        ]
    });
    output::table(
        &std::iter::once(head.to_vec())
            .chain(rows)
            .collect::<Vec<_>>(),
    )
}
