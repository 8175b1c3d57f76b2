//! Reading through the image into its parents.

use crate::codec::Reader;
use crate::error::Error;
use crate::format::geometry::{GuestOffset, to_u64, to_usize};
use crate::format::l2::CompressedCell;
use crate::image::Image;
use crate::plan::read::{Run, Source, runs};
use crate::storage;

impl Image {
    /// Fills `into` from `offset`.
    ///
    /// # Errors
    /// `OutOfRange`; `Corrupt` for entries that cannot be and damaged compressed clusters; `Io`.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        let len = to_u64(into.len());
        self.check_range(offset, len)?;
        let _range = self.locks.shared(self.clusters(offset, len));
        self.read_held(offset, into)
    }

    /// As `read`; the caller holds the range, which is inside the disk.
    pub(super) fn read_held(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        for run in self.runs(offset, to_u64(into.len()))? {
            let from = to_usize(run.start.0 - offset);
            let part = &mut into[from..from + to_usize(run.len_bytes)];
            match run.source {
                Source::Host(at) => storage::read_padded(&*self.storage, at, part)?,
                Source::Zero { .. } => part.fill(0),
                Source::Below => self.read_below(run.start, part)?,
                Source::Compressed(cell) => self.read_compressed(run.start, cell, part)?,
            }
        }
        Ok(())
    }

    /// A part of a compressed cluster of this image.
    pub(super) fn read_compressed(
        &self,
        start: GuestOffset,
        cell: CompressedCell,
        into: &mut [u8],
    ) -> Result<(), Error> {
        let reader = Reader {
            storage: &*self.storage,
            geometry: &self.geometry,
            compression: self.compression,
            inflated: &self.inflated,
            layer: 0,
            image: None,
        };
        reader.read(start, cell, into)
    }

    /// What the parent has, zeroes beyond its end and without one.
    pub(super) fn read_below(&self, offset: GuestOffset, into: &mut [u8]) -> Result<(), Error> {
        match &self.parent {
            Some(parent) => parent.read_padded(offset.0, into),
            None => {
                into.fill(0);
                Ok(())
            }
        }
    }

    /// The runs of this image's own tables under a range; the caller holds it.
    pub(super) fn runs(&self, offset: u64, len_bytes: u64) -> Result<Vec<Run>, Error> {
        let end = offset + len_bytes;
        let mut found = Vec::new();
        let mut at = offset;
        while at < end {
            let span = self.geometry.l2_span();
            let next = (at / span + 1).saturating_mul(span).min(end);
            let (start, stop) = (GuestOffset(at), GuestOffset(next));
            let mut tables = self.tables.lock();
            match tables.entries(&*self.storage, self.clusters(at, next - at))? {
                None => {
                    let len_bytes = next - at;
                    found.push(Run {
                        start,
                        len_bytes,
                        source: Source::Below,
                    });
                }
                Some(entries) => {
                    found.extend(runs(&self.geometry, tables.version, start, stop, &entries)?);
                }
            }
            at = next;
        }
        Ok(found)
    }
}
