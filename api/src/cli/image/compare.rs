//! `image compare`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use engine::{Comparison, standalone};
use serde::Serialize;

use super::{Common, Format, source};
use crate::cli::{failed, output};

/// Compare what two images read as, each with all that is below it.
///
/// Exits 0 when they are identical, 1 when they differ, 2 when they could not be compared.
#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// One image, raw or qcow2.
    left: PathBuf,
    /// The other.
    right: PathBuf,
    /// Format of the first; needed where magic and file name do not agree.
    #[arg(long, short, value_enum)]
    format: Option<Format>,
    /// Format of the other.
    #[arg(long, short = 'F', value_enum)]
    other_format: Option<Format>,
}

#[derive(Debug, Serialize)]
struct Compared {
    identical: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    compared_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_difference: Option<u64>,
}

impl From<Comparison> for Compared {
    fn from(comparison: Comparison) -> Self {
        match comparison {
            Comparison::Equal { compared_bytes } => Self {
                identical: true,
                compared_bytes: Some(compared_bytes),
                first_difference: None,
            },
            Comparison::Differs { offset } => Self {
                identical: false,
                compared_bytes: None,
                first_difference: Some(offset),
            },
        }
    }
}

impl Compare {
    pub(super) async fn run(self, common: &Common) -> ExitCode {
        match self.look(common).await {
            Ok(Comparison::Equal { .. }) => ExitCode::SUCCESS,
            Ok(Comparison::Differs { .. }) => ExitCode::from(1),
            Err(error) => {
                failed(&error);
                ExitCode::from(2)
            }
        }
    }

    async fn look(self, common: &Common) -> anyhow::Result<Comparison> {
        let left = source(self.left, self.format, &common.roots);
        let right = source(self.right, self.other_format, &common.roots);
        let comparison = standalone::compare(&left, &right).await?;
        match (common.json, &comparison) {
            (true, _) => output::json(&Compared::from(comparison))?,
            (false, Comparison::Equal { .. }) => output::line("images are identical")?,
            (false, Comparison::Differs { offset }) => {
                output::line(format_args!("images differ at offset={offset}"))?;
            }
        }
        Ok(comparison)
    }
}
