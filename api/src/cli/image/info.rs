//! `image info`.

use std::path::PathBuf;

use clap::Args;
use engine::standalone::{self, ImageFacts};
use serde::Serialize;

use super::{Common, Format, format_name, source};
use crate::cli::{output, size};

/// Facts of an image and of every image below it, tip first.
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// The tip of the chain.
    path: PathBuf,
    /// Its format; needed where magic and file name do not agree.
    #[arg(long, short, value_enum)]
    format: Option<Format>,
}

impl Info {
    pub(super) async fn run(self, common: &Common) -> anyhow::Result<()> {
        let chain = standalone::info(&source(self.path, self.format, &common.roots)).await?;
        let chain: Vec<_> = chain.into_iter().map(ImageInfo::from).collect();
        if common.json {
            output::json(&chain)?;
        } else {
            let texts: Vec<_> = chain.iter().map(ImageInfo::text).collect();
            output::line(texts.join("\n\n"))?;
        }
        Ok(())
    }
}

/// One image, in qemu-img's names; the hub's own facts are under `sendense`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ImageInfo {
    filename: String,
    format: &'static str,
    virtual_size: u64,
    /// Space that the filesystem has given to the file.
    actual_size: u64,
    /// Length of the file.
    file_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename_format: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format_specific: Option<FormatSpecific>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sendense: Option<Sealed>,
}

#[derive(Debug, Serialize)]
struct FormatSpecific {
    #[serde(rename = "type")]
    kind: &'static str,
    data: Qcow2Facts,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Qcow2Facts {
    compat: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    compression_type: Option<&'static str>,
    refcount_bits: Option<u32>,
}

/// The hub's seal: which point this image is.
#[derive(Debug, Serialize)]
struct Sealed {
    point_id: String,
    parent_id: Option<String>,
    change_id: Option<String>,
}

impl From<ImageFacts> for ImageInfo {
    fn from(facts: ImageFacts) -> Self {
        let format_specific = facts.version.map(|version| FormatSpecific {
            kind: format_name(facts.format),
            data: Qcow2Facts {
                compat: if version < 3 { "0.10" } else { "1.1" },
                compression_type: facts.compression.map(|it| it.as_str()),
                refcount_bits: facts.refcount_bits,
            },
        });
        let (parent_id, change_id) = (facts.parent_id, facts.change_id);
        Self {
            filename: facts.path.display().to_string(),
            format: format_name(facts.format),
            virtual_size: facts.virtual_size_bytes,
            actual_size: facts.allocated_bytes,
            file_size: facts.file_size_bytes,
            cluster_size: facts.cluster_size_bytes,
            backing_filename: facts.backing_name,
            backing_filename_format: facts.backing_format.map(format_name),
            format_specific,
            sendense: facts.point_id.map(|point_id| Sealed {
                point_id,
                parent_id,
                change_id,
            }),
        }
    }
}

impl ImageInfo {
    pub(super) fn text(&self) -> String {
        let sized = |bytes: u64| format!("{} ({bytes} bytes)", size::human(bytes));
        let seal = self.sendense.as_ref();
        let specific = self.format_specific.as_ref();
        let facts = [
            ("image:", Some(self.filename.clone())),
            ("format:", Some(self.format.to_owned())),
            ("virtual size:", Some(sized(self.virtual_size))),
            ("disk size:", Some(size::human(self.actual_size))),
            (
                "cluster size:",
                self.cluster_size.map(|bytes| bytes.to_string()),
            ),
            (
                "compression type:",
                specific
                    .and_then(|specific| specific.data.compression_type)
                    .map(str::to_owned),
            ),
            ("backing file:", self.backing_filename.clone()),
            ("point:", seal.map(|seal| seal.point_id.clone())),
            (
                "parent point:",
                seal.and_then(|seal| seal.parent_id.clone()),
            ),
            ("change id:", seal.and_then(|seal| seal.change_id.clone())),
        ];
        let rows = facts
            .into_iter()
            .filter_map(|(name, value)| value.map(|value| vec![name.to_owned(), value]));
        output::table(&rows.collect::<Vec<_>>())
    }
}
