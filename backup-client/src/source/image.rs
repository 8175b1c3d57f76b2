//! A qcow2 file with its backing chain, read through the `qcow2` crate.

use std::io;
use std::path::Path;
use std::sync::Arc;

use qcow2::{BackingFormat, Chain, ExtentKind, FileStorage};

use super::opener::TreeOpener;
use super::raw::WatchedFile;
use super::spec::open_regular_or_block;
use super::{Run, Source, Unchanged};
use crate::{Error, ErrorKind};

/// Extents are asked for in steps of this length: one answer stays small whatever the fragmentation.
const EXTENT_STEP_BYTES: u64 = 64 << 20;

/// The guest's view of a qcow2 file.
#[derive(Debug)]
pub(super) struct Qcow2Source {
    label: String,
    chain: Chain,
    tip: WatchedFile,
}

impl Qcow2Source {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let wrong = |what: &str, error: io::Error| Error::because(ErrorKind::Source, what, error);
        let path = path
            .canonicalize()
            .map_err(|error| wrong("cannot resolve its path", error))?;
        let file = open_regular_or_block(&path)?;
        let storage = file
            .try_clone()
            .map_err(|error| wrong("cannot duplicate its handle", error))?;
        let opener = TreeOpener::beside(&path)?;
        let chain = Chain::open(
            Arc::new(FileStorage::new(storage)),
            &path.display().to_string(),
            BackingFormat::Qcow2,
            &opener,
        )
        .map_err(|error| Error::because(ErrorKind::Source, "cannot read it as qcow2", error))?;
        if chain.virtual_size_bytes() == 0 {
            return Err(Error::new(ErrorKind::Source, "its disk is empty"));
        }
        Ok(Self {
            label: path.display().to_string(),
            chain,
            tip: WatchedFile::new(file).map_err(|error| wrong("cannot tell its size", error))?,
        })
    }
}

impl Source for Qcow2Source {
    fn label(&self) -> &str {
        &self.label
    }

    fn size_bytes(&self) -> u64 {
        self.chain.virtual_size_bytes()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.chain.read(offset, into).map_err(io::Error::other)
    }

    fn run_at(&self, offset: u64) -> io::Result<Run> {
        let step = EXTENT_STEP_BYTES.min(self.size_bytes().saturating_sub(offset));
        let extents = self.chain.extents(offset, step).map_err(io::Error::other)?;
        let reads_zero = |kind: &ExtentKind| *kind != ExtentKind::Data;
        let Some(first) = extents.first() else {
            return Err(io::Error::other(format!(
                "the chain told no extent offset={offset} len={step}"
            )));
        };
        let state = reads_zero(&first.kind);
        let len_bytes = extents
            .iter()
            .take_while(|extent| reads_zero(&extent.kind) == state)
            .map(|extent| extent.len_bytes)
            .sum::<u64>()
            .min(step);
        Ok(Run {
            len_bytes,
            reads_zero: state,
        })
    }

    fn check_unchanged(&self) -> io::Result<Unchanged> {
        self.tip.check_unchanged()
    }
}
