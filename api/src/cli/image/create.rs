//! `image create`.

use std::path::PathBuf;

use clap::Args;
use engine::standalone::{self, CreateImage};

use super::info::ImageInfo;
use super::{CLUSTER_SIZE, Common, Format, cluster_size, source};
use crate::cli::{output, size};

/// Make an empty qcow2 file; never overwrites.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The file to make.
    path: PathBuf,
    /// Size of the device: 64M, 1.5G, … [default: that of --backing].
    #[arg(value_parser = size::parse, required_unless_present = "backing")]
    size: Option<u64>,
    /// The image that supplies what the new one does not have; recorded as given.
    #[arg(long, value_name = "PARENT")]
    backing: Option<PathBuf>,
    /// Format of --backing; needed where magic and file name do not agree.
    #[arg(long, short = 'F', value_enum, requires = "backing")]
    backing_format: Option<Format>,
    /// A power of two from 512 to 2M.
    #[arg(long, value_name = "SIZE", value_parser = cluster_size, default_value = CLUSTER_SIZE)]
    cluster_size: u32,
}

impl Create {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let facts = standalone::create(CreateImage {
            path: self.path,
            size_bytes: self.size,
            cluster_size_bytes: self.cluster_size,
            backing: self
                .backing
                .map(|path| source(path, self.backing_format, &common.roots)),
        })
        .await?;
        let info = ImageInfo::from(facts);
        match common.json {
            true => output::json(&info)?,
            false => output::line(info.text())?,
        }
        Ok(())
    }
}
