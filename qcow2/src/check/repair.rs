//! Puts refcounts right, and the flags and bits that depend on them. Nothing else is written: no byte of the disk, no
//! offset in a table.

use crate::check::count::Window;
use crate::check::walk::Walker;
use crate::check::{CheckReport, Facts, Survey, flags, rebuild, survey};
use crate::error::{Error, ErrorKind};
use crate::format::feature::{INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY};
use crate::format::geometry::{HostCluster, HostOffset, to_u64};
use crate::format::header::{Header, INCOMPATIBLE_AT};
use crate::format::limits::CHECK_WINDOW_CLUSTERS;
use crate::format::{refcount, wire};
use crate::image::open_file;
use crate::storage::{self, Storage};

/// What to repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Refcounts that are too high: they waste space.
    Leaks,
    /// All refcounts, and the flags in tables that depend on them.
    All,
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairReport {
    /// Leaks that were there before and are no more.
    pub leaks_fixed: u64,
    /// Corruptions that were there before and are no more.
    pub corruptions_fixed: u64,
    /// What a second check found.
    pub after: CheckReport,
}

/// Repairs refcounts of an image that nobody else writes. Guest data, offsets in tables and everything that is not
/// understood stay as they are; what cannot be repaired so is found again by the second check. Where references may be
/// hidden behind something that cannot be read, no refcount is lowered. When the second check finds no corruption,
/// the dirty and the corrupt bit are cleared.
///
/// A loss of power at any moment leaves an image whose refcounts are each old or new; a second repair finishes.
///
/// # Errors
/// `Refused` for a sealed image; `NoSpace` where the refcounts would outgrow their table; and as
/// [`check`](fn@crate::check).
pub fn repair(storage: &dyn Storage, repair: Repair) -> Result<RepairReport, Error> {
    repair_in_windows(storage, repair, CHECK_WINDOW_CLUSTERS)
}

pub(super) fn repair_in_windows(
    storage: &dyn Storage,
    repair: Repair,
    window_clusters: u64,
) -> Result<RepairReport, Error> {
    let opened = open_file(storage)?;
    if let Some(seal) = &opened.info.seal {
        return Err(Error::new(
            ErrorKind::Refused,
            format!(
                "a sealed image is never changed, not even repaired: point_id={}",
                seal.point_id
            ),
        ));
    }
    let walker = Walker::new(storage, &opened)?;
    let before = survey(&walker, window_clusters)?;
    if !before.report.is_clean() {
        mend(&walker, repair, &before, window_clusters)?;
    }
    let opened = open_file(storage)?;
    let walker = Walker::new(storage, &opened)?;
    let after = survey(&walker, window_clusters)?.report;
    if after.corruptions == 0 {
        clear_bits(storage, &opened.header)?;
    }
    let before = before.report;
    Ok(RepairReport {
        leaks_fixed: before.leaks.saturating_sub(after.leaks),
        corruptions_fixed: before.corruptions.saturating_sub(after.corruptions),
        after,
    })
}

fn mend(
    walker: &Walker<'_>,
    repair: Repair,
    before: &Survey,
    window_clusters: u64,
) -> Result<(), Error> {
    let facts = &before.facts;
    let replace = facts.unsound || facts.missing_block;
    match repair {
        // What lies where refcounts lie would be written over.
        Repair::Leaks if facts.unsound => return Ok(()),
        Repair::All if replace => {
            if !rebuild::rebuild(walker, facts, window_clusters)? {
                return Ok(());
            }
        }
        Repair::Leaks | Repair::All => adjust(walker, repair, facts, window_clusters)?,
    }
    let opened = open_file(walker.storage)?;
    let walker = Walker::new(walker.storage, &opened)?;
    let now = survey(&walker, window_clusters)?;
    // With corruptions of other kinds left, the refcounts may be what is wrong, not the flags.
    let trusted = repair == Repair::All || now.report.corruptions == now.wrong_flags;
    if trusted && !now.facts.tangled && now.wrong_flags > 0 {
        flags::repair(&walker)?;
        storage::sync(walker.storage)?;
    }
    Ok(())
}

/// Sets refcounts in their blocks. Each is right by itself, whatever becomes of the others.
fn adjust(
    walker: &Walker<'_>,
    repair: Repair,
    facts: &Facts,
    window_clusters: u64,
) -> Result<(), Error> {
    let order = walker.geometry.refcount_order();
    let end = walker.clusters() + u64::from(facts.spills);
    let mut window = Window::new(&walker.geometry, window_clusters, end);
    while window.advance() {
        window.count(walker, &mut Survey::default())?;
        for (index, clusters) in window.parts() {
            let (Some(at), Some(mut block)) = (walker.block_at(index), walker.block(index)?) else {
                continue;
            };
            let mut changed: Option<(usize, usize)> = None;
            for cluster in clusters {
                let slot = walker.geometry.block_slot(HostCluster(cluster));
                let (counted, used) = (refcount::get(&block, order, slot), window.used(cluster));
                let raises = counted < used && repair == Repair::All;
                let lowers = counted > used && !facts.incomplete;
                if raises || lowers {
                    refcount::set(&mut block, order, slot, used);
                    changed = Some((changed.map_or(slot, |(first, _)| first), slot));
                }
            }
            if let Some((first, last)) = changed {
                let bytes = refcount::bytes_of(order, first..last + 1);
                let at = HostOffset(at.0 + to_u64(bytes.start));
                storage::write(walker.storage, at, &block[bytes])?;
            }
        }
    }
    storage::sync(walker.storage)
}

/// Clears the bits that keep writers away.
fn clear_bits(storage: &dyn Storage, header: &Header) -> Result<(), Error> {
    let cleared = header.incompatible & !(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT);
    if cleared != header.incompatible {
        let at = HostOffset(INCOMPATIBLE_AT);
        storage::write(storage, at, &wire::table_bytes(&[cleared]))?;
        storage::sync(storage)?;
    }
    Ok(())
}
