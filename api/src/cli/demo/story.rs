//! The demo's steps, in order.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use backup_client::{BackupOptions, BackupReport, BackupType, Silent, SourceSpec};
use engine::standalone::{self, Verified};
use engine::{BackupId, ChainLayer, Comparison, DiskIndex, Engine};

use super::disks::{Contents, DemoDisk, Filesystem};
use super::report::{self, line, percent, rate, size, step};
use crate::hub::{self, RunningHub, ServeConfig};

/// Name of the demo's VM.
const VM: &str = "demo-vm";

/// Sizes of the two disks that are built when no image is given.
const DISK_SIZES: [u64; 2] = [1_280 << 20, 512 << 20];

/// Increments after the full backup.
const INCREMENTS: usize = 2;

/// One point in time: the backup, and what the disks held when it was made.
struct Point {
    report: BackupReport,
    id: BackupId,
    /// Raw copies of the disks, in order.
    copies: Vec<PathBuf>,
    /// Content hash of every file, where the filesystem is known.
    contents: Vec<Option<Contents>>,
}

/// Runs everything below `folder`.
pub(super) async fn tell(folder: &Path, images: &[PathBuf], serve: bool) -> Result<()> {
    step(1, "Disks");
    let mut disks = prepare_disks(folder, images).await?;

    let hub = hub::start(ServeConfig::ephemeral(folder.join("hub")))
        .await
        .context("start the hub")?;
    line(&format!("   hub: {}  {}", hub.api_url(), hub.nbd_url()));

    step(2, "Full backup, over NBD, of all disks");
    let mut points = vec![back_up(&hub, folder, &disks, 0, BackupType::Full).await?];
    for round in 1..=INCREMENTS {
        step(2 + round, "Some files change; incremental backup");
        for disk in &mut disks {
            let count = disk.change(round)?;
            line(&format!(
                "   {}: {} changed, {} added, {} deleted",
                disk.path.file_name().unwrap_or_default().to_string_lossy(),
                count.changed,
                count.added,
                count.deleted
            ));
        }
        points.push(back_up(&hub, folder, &disks, round, BackupType::Incremental).await?);
    }

    step(
        3 + INCREMENTS,
        "Every disk of every point, compared byte for byte with what it was",
    );
    for (number, point) in points.iter().enumerate() {
        verify(hub.engine(), number, point).await?;
    }

    step(4 + INCREMENTS, "Restore of a point to files");
    // The middle point: it must not contain anything of a later one.
    restore(hub.engine(), folder, &disks, &points[points.len() / 2]).await?;

    step(5 + INCREMENTS, "The chains");
    for index in disk_indexes(&disks)? {
        let tip = &points.last().context("a demo has points")?.id;
        let layers = hub.engine().chain_layers(tip, index).await?;
        report::chain(index, &layers);
        verify_hashes(&layers).await?;
    }

    step(6 + INCREMENTS, "What it took");
    summary(&points)?;
    if serve {
        line(&format!(
            "\nthe hub stays at {} until Ctrl-C",
            hub.api_url()
        ));
        tokio::signal::ctrl_c().await?;
    }
    hub.stop().await;
    Ok(())
}

/// Builds disks with filesystems, or copies the user's images to raw files.
async fn prepare_disks(folder: &Path, images: &[PathBuf]) -> Result<Vec<DemoDisk>> {
    let place = folder.join("disks");
    std::fs::create_dir_all(&place)?;
    let mut disks = Vec::new();
    if images.is_empty() {
        let filesystems = [Filesystem::best(), Filesystem::Fat32];
        for (index, (size_bytes, filesystem)) in DISK_SIZES.into_iter().zip(filesystems).enumerate()
        {
            let path = place.join(format!("disk-{index}.raw"));
            let skip = index * 500;
            let disk = tokio::task::spawn_blocking(move || {
                DemoDisk::build(&path, size_bytes, filesystem, skip)
            })
            .await?
            .with_context(|| format!("build disk {index}"))?;
            let files = disk.files.iter().map(|file| file.len_bytes).sum();
            line(&format!(
                "   disk-{index}.raw: {} {} in a partition, {} real files, {}",
                size(disk.size_bytes),
                disk.filesystem.name(),
                disk.files.len(),
                size(files)
            ));
            disks.push(disk);
        }
    }
    for (index, image) in images.iter().enumerate() {
        let path = place.join(format!("disk-{index}.raw"));
        let spec: SourceSpec = image
            .display()
            .to_string()
            .parse()
            .map_err(anyhow::Error::msg)?;
        let target = path.clone();
        let size_bytes = tokio::task::spawn_blocking(move || copy_source(&spec, &target))
            .await?
            .with_context(|| format!("copy {}", image.display()))?;
        line(&format!(
            "   disk-{index}.raw: {} from {}",
            size(size_bytes),
            image.display()
        ));
        disks.push(DemoDisk {
            path,
            size_bytes,
            filesystem: Filesystem::Unknown,
            files: Vec::new(),
        });
    }
    Ok(disks)
}

/// Copies what a source reads as to a sparse raw file.
fn copy_source(spec: &SourceSpec, target: &Path) -> Result<u64> {
    let source = spec.open()?;
    let size_bytes = source.size_bytes();
    copy_thin(size_bytes, target, |offset, into| {
        Ok(source.read_at(offset, into)?)
    })?;
    Ok(size_bytes)
}

/// Copies a raw file without writing its zeroes.
fn copy_raw(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from)?;
    let size_bytes = source.metadata()?.len();
    copy_thin(size_bytes, to, |offset, into| {
        Ok(source.read_exact_at(into, offset)?)
    })
}

fn copy_thin(
    size_bytes: u64,
    to: &Path,
    read: impl Fn(u64, &mut [u8]) -> Result<()>,
) -> Result<()> {
    let target = File::create_new(to)?;
    target.set_len(size_bytes)?;
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < size_bytes {
        let len = usize::try_from((size_bytes - offset).min(1 << 20))?;
        read(offset, &mut buffer[..len])?;
        if buffer[..len].iter().any(|byte| *byte != 0) {
            target.write_all_at(&buffer[..len], offset)?;
        }
        offset += len as u64;
    }
    Ok(())
}

/// Remembers what the disks hold, then backs them up as a node would.
async fn back_up(
    hub: &RunningHub,
    folder: &Path,
    disks: &[DemoDisk],
    number: usize,
    backup_type: BackupType,
) -> Result<Point> {
    let place = folder.join(format!("point-{number}"));
    std::fs::create_dir_all(&place)?;
    let mut copies = Vec::new();
    let mut contents = Vec::new();
    for (index, disk) in disks.iter().enumerate() {
        let copy = place.join(format!("disk-{index}.raw"));
        copy_raw(&disk.path, &copy).with_context(|| format!("copy disk {index}"))?;
        contents.push(
            disk.contents(&copy)
                .with_context(|| format!("read the files of disk {index}"))?,
        );
        copies.push(copy);
    }

    let sources = disks
        .iter()
        .map(|disk| SourceSpec::Raw(disk.path.clone()))
        .collect();
    let mut options = BackupOptions::new(&hub.api_url(), VM, sources);
    options.backup_type = backup_type;
    options.state_dir = Some(folder.join("tracking"));
    let report = backup_client::backup(options, &Silent)
        .await
        .context("back up")?;
    for disk in &report.disks {
        line(&format!(
            "   {}: {} sent, {} zero, {} unchanged, of {}",
            disk.disk_id,
            size(disk.sent_bytes),
            size(disk.zero_bytes),
            size(disk.unchanged_bytes),
            size(disk.size_bytes)
        ));
    }
    for warning in &report.warnings {
        line(&format!("   warning {}: {}", warning.name, warning.text));
    }
    let total = report.sum(|disk| disk.size_bytes);
    line(&format!(
        "   {} ({}) of {} in {:.1} s, {} of disk",
        report.backup_id,
        report.backup_type,
        size(total),
        report.elapsed.as_secs_f64(),
        rate(total, report.elapsed)
    ));
    let id = BackupId::parse(&report.backup_id).map_err(anyhow::Error::from)?;
    Ok(Point {
        report,
        id,
        copies,
        contents,
    })
}

async fn verify(engine: &Engine, number: usize, point: &Point) -> Result<()> {
    let started = Instant::now();
    let mut compared = 0;
    for (index, copy) in point.copies.iter().enumerate() {
        let disk = DiskIndex::new(u32::try_from(index)?);
        match engine.compare_disk(&point.id, disk, copy).await? {
            Comparison::Equal { compared_bytes } => compared += compared_bytes,
            Comparison::Differs { offset } => {
                bail!(
                    "point {number} ({}) disk {index} differs at offset {offset}",
                    point.id
                )
            }
        }
    }
    let rate = rate(compared, started.elapsed());
    line(&format!(
        "   point {number} ({}): {} equal, {rate}",
        point.id,
        size(compared)
    ));
    Ok(())
}

/// Reads every file of a chain, and so of every point of a disk, against the hashes beside it.
async fn verify_hashes(layers: &[ChainLayer]) -> Result<()> {
    let tip = layers.first().context("a chain has a tip")?;
    let files = standalone::verify(Path::new(&tip.path), None).await?;
    let mut clusters = 0;
    for file in &files {
        match &file.outcome {
            Verified::Compared(report) if report.damaged_clusters == 0 => {
                clusters += report.checked_clusters;
            }
            found => bail!("{} failed by its hashes: {found:?}", file.path.display()),
        }
    }
    let count = files.len();
    line(&format!(
        "   verified by hashes: {clusters} clusters of {count} images"
    ));
    Ok(())
}

async fn restore(engine: &Engine, folder: &Path, disks: &[DemoDisk], point: &Point) -> Result<()> {
    let place = folder.join("restored");
    std::fs::create_dir_all(&place)?;
    for (index, disk) in disks.iter().enumerate() {
        let target = place.join(format!("disk-{index}.raw"));
        let started = Instant::now();
        let written = engine
            .restore_disk(&point.id, DiskIndex::new(u32::try_from(index)?), &target)
            .await?;
        let took = rate(disk.size_bytes, started.elapsed());
        let files = same_files(disk, &target, &point.contents[index])?;
        let equal = same_bytes(&target, &point.copies[index])?;
        ensure!(
            equal,
            "the restored disk {index} of {} differs from the source",
            point.id
        );
        line(&format!(
            "   disk {index} of {}: {} restored, {took}, equal to its source{files}",
            point.id,
            size(written)
        ));
    }
    Ok(())
}

/// Reads every file of the restored filesystem and compares it with what it was.
fn same_files(disk: &DemoDisk, restored: &Path, before: &Option<Contents>) -> Result<String> {
    let Some(before) = before else {
        return Ok(String::new());
    };
    let copy = restored.with_extension("files");
    // Reading a filesystem may mark it as used: on a copy, so that the restored bytes stay what they are.
    copy_raw(restored, &copy)?;
    let after = disk.contents(&copy)?.context("the filesystem is known")?;
    std::fs::remove_file(&copy)?;
    ensure!(
        &after == before,
        "the restored {} holds other files",
        disk.filesystem.name()
    );
    Ok(format!(
        ", {} files of its {} read back equal",
        after.len(),
        disk.filesystem.name()
    ))
}

fn same_bytes(left: &Path, right: &Path) -> Result<bool> {
    let (left, right) = (File::open(left)?, File::open(right)?);
    let size_bytes = left.metadata()?.len();
    if size_bytes != right.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    while offset < size_bytes {
        let len = usize::try_from((size_bytes - offset).min(1 << 20))?;
        left.read_exact_at(&mut one[..len], offset)?;
        right.read_exact_at(&mut other[..len], offset)?;
        if one[..len] != other[..len] {
            return Ok(false);
        }
        offset += len as u64;
    }
    Ok(true)
}

/// Bytes moved and stored per point, and the demo's promise: an increment moves a small part.
fn summary(points: &[Point]) -> Result<()> {
    line(
        "   point  type         moved         stored        of disk       time    moved, of the full",
    );
    let full_moved = points
        .first()
        .map_or(0, |point| point.report.sum(|disk| disk.sent_bytes));
    for (number, point) in points.iter().enumerate() {
        let report = &point.report;
        let moved = report.sum(|disk| disk.sent_bytes);
        let stored = report.sum(|disk| disk.hub.map_or(0, |hub| hub.stored_bytes));
        line(&format!(
            "   {number:<6} {:<12} {:<13} {:<13} {:<13} {:<7} {}",
            report.backup_type,
            size(moved),
            size(stored),
            size(report.sum(|disk| disk.size_bytes)),
            format!("{:.1} s", report.elapsed.as_secs_f64()),
            percent(moved, full_moved)
        ));
        if number > 0 {
            ensure!(
                moved * 10 < full_moved,
                "increment {number} moved {} of the full's {}: more than a tenth",
                size(moved),
                size(full_moved)
            );
        }
    }
    Ok(())
}

fn disk_indexes(disks: &[DemoDisk]) -> Result<Vec<DiskIndex>> {
    (0..disks.len())
        .map(|index| Ok(DiskIndex::new(u32::try_from(index)?)))
        .collect()
}
