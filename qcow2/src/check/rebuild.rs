//! A new refcount table with new blocks at the end of the file, for images whose own cannot be written.

use crate::check::Facts;
use crate::check::count::Window;
use crate::check::walk::Walker;
use crate::error::{Error, ErrorKind};
use crate::format::geometry::{Geometry, HostCluster, HostOffset, to_u64, to_usize};
use crate::format::header::{REFCOUNT_TABLE_AT, refcount_table_fields};
use crate::format::limits::MAX_REFCOUNT_TABLE_BYTES;
use crate::format::{refcount, wire};
use crate::storage;

/// Replaces the refcounts of the whole image; the header is switched to them last. The clusters of the old ones are
/// free then.
///
/// False if they would go where an entry already points to: what it means would change under the guest.
pub(super) fn rebuild(
    walker: &Walker<'_>,
    facts: &Facts,
    window_clusters: u64,
) -> Result<bool, Error> {
    let geometry = &walker.geometry;
    let wanted = wanted_blocks(walker, facts, window_clusters)?;
    let plan = Plan::new(geometry, end_of_file(walker, facts), wanted)?;
    let end = geometry.host_start(HostCluster(plan.end));
    if facts.first_beyond.is_some_and(|beyond| beyond < end.0) {
        return Ok(false);
    }
    let storage = walker.storage;
    storage
        .set_len(end.0)
        .map_err(|error| Error::io("image cannot be made longer", error))?;
    let mut window = Window::new(geometry, window_clusters, plan.end);
    while window.advance() {
        window.count_without_refcounts(walker)?;
        write_window(walker, facts, &window, &plan)?;
    }
    let table_at = geometry.host_start(HostCluster(plan.start));
    storage::write(storage, table_at, &wire::table_bytes(&plan.table))?;
    storage::sync(storage)?;
    let fields = refcount_table_fields(table_at, plan.table_clusters);
    storage::write(storage, HostOffset(REFCOUNT_TABLE_AT), &fields)?;
    storage::sync(storage)?;
    Ok(true)
}

/// The first cluster that is nobody's.
fn end_of_file(walker: &Walker<'_>, facts: &Facts) -> u64 {
    walker.clusters() + u64::from(facts.spills)
}

/// The count that a cluster shall have. Where references may be hidden, none is lowered.
fn target(facts: &Facts, used: u64, counted: u64) -> u64 {
    if facts.incomplete {
        used.max(counted)
    } else {
        used
    }
}

/// Which blocks have a count that is not 0, by their index.
fn wanted_blocks(
    walker: &Walker<'_>,
    facts: &Facts,
    window_clusters: u64,
) -> Result<Vec<bool>, Error> {
    let order = walker.geometry.refcount_order();
    let mut wanted = Vec::new();
    let end = end_of_file(walker, facts);
    let mut window = Window::new(&walker.geometry, window_clusters, end);
    while window.advance() {
        window.count_without_refcounts(walker)?;
        for (index, mut clusters) in window.parts() {
            let old = walker.block(index)?;
            let any = clusters.any(|cluster| {
                let slot = walker.geometry.block_slot(HostCluster(cluster));
                let counted = old
                    .as_ref()
                    .map_or(0, |old| refcount::get(old, order, slot));
                target(facts, window.used(cluster), counted) > 0
            });
            if any {
                want(&mut wanted, index)?;
            }
        }
    }
    Ok(wanted)
}

fn want(wanted: &mut Vec<bool>, index: u64) -> Result<(), Error> {
    if index >= MAX_REFCOUNT_TABLE_BYTES / 8 {
        return Err(Error::new(
            ErrorKind::NoSpace,
            format!(
                "refcount table would be above its limit: entries={} limit_bytes={MAX_REFCOUNT_TABLE_BYTES}",
                index + 1
            ),
        ));
    }
    let index = to_usize(index);
    if wanted.len() <= index {
        wanted.resize(index + 1, false);
    }
    wanted[index] = true;
    Ok(())
}

/// Where the new table and its blocks go.
struct Plan {
    /// The first cluster behind the file: the table is there, the blocks follow.
    start: u64,
    end: u64,
    table_clusters: u32,
    table: Vec<u64>,
}

impl Plan {
    /// The blocks describe themselves and the table: places are counted until no further block is needed for them.
    fn new(geometry: &Geometry, start: u64, mut wanted: Vec<bool>) -> Result<Self, Error> {
        loop {
            let blocks = to_u64(wanted.iter().filter(|wanted| **wanted).count());
            let table_clusters = geometry.clusters_for(to_u64(wanted.len()) * 8);
            let end = start + table_clusters + blocks;
            let before = wanted.clone();
            for index in start / geometry.block_entries()..end.div_ceil(geometry.block_entries()) {
                want(&mut wanted, index)?;
            }
            if wanted == before {
                let mut places = start + table_clusters..end;
                let mut table = Vec::with_capacity(wanted.len());
                for wanted in wanted {
                    let place = if wanted { places.next() } else { None };
                    table.push(place.map_or(0, |place| geometry.host_start(HostCluster(place)).0));
                }
                table.resize(to_usize(table_clusters * geometry.cluster_size() / 8), 0);
                return Ok(Self {
                    start,
                    end,
                    table_clusters: u32::try_from(table_clusters).unwrap_or(u32::MAX),
                    table,
                });
            }
        }
    }
}

/// Writes the counts of a window, each part into its block.
fn write_window(
    walker: &Walker<'_>,
    facts: &Facts,
    window: &Window,
    plan: &Plan,
) -> Result<(), Error> {
    let geometry = &walker.geometry;
    let order = geometry.refcount_order();
    let mut block = vec![0; to_usize(geometry.cluster_size())];
    for (index, clusters) in window.parts() {
        let place = plan.table.get(to_usize(index)).copied().unwrap_or(0);
        if place == 0 {
            continue;
        }
        let old = walker.block(index)?;
        let slots = geometry.block_slot(HostCluster(clusters.start))
            ..geometry.block_slot(HostCluster(clusters.end - 1)) + 1;
        for cluster in clusters {
            let slot = geometry.block_slot(HostCluster(cluster));
            let counted = old
                .as_ref()
                .map_or(0, |old| refcount::get(old, order, slot));
            let count = if cluster >= plan.start {
                1
            } else {
                target(facts, window.used(cluster), counted)
            };
            refcount::set(&mut block, order, slot, count);
        }
        let bytes = refcount::bytes_of(order, slots);
        let at = HostOffset(place + to_u64(bytes.start));
        storage::write(walker.storage, at, &block[bytes])?;
    }
    Ok(())
}
