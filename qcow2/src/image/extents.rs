//! Extents of an image on top of its parents.

use crate::error::Error;
use crate::format::geometry::HostOffset;
use crate::image::{Extent, ExtentKind, Image};
use crate::plan::read::Source;

/// Appends an extent, joined to the last one where it continues it.
pub(crate) fn push(extents: &mut Vec<Extent>, extent: Extent) {
    if extent.len_bytes == 0 {
        return;
    }
    if let Some(last) = extents.last_mut() {
        let host = match (last.host_offset, extent.host_offset) {
            (Some(mine), Some(theirs)) => mine + last.len_bytes == theirs,
            (None, None) => true,
            _ => false,
        };
        let same = last.kind == extent.kind && last.depth == extent.depth;
        if host && same && last.offset + last.len_bytes == extent.offset {
            last.len_bytes += extent.len_bytes;
            return;
        }
    }
    extents.push(extent);
}

impl Image {
    /// Extents of the whole chain under this range, in order, without gaps.
    ///
    /// # Errors
    /// `OutOfRange`; `Corrupt` for entries that cannot be; `Io`.
    pub fn extents(&self, offset: u64, len_bytes: u64) -> Result<Vec<Extent>, Error> {
        self.check_range(offset, len_bytes)?;
        let _range = self.locks.shared(self.clusters(offset, len_bytes));
        let mut extents = Vec::new();
        for run in self.runs(offset, len_bytes)? {
            let own = |kind, host: Option<HostOffset>| Extent {
                offset: run.start.0,
                len_bytes: run.len_bytes,
                kind,
                depth: 0,
                host_offset: host.map(|host| host.0),
            };
            match (run.source, &self.parent) {
                (Source::Host(host), _) => push(&mut extents, own(ExtentKind::Data, Some(host))),
                (Source::Compressed(_), _) => push(&mut extents, own(ExtentKind::Data, None)),
                (Source::Zero { kept }, _) => push(&mut extents, own(ExtentKind::Zero, kept)),
                (Source::Below, None) => push(&mut extents, own(ExtentKind::Unallocated, None)),
                (Source::Below, Some(parent)) => {
                    for below in parent.extents_padded(run.start.0, run.len_bytes)? {
                        push(
                            &mut extents,
                            Extent {
                                depth: below.depth + 1,
                                ..below
                            },
                        );
                    }
                }
            }
        }
        Ok(extents)
    }
}
