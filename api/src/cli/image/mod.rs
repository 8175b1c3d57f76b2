//! `sendense-hub image …`: look at and make image files.
//!
//! The JSON of `info`, `check` and `map` has qemu-img's names, so that what reads one reads the
//! other.

mod check;
mod compare;
mod convert;
mod create;
mod info;
mod map;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use engine::standalone::{ImageFormat, Source};

use super::{failed, logging};

/// Look at and make qcow2 files.
#[derive(Debug, Args)]
pub(crate) struct Image {
    #[command(subcommand)]
    verb: Verb,
    /// Answer in JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(create::Create),
    Info(info::Info),
    Check(check::Check),
    Map(map::Map),
    Compare(compare::Compare),
    Convert(convert::Convert),
}

impl Image {
    /// Exit status: 0 and 1 as everywhere; `check` and `compare` say theirs.
    pub(crate) async fn run(self) -> ExitCode {
        let json = self.json;
        if let Err(error) = logging::start("warn") {
            return failed(&error);
        }
        let done = |ended: anyhow::Result<()>| match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        };
        match self.verb {
            Verb::Create(verb) => done(verb.run(json).await),
            Verb::Info(verb) => done(verb.run(json).await),
            Verb::Check(verb) => verb.run(json).await,
            Verb::Map(verb) => done(verb.run(json).await),
            Verb::Compare(verb) => verb.run(json).await,
            Verb::Convert(verb) => done(verb.run(json).await),
        }
    }
}

/// The formats that can be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Raw,
    Qcow2,
}

impl From<Format> for ImageFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::Qcow2 => Self::Qcow2,
        }
    }
}

/// An image and the format that was said for it.
pub(super) fn source(path: PathBuf, format: Option<Format>) -> Source {
    Source {
        path,
        format: format.map(ImageFormat::from),
        roots: Vec::new(),
    }
}

fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Raw => "raw",
        ImageFormat::Qcow2 => "qcow2",
    }
}

/// Reads a cluster size; whether it is a legal one is the image's affair.
fn cluster_size(text: &str) -> Result<u32, String> {
    let bytes = super::size::parse(text)?;
    u32::try_from(bytes).map_err(|_| format!("too large: text={text:?}"))
}

/// qcow2's usual cluster size.
const CLUSTER_SIZE: &str = "64k";
