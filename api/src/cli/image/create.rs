//! `image create`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
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
    /// Version of the format: 1.1 is 3; 0.10 is 2, for QEMU before 1.1, and cannot record zeroes.
    #[arg(long, value_enum, default_value_t = Compat::V3)]
    compat: Compat,
    /// Width of a reference count: a power of two from 1 to 64; 16 with --compat 0.10.
    #[arg(long, value_name = "BITS", default_value_t = 16)]
    refcount_bits: u32,
}

/// The versions of the format, in QEMU's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compat {
    #[value(name = "0.10", alias = "v2")]
    V2,
    #[value(name = "1.1", alias = "v3")]
    V3,
}

impl Compat {
    fn version(self) -> u32 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

impl Create {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let facts = standalone::create(CreateImage {
            cluster_size_bytes: self.cluster_size,
            backing: self
                .backing
                .map(|path| source(path, self.backing_format, &common.roots)),
            version: self.compat.version(),
            refcount_bits: self.refcount_bits,
            ..CreateImage::new(self.path, self.size)
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
