//! Hashes of a hub's images: a full of a changed filesystem leaves its differences and nothing else, and what becomes of
//! the files later is found.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow2::{
    BackingFormat, BackingName, Chain, CreateOptions, Elision, Error, FileStorage, Image,
    MemoryStorage, OpenedBacking, Opener, Storage, WriteCounters,
};
use serde_json::{Value, json};
use tests::hub::Hub;
use tests::peers::{have, run, run_ok};
use tests::{qemu, seed};

const HUB: &str = env!("CARGO_BIN_EXE_hub");
const MIB: usize = 1 << 20;
const DISK: usize = 256 * MIB;
const CLUSTER: usize = 64 * 1024;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A filesystem, and the programs that make it and change it without mounting.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Filesystem {
    Ext4,
    Fat,
}

impl Filesystem {
    fn peers(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["mke2fs", "debugfs", "e2fsck"],
            Self::Fat => &["mkfs.fat", "mcopy", "mdel", "fsck.fat"],
        }
    }

    /// Two thousand files of all sizes, about half a disk full.
    fn make(self, dir: &Path, disk: &Path, rng: &mut fastrand::Rng) {
        let staging = dir.join("staging");
        let folders = (0..20).map(|folder| staging.join(format!("d{folder}")));
        let folders: Vec<PathBuf> = folders.collect();
        for folder in &folders {
            fs::create_dir_all(folder).unwrap();
        }
        for file in 0..2000 {
            let len = (64_usize << rng.u32(0..14)) + rng.usize(0..4096);
            fs::write(
                folders[file % 20].join(format!("f{file}")),
                random(rng, len),
            )
            .unwrap();
        }
        let file = File::create_new(disk).unwrap();
        file.set_len(DISK as u64).unwrap();
        match self {
            Self::Ext4 => {
                let from = ["-q", "-t", "ext4", "-b", "4096", "-d", text(&staging)];
                run_ok("mke2fs", from.into_iter().chain([text(disk)]));
            }
            Self::Fat => {
                run_ok("mkfs.fat", ["-F", "32", text(disk)]);
                let from = ["-s", "-i", text(disk)].into_iter();
                let from = from.chain(folders.iter().map(|folder| text(folder)));
                run_ok("mcopy", from.chain(["::"]));
            }
        }
        fs::remove_dir_all(staging).unwrap();
    }

    /// Files go, others come.
    fn change(self, dir: &Path, disk: &Path, rng: &mut fastrand::Rng) {
        let gone = (0..2000).filter(|file| file % 37 == 5);
        let gone: Vec<String> = gone.map(|file| format!("d{}/f{file}", file % 20)).collect();
        let mut new = Vec::new();
        for file in 0..40 {
            let len = rng.usize(1..300_000);
            let path = dir.join(format!("new{file}"));
            fs::write(&path, random(rng, len)).unwrap();
            new.push(path);
        }
        match self {
            Self::Ext4 => {
                let mut commands: String = gone.iter().map(|file| format!("rm {file}\n")).collect();
                commands.push_str("cd d3\n");
                for (file, path) in new.iter().enumerate() {
                    commands.push_str(&format!("write {} new{file}\n", text(path)));
                }
                let script = dir.join("commands");
                fs::write(&script, commands).unwrap();
                run_ok("debugfs", ["-w", "-f", text(&script), text(disk)]);
                run_ok("e2fsck", ["-fn", text(disk)]);
            }
            Self::Fat => {
                let on_disk = ["-i", text(disk)];
                let gone: Vec<String> = gone.iter().map(|file| format!("::{file}")).collect();
                run_ok(
                    "mdel",
                    on_disk.into_iter().chain(gone.iter().map(String::as_str)),
                );
                let new = new.iter().map(|path| text(path));
                run_ok("mcopy", on_disk.into_iter().chain(new).chain(["::d3"]));
                run_ok("fsck.fat", ["-n", text(disk)]);
            }
        }
    }
}

fn random(rng: &mut fastrand::Rng, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    rng.fill(&mut data);
    data
}

/// The bytes of a disk, in a file without holes: whoever copies it sends every cluster whole.
fn flat(disk: &Path, copy: &Path) -> Vec<u8> {
    let bytes = fs::read(disk).unwrap();
    assert_eq!(bytes.len(), DISK);
    fs::write(copy, &bytes).unwrap();
    bytes
}

/// What a comparison of two disks, cluster by cluster, says of the second one pushed onto the first.
fn counted(old: &[u8], new: &[u8]) -> WriteCounters {
    let mut counters = WriteCounters {
        received_bytes: new.len() as u64,
        ..WriteCounters::default()
    };
    for (old, new) in old.chunks(CLUSTER).zip(new.chunks(CLUSTER)) {
        let counter = if new.iter().all(|byte| *byte == 0) {
            &mut counters.zero_bytes
        } else if old == new {
            &mut counters.equal_bytes
        } else {
            &mut counters.stored_bytes
        };
        *counter += new.len() as u64;
    }
    counters
}

/// Pushes a whole disk into a backup. Returns the image and the counters that the API shows.
async fn push(hub: &Hub, kind: &str, disk: &Path) -> (PathBuf, WriteCounters) {
    let (status, started) = hub.start_backup("vm1", kind).await;
    assert_eq!(status, 200, "{started}");
    let id = started["backup_id"].as_str().unwrap().to_owned();
    let url = started["disk_results"][0]["nbd_url"].as_str().unwrap();
    run_ok("nbdcopy", ["--allocated", text(disk), url]);
    let body = json!({"disk_id": 0, "change_id": format!("{kind}-{id}/1")});
    let (status, answer) = hub
        .post(&format!("/api/v1/backups/{id}/complete"), &body)
        .await;
    assert_eq!(status, 200, "{answer}");
    let (_, disks) = hub.get(&format!("/api/v1/backups/{id}/disks")).await;
    let row = &disks["disks"][0];
    let figure = |name: &str| {
        row[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name} in {row}"))
    };
    let counters = WriteCounters {
        received_bytes: figure("received_bytes"),
        zero_bytes: figure("zero_bytes"),
        equal_bytes: figure("equal_bytes"),
        stored_bytes: figure("stored_bytes"),
    };
    (PathBuf::from(row["image_path"].as_str().unwrap()), counters)
}

/// A parent's files by path.
struct Files;

impl Opener for Files {
    fn open_backing(&self, _: &BackingName, _: &str) -> Result<OpenedBacking, Error> {
        unreachable!("a full has no backing file")
    }

    fn open_hashes(&self, of: &str) -> Option<Arc<dyn Storage>> {
        let file = File::open(format!("{of}.hashes")).unwrap();
        Some(Arc::new(FileStorage::new(file)))
    }
}

/// The same push without a hub.
fn push_with(elision: Elision, parent: &Path, disk: &[u8]) -> WriteCounters {
    let file = Arc::new(FileStorage::new(File::open(parent).unwrap()));
    let chain = Chain::open(file, text(parent), BackingFormat::Qcow2, &Files).unwrap();
    let backing = BackingName {
        name: text(parent).to_owned(),
        format: Some(BackingFormat::Qcow2),
    };
    let options = CreateOptions {
        backing: Some(backing),
        ..CreateOptions::new(disk.len() as u64)
    };
    let storage = Arc::new(MemoryStorage::new());
    let image = Image::create(storage, &options, Some(Arc::new(chain))).unwrap();
    let image = image.with_elision(elision);
    for (index, part) in disk.chunks(MIB).enumerate() {
        image.write((index * MIB) as u64, part).unwrap();
    }
    image.counters()
}

/// `image verify`: its exit status, and what it says of the first file, the tip.
fn verify(image: &Path, part: &str) -> (Option<i32>, Vec<Value>) {
    let output = run(
        HUB,
        ["image", "verify", text(image), "--json", "--part", part],
    );
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code(), said.as_array().unwrap().clone())
}

/// A full of a filesystem, and an increment that got the whole of it again after it had changed.
struct Points {
    hub: Hub,
    full: PathBuf,
    image: PathBuf,
    /// The disk as the increment has it, and what it says that it stored of it.
    copy: PathBuf,
    counters: WriteCounters,
}

/// Pushes a filesystem, changes it and pushes it whole again: what is stored is what changed, and it all reads back.
/// `None` where a peer is missing.
async fn push_twice(filesystem: Filesystem, dir: &Path) -> Option<Points> {
    let mut peers = ["qemu-img", "nbdcopy"].iter().chain(filesystem.peers());
    if !peers.all(|peer| have(peer)) {
        return None;
    }
    let mut rng = seed::rng("changed_filesystem");
    let [disk, copy] = ["disk.raw", "copy.raw"].map(|name| dir.join(name));
    filesystem.make(dir, &disk, &mut rng);
    let old = flat(&disk, &copy);
    let hub = Hub::start(HUB, &dir.join("hub"));
    hub.register("vm1", &[DISK as u64]).await;
    let (full, counters) = push(&hub, "full", &copy).await;
    assert_eq!(counters, counted(&vec![0; DISK], &old));

    filesystem.change(dir, &disk, &mut rng);
    let new = flat(&disk, &copy);
    let expected = counted(&old, &new);
    assert!(expected.stored_bytes > 0 && expected.equal_bytes > 10 * expected.stored_bytes);
    let (image, counters) = push(&hub, "incremental", &copy).await;
    assert_eq!(counters, expected);
    assert_eq!(push_with(Elision::Hash, &full, &new), expected);
    assert_eq!(push_with(Elision::Read, &full, &new), expected);
    qemu::assert_clean(&image);
    qemu::assert_reads_like(&image, &disk);

    let (status, files) = verify(&image, "1/1");
    assert_eq!(status, Some(0), "{files:?}");
    let checked = files
        .iter()
        .map(|file| file["checked-clusters"].as_u64().unwrap());
    let stored = expected.stored_bytes + old.len() as u64 - counted(&old, &old).zero_bytes;
    assert_eq!(checked.sum::<u64>(), stored / CLUSTER as u64);
    Some(Points {
        hub,
        full,
        image,
        copy,
        counters,
    })
}

#[tokio::test]
async fn a_full_of_a_changed_fat_stores_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    push_twice(Filesystem::Fat, dir.path()).await;
}

#[tokio::test]
async fn a_full_of_a_changed_ext4_stores_what_changed_and_damage_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let Some(points) = push_twice(Filesystem::Ext4, dir.path()).await else {
        return;
    };
    let Points {
        hub,
        full,
        image,
        copy,
        counters: expected,
    } = points;

    // A byte of the full's data rots: the place on the disk is named, in the part that reads it.
    let map = run_ok(
        "qemu-img",
        ["map", "-f", "qcow2", "--output=json", text(&full)],
    );
    let map: Vec<Value> = serde_json::from_str(&map).unwrap();
    let extent = map.iter().find(|extent| extent["data"] == true).unwrap();
    let at = |name: &str| extent[name].as_u64().unwrap();
    let file = File::options().read(true).write(true).open(&full).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at("offset") + 1000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at("offset") + 1000)
        .unwrap();
    let (status, files) = verify(&image, "1/1");
    assert_eq!(status, Some(2));
    assert_eq!(
        (&files[0]["state"], &files[1]["state"]),
        (&json!("good"), &json!("damaged"))
    );
    let damage = json!([{"start": at("start"), "length": CLUSTER, "kind": "content"}]);
    assert_eq!(files[1]["damages"], damage);
    let found = (1..=3).filter(|part| verify(&image, &format!("{part}/3")).0 == Some(2));
    assert_eq!(found.count(), 1);
    file.write_all_at(&byte, at("offset") + 1000).unwrap();

    // Without its hashes nobody can tell.
    fs::remove_file(format!("{}.hashes", text(&full))).unwrap();
    let (status, files) = verify(&image, "1/1");
    assert_eq!(status, Some(1));
    assert_eq!(
        (&files[0]["state"], &files[1]["state"]),
        (&json!("good"), &json!("failed"))
    );
    // And the next backup compares bytes instead.
    let (_, counters) = push(&hub, "incremental", &copy).await;
    assert_eq!(counters.stored_bytes, 0);
    assert_eq!(
        counters.equal_bytes,
        expected.stored_bytes + expected.equal_bytes
    );
}
