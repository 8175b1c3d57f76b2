//! What the tests of this folder share.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use nbd_server::{ByteRange, Export, Exports, Peer, Zero};
use time::macros::datetime;

use crate::export::OpenExport;
use crate::workflow::Hooks;
use crate::*;

pub(super) const VM: &str = "pgtest1";
pub(super) const KIB: usize = 1024;

/// Two disks; the second is not a whole number of sectors.
pub(super) const SIZES: [usize; 2] = [2048 * KIB, 1000 * KIB + 77];

pub(super) struct World {
    pub(super) folder: tempfile::TempDir,
    pub(super) clock: Arc<ManualClock>,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            clock: Arc::new(ManualClock::at(datetime!(2025-10-10 12:00:00 UTC))),
        }
    }

    pub(super) fn config(&self) -> EngineConfig {
        EngineConfig {
            data_dir: self.folder.path().join("data"),
            database: None,
            nbd_advertise: "127.0.0.1:10809".to_owned(),
            // Port 9 is discard: nobody answers.
            node_url: "http://127.0.0.1:9".to_owned(),
            vcenter_node_urls: Default::default(),
            private_exports: false,
            credential_key: Some(Secret::new("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=")),
            watch: WatchLimits::default(),
            extended_headers: true,
        }
    }

    pub(super) async fn open(&self) -> Engine {
        self.open_with(Hooks::default()).await
    }

    pub(super) async fn open_with(&self, hooks: Hooks) -> Engine {
        Engine::open_with(self.config(), self.clock.clone(), hooks)
            .await
            .unwrap()
    }

    /// A hub that knows the VM.
    pub(super) async fn open_with_vm(&self) -> Engine {
        let engine = self.open().await;
        engine.register_vm(vm(VM, &SIZES)).await.unwrap();
        engine
    }

    pub(super) fn repository(&self) -> PathBuf {
        self.folder
            .path()
            .join("data/repositories/local")
            .canonicalize()
            .unwrap()
    }

    /// Names of all files of the repository, sorted.
    pub(super) fn files(&self) -> Vec<String> {
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut found: Vec<_> = self.paths().into_iter().map(name).collect();
        found.sort();
        found
    }

    fn paths(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.repository()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path);
                }
            }
        }
        found
    }

    pub(super) fn image_paths(&self) -> Vec<PathBuf> {
        let is_image = |path: &PathBuf| path.extension().is_some_and(|it| it == "qcow2");
        self.paths().into_iter().filter(is_image).collect()
    }

    pub(super) fn images(&self) -> Vec<String> {
        self.files()
            .into_iter()
            .filter(|name| name.ends_with(".qcow2"))
            .collect()
    }

    /// Every published image has its hashes, they and the manifest are those of the image, and nothing else is there.
    pub(super) fn assert_hashed(&self, what: &str) {
        let files = self.files();
        let ending = |end: &str| files.iter().filter(|name| name.ends_with(end)).count();
        let images = self.image_paths();
        assert_eq!(ending(".hashes"), images.len(), "{what} {files:?}");
        assert_eq!(files.len(), 3 * images.len(), "{what} {files:?}");
        for image in images {
            let beside = |end: &str| PathBuf::from(format!("{}.{end}", image.display()));
            let open = |path: &Path| {
                let file = std::fs::File::open(path).unwrap();
                Arc::new(qcow2::FileStorage::new(file))
            };
            let hashes = open(&beside("hashes"));
            let root = qcow2::Hashes::open(hashes.clone()).unwrap().root();
            let manifest = std::fs::read(beside("json")).unwrap();
            let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
            assert_eq!(
                manifest["qcow2_info"]["hashes_root"],
                root.to_string(),
                "{what}"
            );
            let report = qcow2::verify(open(&image), hashes, qcow2::Subset::ALL).unwrap();
            assert_eq!(report.damages, [], "{what} {}", image.display());
        }
    }

    /// Writes the disk of a point to a file and returns what is in it.
    pub(super) async fn restore(&self, engine: &Engine, id: &BackupId, disk: u32) -> Vec<u8> {
        let target = self.folder.path().join(format!("restored-{id}-{disk}.raw"));
        let size = engine
            .restore_disk(id, DiskIndex::new(disk), &target)
            .await
            .unwrap();
        let content = std::fs::read(&target).unwrap();
        std::fs::remove_file(&target).unwrap();
        assert_eq!(content.len() as u64, size);
        content
    }

    /// Every disk of a point reads as expected, and `compare_disk` agrees.
    pub(super) async fn assert_point(&self, engine: &Engine, id: &BackupId, disks: &[Vec<u8>]) {
        for (disk, expected) in (0..).zip(disks) {
            let content = self.restore(engine, id, disk).await;
            assert_same(&content, expected, &format!("backup={id} disk={disk}"));
            let raw = self.folder.path().join("expected.raw");
            std::fs::write(&raw, expected).unwrap();
            let compared = engine
                .compare_disk(id, DiskIndex::new(disk), &raw)
                .await
                .unwrap();
            assert_eq!(
                compared,
                Comparison::Equal {
                    compared_bytes: expected.len() as u64
                }
            );
        }
    }
}

pub(super) fn assert_same(content: &[u8], expected: &[u8], what: &str) {
    assert_eq!(content.len(), expected.len(), "{what}");
    if let Some(at) = content.iter().zip(expected).position(|(a, b)| a != b) {
        panic!(
            "{what}: first difference at {at}: {} instead of {}",
            content[at], expected[at]
        );
    }
}

pub(super) fn vm(name: &str, sizes: &[usize]) -> NewVm {
    NewVm {
        vm_name: name.to_owned(),
        vm_path: format!("/DC/vm/{name}"),
        vmware_vm_id: format!("vm-{name}"),
        vcenter_host: "vc.example".to_owned(),
        datacenter: "DC".to_owned(),
        credential_id: None,
        disks: (2000..)
            .zip(sizes)
            .map(|(key, size)| NewVmDisk {
                disk_id: format!("disk-{key}"),
                capacity_bytes: *size as u64,
                label: String::new(),
            })
            .collect(),
    }
}

pub(super) fn request(backup_type: RequestedType) -> StartBackup {
    StartBackup {
        vm_name: VM.to_owned(),
        repository_id: RepositoryId::parse("local").unwrap(),
        backup_type,
        transfer: Transfer::Direct,
        policy_id: None,
    }
}

pub(super) async fn start(engine: &Engine, backup_type: RequestedType) -> StartedBackup {
    engine.start_backup(request(backup_type)).await.unwrap()
}

pub(super) fn completion(id: &BackupId, disk: u32, change_id: &str) -> CompleteDisk {
    CompleteDisk {
        backup_id: id.clone(),
        disk_index: DiskIndex::new(disk),
        change_id: ChangeId::parse(change_id).unwrap(),
    }
}

pub(super) async fn complete(engine: &Engine, id: &BackupId, disk: u32, change_id: &str) {
    engine
        .complete_disk(completion(id, disk, change_id))
        .await
        .unwrap();
}

pub(super) async fn try_connect(
    engine: &Engine,
    name: &str,
) -> Result<OpenExport, nbd_server::OpenError> {
    let peer = Peer {
        address: "test".to_owned(),
        name: None,
    };
    let name = nbd_server::ExportName::new(name).unwrap();
    engine.exports().open(&name, &peer).await
}

pub(super) async fn connect(engine: &Engine, disk: &PreparedDisk) -> OpenExport {
    try_connect(engine, disk.export_name.as_str())
        .await
        .unwrap()
}

pub(super) fn range(offset: usize, len: usize) -> ByteRange {
    ByteRange {
        offset: offset as u64,
        len_bytes: len as u64,
    }
}

pub(super) async fn write(session: &OpenExport, offset: usize, data: &[u8]) {
    session
        .write(offset as u64, Bytes::copy_from_slice(data))
        .await
        .unwrap();
}

/// What a client with no change tracking does: everything, zeroes as zeroes.
pub(super) async fn push_everything(session: &OpenExport, content: &[u8]) {
    for (index, piece) in content.chunks(256 * KIB).enumerate() {
        let offset = index * 256 * KIB;
        if piece.iter().all(|byte| *byte == 0) {
            session
                .zero(range(offset, piece.len()), Zero::MayUnmap)
                .await
                .unwrap();
        } else {
            write(session, offset, piece).await;
        }
    }
}

/// What a client with change tracking does: the ranges that differ, rounded out to 4 KiB.
pub(super) async fn push_changes(session: &OpenExport, old: &[u8], new: &[u8]) {
    for offset in (0..new.len()).step_by(4 * KIB) {
        let end = (offset + 4 * KIB).min(new.len());
        if old[offset..end] != new[offset..end] {
            write(session, offset, &new[offset..end]).await;
        }
    }
}

/// A disk with data, holes and blocks of zeroes.
pub(super) fn content(random: &mut fastrand::Rng, size: usize) -> Vec<u8> {
    let mut disk = vec![0; size];
    for block in disk.chunks_mut(64 * KIB) {
        if random.u8(..) < 160 {
            random.fill(block);
        }
    }
    disk
}

/// Changes some places: small ones, whole clusters, and some to zero.
pub(super) fn changed(random: &mut fastrand::Rng, disk: &[u8]) -> Vec<u8> {
    let mut new = disk.to_vec();
    for _ in 0..6 {
        let len = [1, 512, 5000, 64 * KIB, 200_000][random.usize(..5)].min(new.len());
        let at = random.usize(..=new.len() - len);
        if random.bool() {
            random.fill(&mut new[at..at + len]);
        } else {
            new[at..at + len].fill(0);
        }
    }
    new
}

/// A generator whose seed stands in the output of a failed test.
pub(super) fn seeded(seed: u64) -> fastrand::Rng {
    println!("seed={seed}");
    fastrand::Rng::with_seed(seed)
}

pub(super) fn disks(random: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    SIZES.iter().map(|size| content(random, *size)).collect()
}

/// A full backup of `disks`, completed with change ids `d{n}/{serial}`.
pub(super) async fn full(engine: &Engine, disks: &[Vec<u8>], serial: u32) -> BackupId {
    let started = start(engine, RequestedType::Full).await;
    for (prepared, content) in started.disks.iter().zip(disks) {
        push_everything(&connect(engine, prepared).await, content).await;
    }
    finish(engine, &started, serial).await
}

/// An increment from `old` to `new`.
pub(super) async fn increment(
    engine: &Engine,
    old: &[Vec<u8>],
    new: &[Vec<u8>],
    serial: u32,
) -> BackupId {
    let started = start(engine, RequestedType::Incremental).await;
    assert_eq!(started.backup.backup_type, BackupType::Incremental);
    for ((prepared, old), new) in started.disks.iter().zip(old).zip(new) {
        push_changes(&connect(engine, prepared).await, old, new).await;
    }
    finish(engine, &started, serial).await
}

pub(super) async fn finish(engine: &Engine, started: &StartedBackup, serial: u32) -> BackupId {
    for disk in &started.disks {
        let n = disk.disk_index.get();
        complete(engine, &started.backup.id, n, &format!("d{n}/{serial}")).await;
    }
    let backup = engine.backup(&started.backup.id).await.unwrap();
    assert_eq!(backup.status, JobStatus::Completed);
    assert_eq!(backup.intent, None);
    started.backup.id.clone()
}

/// Runs a tool of QEMU; `None`, loudly, where it is not installed and nobody insists (`CI`).
pub(super) fn qemu_img(arguments: &[&str], file: &Path) -> Option<String> {
    let output = match std::process::Command::new("qemu-img")
        .args(arguments)
        .arg(file)
        .output()
    {
        Ok(output) => output,
        Err(error) => {
            assert!(
                std::env::var_os("CI").is_none(),
                "qemu-img is needed: {error}"
            );
            eprintln!("SKIPPED: qemu-img is not installed: {error}");
            return None;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(text)
}

/// Waits for an event that must come.
pub(super) async fn deadline<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(30), event)
        .await
        .expect("the event comes in time")
}

/// A backup in no particular state.
pub(crate) fn any_backup() -> Backup {
    let at = datetime!(2025-10-10 12:00:00 UTC);
    Backup {
        id: BackupId::parse("backup-web-1").unwrap(),
        vm_context_id: VmContextId::parse("ctx-web").unwrap(),
        context_id: None,
        vm_name: "web".to_owned(),
        repository_id: RepositoryId::parse("local").unwrap(),
        policy_id: None,
        backup_type: BackupType::Full,
        type_reason: None,
        transfer: None,
        status: JobStatus::Running,
        intent: None,
        current_phase: String::new(),
        file_path: PARENT_MARKER.to_owned(),
        bytes_transferred: 0,
        total_bytes: 0,
        disks_count: 1,
        change_id: None,
        error_message: None,
        transfer_speed_bps: 0,
        eta_seconds: 0,
        progress_percent: 0.0,
        created_at: at,
        started_at: Some(at),
        completed_at: None,
        last_telemetry_at: None,
    }
}
