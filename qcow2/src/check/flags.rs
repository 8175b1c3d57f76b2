//! Entries of the active tables say whether they alone refer to a cluster. Is it so?

use std::collections::HashMap;

use crate::check::CheckReport;
use crate::check::walk::Walker;
use crate::error::Error;
use crate::format::geometry::{HostCluster, HostOffset, to_u64, to_usize};
use crate::format::limits::MAX_CACHED_REFCOUNT_BYTES;
use crate::format::suspect::{L2Ref, TableRef, Target, with_copied};
use crate::format::{refcount, wire};
use crate::storage;

/// Counts the entries that are wrong, each a corruption.
pub(super) fn check(walker: &Walker<'_>, report: &mut CheckReport) -> Result<u64, Error> {
    let before = report.corruptions;
    each_wrong(walker, |wrong| {
        report.corruption(format!(
            "entry is wrong about being the only one: entry_offset={:#x} entry={:#x} refcount={}",
            wrong.at.0, wrong.raw, wrong.refcount
        ));
        Ok(())
    })?;
    Ok(report.corruptions - before)
}

/// Sets and clears flags until they agree with the refcounts; nothing else in an entry changes.
///
/// The caller knows that nothing else lies where the tables lie.
pub(super) fn repair(walker: &Walker<'_>) -> Result<(), Error> {
    each_wrong(walker, |wrong| {
        // Eight bytes within a sector: an entry is old or new, whenever the power fails.
        let entry = with_copied(wrong.raw, wrong.refcount == 1);
        storage::write(walker.storage, wrong.at, &wire::table_bytes(&[entry]))
    })
}

/// An entry that is wrong.
struct Wrong {
    /// Where it is.
    at: HostOffset,
    raw: u64,
    refcount: u64,
}

fn each_wrong(
    walker: &Walker<'_>,
    mut wrong: impl FnMut(Wrong) -> Result<(), Error>,
) -> Result<(), Error> {
    let (header, geometry) = (walker.header, &walker.geometry);
    let mut refcounts = Refcounts::new(walker);
    let mut look = |at, raw, copied: bool, target| {
        let refcount = refcounts.of(geometry.host_cluster(target))?;
        if copied == (refcount == 1) {
            return Ok(());
        }
        wrong(Wrong { at, raw, refcount })
    };
    let mut table = vec![0; to_usize(geometry.cluster_size())];
    let mut tables = 0;
    walker.each_l1(
        header.l1_offset,
        u64::from(header.l1_entries),
        |index, raw| {
            let l1 = TableRef::from_l1(raw);
            if l1.at.0 == 0 {
                return Ok(());
            }
            look(
                HostOffset(header.l1_offset.0 + index * 8),
                raw,
                l1.copied,
                l1.at,
            )?;
            // As many as the walk looks at: there cannot be more.
            tables += 1;
            if tables >= walker.clusters() {
                return Ok(());
            }
            walker.read(l1.at, &mut table)?;
            // The second word of an extended entry has no such flag.
            let words = geometry.l2_entry_words();
            let entries = (l1.at.0..).step_by(8).zip(wire::table(&table));
            for (at, raw) in entries.step_by(words) {
                let entry = L2Ref::parse(raw, None, header.version, geometry);
                if let Target::Cluster(cluster) = entry.target {
                    look(HostOffset(at), raw, entry.copied, cluster)?;
                }
            }
            Ok(())
        },
    )
}

/// Refcounts as the file has them.
struct Refcounts<'a> {
    walker: &'a Walker<'a>,
    blocks: HashMap<u64, Option<Vec<u8>>>,
}

impl<'a> Refcounts<'a> {
    fn new(walker: &'a Walker<'a>) -> Self {
        let blocks = HashMap::new();
        Self { walker, blocks }
    }

    fn of(&mut self, cluster: HostCluster) -> Result<u64, Error> {
        let geometry = &self.walker.geometry;
        let index = geometry.block_index(cluster);
        if !self.blocks.contains_key(&index) {
            let bytes = to_u64(self.blocks.len()) * geometry.cluster_size();
            if bytes >= MAX_CACHED_REFCOUNT_BYTES {
                self.blocks.clear();
            }
            self.blocks.insert(index, self.walker.block(index)?);
        }
        let block = self.blocks.get(&index).and_then(Option::as_ref);
        Ok(block.map_or(0, |bytes| {
            refcount::get(
                bytes,
                geometry.refcount_order(),
                geometry.block_slot(cluster),
            )
        }))
    }
}
