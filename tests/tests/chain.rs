//! Chains a hundred layers deep: mapped as QEMU maps them, read as they were written.

use std::ops::Range;
use std::path::Path;

use qcow2::{BackingFormat, Chain, ExtentKind};
use serde_json::Value;
use tests::disk::{Disk, SECTOR};
use tests::images::Folder;
use tests::peers::{have, run_ok};
use tests::{qemu, seed};

const LAYERS: usize = 100;
const CLUSTER: usize = 4096;

/// Layers of some requests each, and the disk after each of them.
fn make_chain(folder: &Folder, rng: &mut fastrand::Rng) -> Vec<Disk> {
    let len = 400 * CLUSTER + 3 * SECTOR;
    let mut disks: Vec<Disk> = Vec::new();
    for layer in 0..LAYERS {
        let mut disk = Disk::new(len, disks.last());
        let below = layer.checked_sub(1).map(|below| below.to_string());
        let below = below.as_deref().map(|name| (name, BackingFormat::Qcow2));
        let image = folder.create(&layer.to_string(), len as u64, CLUSTER, below);
        for _ in 0..if layer == 0 { 30 } else { 4 } {
            let op = disk.random_op(rng, CLUSTER);
            op.send(&image);
            disk.apply(&op);
        }
        image.flush().expect("a flush");
        disks.push(disk);
    }
    disks
}

/// One run of a map: where, how long, which layer, zero or not, where in the file.
type Run = (u64, u64, u64, bool, Option<u64>);

/// Joins runs that go on, so that only the meaning is compared.
fn join(runs: impl Iterator<Item = Run>) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last)
                if (last.2, last.3) == (run.2, run.3)
                    && last.0 + last.1 == run.0
                    && last.4.map(|at| at + last.1) == run.4 =>
            {
                last.1 += run.1;
            }
            _ => joined.push(run),
        }
    }
    joined
}

/// QEMU's map of what some layer has.
fn map_of_qemu(image: &Path) -> Vec<Run> {
    let args = ["map", "--output=json", "-f", "qcow2"].map(Into::into);
    let text = run_ok("qemu-img", args.into_iter().chain([image.to_owned()]));
    let runs: Vec<Value> = serde_json::from_str(&text).expect("a map");
    let present = runs.iter().filter(|run| run["present"] == true);
    join(present.map(|run| {
        let number = |name: &str| run[name].as_u64().expect("a number");
        let zero = run["zero"] == true;
        // QEMU tells where a zero cluster keeps its space, too.
        let at = run["offset"].as_u64().filter(|_| !zero);
        (number("start"), number("length"), number("depth"), zero, at)
    }))
}

fn map_of_ours(chain: &Chain) -> Vec<Run> {
    let extents = chain
        .extents(0, chain.virtual_size_bytes())
        .expect("extents");
    let present = extents
        .iter()
        .filter(|extent| ![ExtentKind::Unallocated, ExtentKind::Beyond].contains(&extent.kind));
    join(present.map(|extent| {
        let zero = extent.kind == ExtentKind::Zero;
        let depth = u64::from(extent.depth);
        (
            extent.offset,
            extent.len_bytes,
            depth,
            zero,
            extent.host_offset.filter(|_| !zero),
        )
    }))
}

#[test]
fn a_hundred_layers_are_mapped_and_read_as_one() {
    if !have("qemu-img") {
        return;
    }
    let seed = seed::seed("a_hundred_layers_are_mapped_and_read_as_one");
    let mut rng = fastrand::Rng::with_seed(seed);
    let folder = Folder::new();
    let disks = make_chain(&folder, &mut rng);
    let tip = (LAYERS - 1).to_string();
    let path = folder.path(&tip);
    assert_eq!(qemu::backing_chain(&path).len(), LAYERS);
    let raw = folder.write_raw("raw", &disks[LAYERS - 1]);
    qemu::assert_reads_like(&path, &raw);

    let chain = folder.chain(&tip, BackingFormat::Qcow2);
    assert_reads(&chain, disks[LAYERS - 1].bytes(), &mut rng, seed);
    let map = map_of_qemu(&path);
    assert_eq!(map_of_ours(&chain), map, "seed={seed}");
    let deepest = map.iter().map(|run| run.2).max();
    assert!(deepest > Some(40), "the map is shallow: {deepest:?}");

    for older in [0, 40, LAYERS - 2, LAYERS - 1] {
        let context = format!("seed={seed} older={older}");
        let since = folder.chain(&older.to_string(), BackingFormat::Qcow2);
        let changes = chain.changes_since(&since).expect("one chain");
        let changes: Vec<_> = changes.map(|range| range.expect("a range")).collect();
        // A layer's depth in QEMU's map says whether it lies above the older point.
        let depth = (LAYERS - 1 - older) as u64;
        let above = map.iter().filter(|run| run.2 < depth);
        let above = above.map(|run| (run.0, run.1, 0, false, None));
        let above: Vec<_> = join(above).iter().map(|run| run.0..run.0 + run.1).collect();
        assert_eq!(changes, above, "{context}");
        assert_equal_outside(&changes, &disks[LAYERS - 1], &disks[older], &context);
    }
}

/// Reads at random places, within and across clusters, in one piece each.
fn assert_reads(chain: &Chain, bytes: &[u8], rng: &mut fastrand::Rng, seed: u64) {
    for _ in 0..2_000 {
        let start = rng.usize(0..bytes.len());
        let end = bytes.len().min(start + rng.usize(1..8 * CLUSTER));
        let mut read = vec![0xa5; end - start];
        chain.read(start as u64, &mut read).expect("a read");
        assert!(read == bytes[start..end], "seed={seed} at={start}..{end}");
    }
}

fn assert_equal_outside(changes: &[Range<u64>], newer: &Disk, older: &Disk, context: &str) {
    let mut old = older.bytes().to_vec();
    for range in changes {
        let range = usize::try_from(range.start).expect("a small disk")
            ..usize::try_from(range.end).expect("a small disk");
        old[range.clone()].copy_from_slice(&newer.bytes()[range]);
    }
    assert!(old == newer.bytes(), "{context}");
}
