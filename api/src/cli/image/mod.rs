//! `sendense-hub image …`: look at and make image files.
//!
//! The JSON of `info`, `check` and `map` has qemu-img's names, so that what reads one reads the
//! other.

mod changes;
mod check;
mod compare;
mod convert;
mod create;
mod info;
mod map;
mod verify;

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
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(create::Create),
    Info(info::Info),
    Check(check::Check),
    Map(map::Map),
    Verify(verify::Verify),
    Changes(changes::Changes),
    Compare(compare::Compare),
    Convert(convert::Convert),
}

impl Image {
    /// Exit status: 0 and 1 as everywhere; `check`, `compare` and `verify` say theirs.
    pub(crate) async fn run(self) -> ExitCode {
        let common = &self.common;
        if let Err(error) = logging::start("warn") {
            return failed(&error);
        }
        let done = |ended: anyhow::Result<()>| match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        };
        match self.verb {
            Verb::Create(verb) => done(verb.run(common).await),
            Verb::Info(verb) => done(verb.run(common).await),
            Verb::Check(verb) => verb.run(common).await,
            Verb::Map(verb) => done(verb.run(common).await),
            Verb::Changes(verb) => done(verb.run(common).await),
            Verb::Verify(verb) => verb.run(common).await,
            Verb::Compare(verb) => verb.run(common).await,
            Verb::Convert(verb) => done(verb.run(common).await),
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

/// An image, the format that was said for it, and where its backing files may lie.
pub(super) fn source(path: PathBuf, format: Option<Format>, roots: &[PathBuf]) -> Source {
    Source {
        path,
        format: format.map(ImageFormat::from),
        roots: roots.to_vec(),
    }
}

/// How to answer, and whom to trust.
#[derive(Debug, Args)]
struct Common {
    /// Answer in JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Backing files may lie below this folder, too, not only below the image's own; may be given
    /// several times.
    #[arg(long = "trust-root", value_name = "DIR", global = true)]
    roots: Vec<PathBuf>,
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
