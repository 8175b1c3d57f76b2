//! `image convert`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use engine::standalone::{self, CompressionType, ConvertImage, Converted};
use serde::Serialize;

use super::{CLUSTER_SIZE, Common, Format, cluster_size, source};
use crate::cli::{output, size};

/// Write what an image reads as, with all that is below it, to a new raw or flat qcow2 file.
#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// The tip of the chain.
    source: PathBuf,
    /// The file to make; never overwritten.
    target: PathBuf,
    /// Format of the source; needed where magic and file name do not agree.
    #[arg(long, short, value_enum)]
    format: Option<Format>,
    /// Format of the new file.
    #[arg(long, short = 'O', value_enum, default_value = "raw")]
    output_format: Format,
    /// For qcow2: a power of two from 512 to 2M.
    #[arg(long, value_name = "SIZE", value_parser = cluster_size, default_value = CLUSTER_SIZE)]
    cluster_size: u32,
    /// For qcow2: compress what gets smaller. zstd is faster and smaller, and needs QEMU 5.1 to be read.
    #[arg(long, value_enum, value_name = "TYPE", num_args = 0..=1, require_equals = true, default_missing_value = "zlib")]
    compress: Option<Compression>,
}

/// How clusters can be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compression {
    Zlib,
    Zstd,
}

impl From<Compression> for CompressionType {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::Zlib => Self::Zlib,
            Compression::Zstd => Self::Zstd,
        }
    }
}

#[derive(Debug, Serialize)]
struct Written {
    virtual_size_bytes: u64,
    written_bytes: u64,
}

impl Convert {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let converted = standalone::convert(ConvertImage {
            source: source(self.source, self.format, &common.roots),
            target: self.target,
            format: self.output_format.into(),
            cluster_size_bytes: self.cluster_size,
            compression: self.compress.map(CompressionType::from),
        })
        .await?;
        match common.json {
            true => output::json(&Written::from(converted))?,
            false => output::line(text(converted))?,
        }
        Ok(())
    }
}

impl From<Converted> for Written {
    fn from(converted: Converted) -> Self {
        Self {
            virtual_size_bytes: converted.virtual_size_bytes,
            written_bytes: converted.written_bytes,
        }
    }
}

fn text(converted: Converted) -> String {
    let (written, size) = (converted.written_bytes, converted.virtual_size_bytes);
    format!(
        "wrote {} of a device of {}",
        size::human(written),
        size::human(size)
    )
}
