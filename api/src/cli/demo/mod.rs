//! `sendense-hub demo`: the main job on real input in one go.
//!
//! ```text
//! disks ─▶ full ─▶ change ─▶ increment ─▶ change ─▶ increment ─▶ every point compared byte for byte
//!                                                             ─▶ one point restored and its files read
//! ```
//!
//! The hub runs in this process on free loopback ports; the disks travel over NBD, as they would
//! from a node.

mod disks;
mod files;
mod partition;
mod report;
mod story;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// Backs up real disks, changes them, backs up again, verifies and restores.
#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// Disk images of your own (raw, or qcow2 named *.qcow2); they are copied, never changed.
    /// Without them the demo builds disks that hold real filesystems with real files
    images: Vec<PathBuf>,

    /// Keep everything (repository, database, disks, restored files) in this new or empty folder
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,

    /// Leave the hub running afterwards, until Ctrl-C
    #[arg(long)]
    serve: bool,
}

/// Runs the demo to its end.
///
/// # Errors
/// When any step fails, or any byte differs: the text names which.
pub(super) async fn run(args: DemoArgs) -> Result<()> {
    let scratch = match &args.keep {
        Some(folder) => Scratch::Kept(empty_folder(folder)?),
        None => Scratch::Temporary(
            tempfile::Builder::new()
                .prefix("sendense-demo-")
                .tempdir()?,
        ),
    };
    story::tell(scratch.path(), &args.images, args.serve).await?;
    if let Scratch::Kept(folder) = &scratch {
        report::line(&format!("everything is kept in {}", folder.display()));
    }
    Ok(())
}

/// Where the demo works.
enum Scratch {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Scratch {
    fn path(&self) -> &std::path::Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Kept(folder) => folder,
        }
    }
}

/// Makes sure that nothing of the user's lies where the demo writes.
fn empty_folder(folder: &std::path::Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let occupied = std::fs::read_dir(folder)?.next().is_some();
    anyhow::ensure!(
        !occupied,
        "{} is not empty: the demo wants a folder of its own",
        folder.display()
    );
    Ok(std::fs::canonicalize(folder)?)
}
