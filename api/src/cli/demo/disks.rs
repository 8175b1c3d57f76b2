//! Disks for the demo: real filesystems with real files, made, changed and read back.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::files::{self, RealFile};
use super::partition::{PARTITION_START, Partition, PartitionType, write_mbr};

/// Content hash of each file of a filesystem, by name.
pub(super) type Contents = BTreeMap<String, u64>;

/// What is on a disk of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filesystem {
    /// Made by this program alone, wherever it runs.
    Fat32,
    /// Made by e2fsprogs, where they are installed.
    Ext4,
    /// The user's own image: nothing is known about it.
    Unknown,
}

impl Filesystem {
    /// ext4 where its tools are on the machine, else FAT32.
    pub(super) fn best() -> Self {
        let has = |tool: &str| {
            let places = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];
            places
                .iter()
                .any(|place| Path::new(place).join(tool).is_file())
        };
        if has("mke2fs") && has("debugfs") {
            Self::Ext4
        } else {
            Self::Fat32
        }
    }

    /// As a reader would call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fat32 => "FAT32",
            Self::Ext4 => "ext4",
            Self::Unknown => "your image",
        }
    }
}

/// One virtual disk: a raw file with a partition table and a filesystem.
#[derive(Debug, Clone)]
pub(super) struct DemoDisk {
    pub(super) path: PathBuf,
    pub(super) size_bytes: u64,
    pub(super) filesystem: Filesystem,
    pub(super) files: Vec<RealFile>,
}

impl DemoDisk {
    /// Makes a disk of `size_bytes` and fills it with real files, up to about half.
    ///
    /// # Errors
    /// When it cannot be written, or a tool of the filesystem fails.
    pub(super) fn build(
        path: &Path,
        size_bytes: u64,
        filesystem: Filesystem,
        skip: usize,
    ) -> Result<Self> {
        let budget_bytes = size_bytes / 2;
        let files = files::pick(budget_bytes, 4_000, skip);
        ensure!(!files.is_empty(), "no readable files found on this machine");
        let disk = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        disk.set_len(size_bytes)?;
        let this = Self {
            path: path.to_owned(),
            size_bytes,
            filesystem,
            files,
        };
        match filesystem {
            Filesystem::Fat32 => {
                write_mbr(&disk, size_bytes, PartitionType::Fat32)?;
                this.format_fat(disk)?;
            }
            Filesystem::Ext4 => {
                write_mbr(&disk, size_bytes, PartitionType::Linux)?;
                this.format_ext4()?;
            }
            Filesystem::Unknown => bail!("an unknown filesystem cannot be made"),
        }
        Ok(this)
    }

    fn format_fat(&self, disk: File) -> Result<()> {
        let mut partition = Partition::open(disk)?;
        let sectors = u32::try_from((self.size_bytes - PARTITION_START) / 512)?;
        // FAT32 begins at 65,525 clusters: the largest cluster that leaves that many.
        let fits = |bytes: &u32| self.size_bytes / u64::from(*bytes) > 70_000;
        let bytes_per_cluster = [4096, 2048, 1024].into_iter().find(fits).unwrap_or(512);
        let options = fatfs::FormatVolumeOptions::new()
            .fat_type(fatfs::FatType::Fat32)
            .bytes_per_cluster(bytes_per_cluster)
            .total_sectors(sectors)
            .volume_label(*b"SENDENSE   ");
        fatfs::format_volume(&mut partition, options)?;
        let filesystem = fatfs::FileSystem::new(partition, fatfs::FsOptions::new())?;
        let root = filesystem.root_dir();
        for file in &self.files {
            let mut target = root.create_file(&file.name)?;
            let data = fs::read(&file.source).with_context(|| file.source.display().to_string())?;
            target.write_all(&data)?;
        }
        drop(root);
        filesystem.unmount()?;
        Ok(())
    }

    fn format_ext4(&self) -> Result<()> {
        let staging = tempfile::tempdir_in(parent(&self.path))?;
        for file in &self.files {
            // Copied, not linked: the change later must not reach the machine's own file.
            fs::copy(&file.source, staging.path().join(&file.name))
                .with_context(|| file.source.display().to_string())?;
        }
        let blocks = (self.size_bytes - PARTITION_START) / 4096;
        tool(
            Command::new("mke2fs")
                .args(["-q", "-t", "ext4", "-b", "4096", "-L", "sendense", "-E"])
                .arg(format!("offset={PARTITION_START},lazy_itable_init=1"))
                .arg("-d")
                .arg(staging.path())
                .arg(&self.path)
                .arg(blocks.to_string()),
        )
    }

    /// Changes some files as a day of use would: one in forty gets new content, one in eighty goes,
    /// a few are new. `round` makes each change different.
    ///
    /// # Errors
    /// When the filesystem cannot be changed.
    pub(super) fn change(&mut self, round: usize) -> Result<ChangeCount> {
        match self.filesystem {
            Filesystem::Fat32 => self.change_fat(round),
            Filesystem::Ext4 => self.change_ext4(round),
            Filesystem::Unknown => self.change_blocks(round),
        }
    }

    /// Splits the files into (new content, deleted) for one round.
    fn plan(&self, round: usize) -> (Vec<RealFile>, Vec<RealFile>) {
        // Small files change most; the large ones stay, as they do on a real machine.
        let small: Vec<_> = self
            .files
            .iter()
            .filter(|file| file.len_bytes < 1 << 20)
            .collect();
        let every = |step: usize, at: usize| {
            small
                .iter()
                .skip(at)
                .step_by(step)
                .map(|file| (*file).clone())
                .collect::<Vec<_>>()
        };
        (every(40, round), every(80, 20 + round))
    }

    fn change_fat(&mut self, round: usize) -> Result<ChangeCount> {
        let (changed, deleted) = self.plan(round);
        let disk = OpenOptions::new().read(true).write(true).open(&self.path)?;
        let filesystem = fatfs::FileSystem::new(Partition::open(disk)?, fatfs::FsOptions::new())?;
        let root = filesystem.root_dir();
        for file in &changed {
            let mut target = root.open_file(&file.name)?;
            target.write_all(&new_content(file, round))?;
        }
        for file in &deleted {
            root.remove(&file.name)?;
        }
        let added = self.new_files(round);
        for (name, content) in &added {
            root.create_file(name)?.write_all(content)?;
        }
        drop(root);
        filesystem.unmount()?;
        Ok(self.forget(&deleted, changed.len(), added.len()))
    }

    fn change_ext4(&mut self, round: usize) -> Result<ChangeCount> {
        let (changed, deleted) = self.plan(round);
        let staging = tempfile::tempdir_in(parent(&self.path))?;
        let mut script = String::new();
        let mut put = |name: &str, content: &[u8]| -> Result<()> {
            let source = staging.path().join(name);
            fs::write(&source, content)?;
            script.push_str(&format!("write {} {name}\n", source.display()));
            Ok(())
        };
        let added = self.new_files(round);
        for (name, content) in &added {
            put(name, content)?;
        }
        let mut removals = String::new();
        for file in &changed {
            removals.push_str(&format!("rm {}\n", file.name));
            put(&file.name, &new_content(file, round))?;
        }
        for file in &deleted {
            removals.push_str(&format!("rm {}\n", file.name));
        }
        let commands = staging.path().join("commands");
        fs::write(&commands, removals + &script)?;
        tool(
            Command::new("debugfs")
                .arg("-w")
                .arg("-f")
                .arg(&commands)
                .arg(self.ext4_device()),
        )?;
        Ok(self.forget(&deleted, changed.len(), added.len()))
    }

    /// Overwrites one block of 64 KiB in every hundred with other bytes.
    fn change_blocks(&mut self, round: usize) -> Result<ChangeCount> {
        use std::os::unix::fs::FileExt;
        let disk = OpenOptions::new().write(true).open(&self.path)?;
        let mut count = ChangeCount::default();
        let step = 6_400 << 10;
        let mut offset = (u64::try_from(round)? * 131_072) % step;
        while offset < self.size_bytes {
            let len = usize::try_from((self.size_bytes - offset).min(4096))?;
            let content: Vec<u8> = (0..len)
                .map(|i| (i * 7 + round + 1).to_le_bytes()[0])
                .collect();
            disk.write_all_at(&content, offset)?;
            count.changed += 1;
            offset += step;
        }
        Ok(count)
    }

    fn new_files(&self, round: usize) -> Vec<(String, Vec<u8>)> {
        (0..3)
            .filter_map(|i| {
                let content = fs::read(&self.files.get(i * 7 + round)?.source).ok()?;
                let short = &content[..content.len().min(256 << 10)];
                Some((format!("new-{round}-{i}.bin"), short.to_vec()))
            })
            .collect()
    }

    fn forget(&mut self, deleted: &[RealFile], changed: usize, added: usize) -> ChangeCount {
        self.files
            .retain(|file| deleted.iter().all(|gone| gone.name != file.name));
        ChangeCount {
            changed,
            added,
            deleted: deleted.len(),
        }
    }

    fn ext4_device(&self) -> String {
        format!("{}?offset={PARTITION_START}", self.path.display())
    }

    /// Reads every file of the filesystem on `image`, a raw copy of this disk.
    /// `None` where the filesystem is unknown.
    ///
    /// # Errors
    /// When the filesystem cannot be read: then the copy is not what was backed up.
    pub(super) fn contents(&self, image: &Path) -> Result<Option<Contents>> {
        match self.filesystem {
            Filesystem::Fat32 => fat_contents(image).map(Some),
            Filesystem::Ext4 => ext4_contents(image).map(Some),
            Filesystem::Unknown => Ok(None),
        }
    }
}

/// How many files (blocks, on an unknown filesystem) a change touched.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ChangeCount {
    pub(super) changed: usize,
    pub(super) added: usize,
    pub(super) deleted: usize,
}

fn fat_contents(image: &Path) -> Result<Contents> {
    let partition = Partition::open(OpenOptions::new().read(true).write(true).open(image)?)?;
    let filesystem = fatfs::FileSystem::new(partition, fatfs::FsOptions::new())?;
    let mut contents = Contents::new();
    for entry in filesystem.root_dir().iter() {
        let entry = entry?;
        if entry.is_file() {
            let mut data = Vec::new();
            entry.to_file().read_to_end(&mut data)?;
            contents.insert(entry.file_name(), fingerprint(&data));
        }
    }
    Ok(contents)
}

fn ext4_contents(image: &Path) -> Result<Contents> {
    let device = format!("{}?offset={PARTITION_START}", image.display());
    tool(Command::new("e2fsck").args(["-f", "-n"]).arg(&device))?;
    let target = tempfile::tempdir_in(parent(image))?;
    let dump = format!("rdump / {}", target.path().display());
    tool(Command::new("debugfs").arg("-R").arg(dump).arg(&device))?;
    let mut contents = Contents::new();
    for entry in fs::read_dir(target.path())? {
        let path = entry?.path();
        if path.is_file() {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            contents.insert(name, fingerprint(&fs::read(&path)?));
        }
    }
    Ok(contents)
}

fn fingerprint(data: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    hasher.finish()
}

/// The file's own bytes with every 256th changed: as long as before, other content.
fn new_content(file: &RealFile, round: usize) -> Vec<u8> {
    let mut content = fs::read(&file.source).unwrap_or_default();
    let mark = round.to_le_bytes()[0].wrapping_add(1);
    content
        .iter_mut()
        .step_by(256)
        .for_each(|byte| *byte = byte.wrapping_add(mark));
    content
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("."))
}

/// Runs a tool of the filesystem; what it says is shown only when it fails.
fn tool(command: &mut Command) -> Result<()> {
    let sbin = "/usr/sbin:/sbin:/usr/local/sbin";
    let path =
        std::env::var("PATH").map_or_else(|_| sbin.to_owned(), |path| format!("{path}:{sbin}"));
    let output = command
        .env("PATH", path)
        .output()
        .with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {said}",
        output.status
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(filesystem: Filesystem) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        let mut disk = DemoDisk::build(&path, 80 << 20, filesystem, 0).unwrap();
        let before = disk.contents(&path).unwrap().unwrap();
        for file in &disk.files {
            let original = fingerprint(&fs::read(&file.source).unwrap());
            assert_eq!(before.get(&file.name), Some(&original), "{}", file.name);
        }
        let count = disk.change(1).unwrap();
        let after = disk.contents(&path).unwrap().unwrap();
        assert!(count.changed > 0 && count.added > 0 && count.deleted > 0);
        assert_eq!(after.len(), before.len() + count.added - count.deleted);
        let changed = after
            .iter()
            .filter(|(name, hash)| before.get(*name).is_some_and(|b| b != *hash));
        assert_eq!(changed.count(), count.changed);
    }

    #[test]
    fn a_fat_disk_holds_real_files_and_changes() {
        round_trip(Filesystem::Fat32);
    }

    #[test]
    fn an_ext4_disk_holds_real_files_and_changes() {
        if Filesystem::best() == Filesystem::Ext4 {
            round_trip(Filesystem::Ext4);
        } else {
            assert!(
                std::env::var_os("CI").is_none(),
                "e2fsprogs are missing in CI"
            );
            eprintln!("SKIPPED: e2fsprogs are not installed");
        }
    }
}
