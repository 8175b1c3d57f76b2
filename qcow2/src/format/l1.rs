//! L1 entries: where the L2 tables are (qcow2 spec, "Cluster mapping").

use crate::error::{Error, corrupt};
use crate::format::geometry::{Geometry, HostOffset};

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;

/// A decoded L1 entry that names a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L1Entry {
    /// Where the L2 table begins; a cluster's start, never 0.
    pub table: HostOffset,
    /// The refcount of the table is exactly one: it may be changed in place.
    pub copied: bool,
}

impl L1Entry {
    /// Decodes an entry; `None` is an L2 table that does not exist.
    ///
    /// # Errors
    /// `Corrupt` for reserved bits or a table that does not begin at a cluster.
    pub fn parse(raw: u64, geometry: &Geometry) -> Result<Option<Self>, Error> {
        if raw & !(OFFSET_MASK | COPIED) != 0 {
            return Err(corrupt(format!(
                "L1 entry has reserved bits set: entry={raw:#x}"
            )));
        }
        let table = HostOffset(raw & OFFSET_MASK);
        if table.0 == 0 {
            return Ok(None);
        }
        if !geometry.is_aligned(table) {
            return Err(corrupt(format!(
                "L2 table is not at a cluster's start: entry={raw:#x}"
            )));
        }
        Ok(Some(Self {
            table,
            copied: raw & COPIED != 0,
        }))
    }

    /// The entry as it is stored.
    pub fn raw(&self) -> u64 {
        self.table.0 | if self.copied { COPIED } else { 0 }
    }
}
