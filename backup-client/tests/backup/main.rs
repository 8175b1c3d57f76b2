//! The whole client against a hub of a few lines and a real NBD server.
#![expect(clippy::unwrap_used, reason = "a panic in a test is the report")]

mod cli;
mod fake_hub;
mod nbd;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use backup_client::{BackupOptions, BackupReport, BackupType, Error, ErrorKind, Silent, backup};
use fake_hub::FakeHub;

const BLOCK: usize = 64 << 10;
const MIB: usize = 1 << 20;

/// Pseudo-random bytes, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

/// A folder with source disks and tracking states, and a hub.
struct Scene {
    folder: tempfile::TempDir,
    hub: FakeHub,
}

impl Scene {
    async fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            hub: FakeHub::start().await,
        }
    }

    fn disk(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn options(&self, disks: &[&Path]) -> BackupOptions {
        let disks = disks
            .iter()
            .map(|path| path.to_str().unwrap().parse().unwrap());
        BackupOptions {
            state_dir: Some(self.folder.path().join("state")),
            token: Some("s3cret".to_owned().into()),
            ..BackupOptions::new(self.hub.url(), "web 01/ü", disks.collect())
        }
    }

    async fn run(&self, disks: &[&Path]) -> Result<BackupReport, Error> {
        backup(self.options(disks), &Silent).await
    }
}

fn names(report: &BackupReport) -> Vec<&str> {
    report.warnings.iter().map(|warning| warning.name).collect()
}

#[tokio::test]
async fn a_full_and_an_increment_of_two_disks_arrive_byte_for_byte() {
    let scene = Scene::new().await;
    let mut first = noise(1, 5 * MIB + 1000);
    first[MIB..3 * MIB].fill(0);
    let second = noise(2, 3 * MIB);
    let (one, two) = (
        scene.disk("one.img", &first),
        scene.disk("two.img", &second),
    );

    let full = scene.run(&[&one, &two]).await.unwrap();
    assert_eq!(full.backup_type, "full");
    assert_eq!(names(&full), [""; 0]);
    assert_eq!(scene.hub.content(0), first);
    assert_eq!(scene.hub.content(1), second);
    assert_eq!(full.disks[0].zero_bytes, 2 * MIB as u64);
    assert_eq!(full.disks[0].sent_bytes, (3 * MIB + 1000) as u64);
    assert_eq!(full.disks[0].disk_id, "disk-2000");
    assert!(
        scene.hub.flushed(0) && scene.hub.flushed(1),
        "completed without a flush"
    );

    // One block of data, one of zeroes, and the odd tail change; the second disk stays as it is.
    first[7 * BLOCK + 5] ^= 1;
    first[9 * BLOCK..10 * BLOCK].fill(0);
    first[5 * MIB + 999] ^= 1;
    fs::write(&one, &first).unwrap();
    scene.hub.forget_writes();
    let increment = scene.run(&[&one, &two]).await.unwrap();
    assert_eq!(increment.backup_type, "incremental");
    assert_eq!(names(&increment), [""; 0]);
    assert_eq!(scene.hub.content(0), first);
    assert_eq!(scene.hub.content(1), second);
    let expected = [
        (7 * BLOCK as u64, BLOCK as u64),
        (9 * BLOCK as u64, BLOCK as u64),
        (5 * MIB as u64, 1000),
    ];
    assert_eq!(scene.hub.touched(0), expected);
    assert_eq!(scene.hub.touched(1), []);
    assert_eq!(increment.disks[0].sent_bytes, BLOCK as u64 + 1000);
    assert_eq!(increment.disks[0].zero_bytes, BLOCK as u64);
    assert_eq!(increment.disks[1].unchanged_bytes, second.len() as u64);

    // The same epoch, the next generation.
    let (before, after) = (&full.disks[0].change_id, &increment.disks[0].change_id);
    assert_eq!(before.replace("/1", "/2"), *after);
}

#[tokio::test]
async fn without_a_matching_state_everything_is_sent_and_the_reason_told() {
    let scene = Scene::new().await;
    let content = noise(3, 2 * MIB);
    let disk = scene.disk("disk.img", &content);
    scene.run(&[&disk]).await.unwrap();

    let state = fs::read_dir(scene.folder.path().join("state"))
        .unwrap()
        .next()
        .unwrap();
    let state = state.unwrap().path().join("disk-2000.track");
    let intact = fs::read(&state).unwrap();
    let expect_everything = async |name: &str| {
        scene.hub.forget_writes();
        let report = scene.run(&[&disk]).await.unwrap();
        assert_eq!(report.backup_type, "incremental");
        assert_eq!(names(&report), [name]);
        assert_eq!(scene.hub.touched_bytes(0), content.len() as u64, "{name}");
        // What was written goes on from here.
        let next = scene.run(&[&disk]).await.unwrap();
        assert_eq!(
            (names(&next), next.disks[0].sent_bytes),
            (vec![], 0),
            "{name}"
        );
    };

    fs::remove_file(&state).unwrap();
    expect_everything("tracking-state-missing").await;

    let mut damaged = intact.clone();
    damaged[4200] ^= 0x10;
    fs::write(&state, damaged).unwrap();
    expect_everything("tracking-state-damaged").await;

    // A state of an earlier run, as from a node that was set back.
    fs::write(&state, &intact).unwrap();
    expect_everything("other-base-at-hub").await;
}

#[tokio::test]
async fn a_state_set_back_is_not_trusted_even_when_the_change_id_agrees() {
    let scene = Scene::new().await;
    let old = noise(4, MIB);
    let disk = scene.disk("disk.img", &old);
    let first = scene.run(&[&disk]).await.unwrap();
    // The hub's latest point has the same change id, but another backup made it, with other content.
    scene
        .hub
        .pretend_latest("backup-other-9", &[(0, &first.disks[0].change_id)]);
    let report = scene.run(&[&disk]).await.unwrap();
    assert_eq!(names(&report), ["other-base-at-hub"]);
    assert_eq!(report.disks[0].unchanged_bytes, 0);
}

#[tokio::test]
async fn a_resized_disk_is_sent_whole() {
    let scene = Scene::new().await;
    let disk = scene.disk("disk.img", &noise(5, MIB));
    scene.run(&[&disk]).await.unwrap();
    let grown = noise(5, 2 * MIB);
    fs::write(&disk, &grown).unwrap();
    let report = scene.run(&[&disk]).await.unwrap();
    assert_eq!(names(&report), ["disk-size-changed"]);
    assert_eq!(scene.hub.content(0), grown);
}

#[tokio::test]
async fn tracking_can_be_left_out() {
    let scene = Scene::new().await;
    let content = noise(6, MIB);
    let disk = scene.disk("disk.img", &content);
    for _ in 0..2 {
        let mut options = scene.options(&[&disk]);
        options.state_dir = None;
        let report = backup(options, &Silent).await.unwrap();
        assert_eq!(
            (names(&report), report.disks[0].unchanged_bytes),
            (vec![], 0)
        );
    }
    assert!(!scene.folder.path().join("state").exists());
}

#[tokio::test]
async fn the_asked_type_is_what_the_hub_is_asked_for() {
    let scene = Scene::new().await;
    let disk = scene.disk("disk.img", &noise(7, MIB));
    let mut options = scene.options(&[&disk]);
    options.backup_type = BackupType::Incremental;
    let error = backup(options, &Silent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Hub);
    let text = error.full_text();
    assert!(
        text.contains("no previous backup found: full backup required before incremental"),
        "{text}"
    );

    scene.run(&[&disk]).await.unwrap();
    let mut options = scene.options(&[&disk]);
    options.backup_type = BackupType::Full;
    let report = backup(options, &Silent).await.unwrap();
    assert_eq!(report.backup_type, "full");
    assert_eq!(report.disks[0].sent_bytes, MIB as u64);
    assert!(
        report.disks[0].change_id.ends_with("/2"),
        "{}",
        report.disks[0].change_id
    );
}

#[tokio::test]
async fn an_error_of_the_export_ends_the_job_and_keeps_the_state() {
    let scene = Scene::new().await;
    let mut content = noise(8, 4 * MIB);
    let disk = scene.disk("disk.img", &content);
    scene.run(&[&disk]).await.unwrap();

    content = noise(9, 4 * MIB);
    fs::write(&disk, &content).unwrap();
    scene.hub.fail_writes_at(0, 2 * MIB as u64 + 77);
    let error = scene.run(&[&disk]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Target);
    let text = error.full_text();
    for part in ["backup=backup-", "disk-2000", "offset=2097152", "ENOSPC"] {
        assert!(text.contains(part), "{part} not in: {text}");
    }
    assert_eq!(scene.hub.cancelled(), 1);

    // The point of the state is still the hub's latest, so the next run compares with it again.
    scene.hub.heal();
    let report = scene.run(&[&disk]).await.unwrap();
    assert_eq!(names(&report), [""; 0]);
    assert_eq!(scene.hub.content(0), content);
}

#[tokio::test]
async fn a_server_that_vanishes_ends_the_job() {
    let scene = Scene::new().await;
    let disk = scene.disk("disk.img", &noise(10, 4 * MIB));
    scene.hub.vanish_at(0, MIB as u64);
    let error = scene.run(&[&disk]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Target);
    assert!(
        error.full_text().contains("connection lost"),
        "{}",
        error.full_text()
    );
    assert_eq!(scene.hub.cancelled(), 1);
}

#[tokio::test]
async fn cancelling_ends_the_job_at_the_hub() {
    let scene = Scene::new().await;
    let disk = scene.disk("disk.img", &noise(11, 4 * MIB));
    scene.hub.hang_at(0, MIB as u64);
    let options = scene.options(&[&disk]);
    let cancel = options.cancel.clone();
    let running = tokio::spawn(async move { backup(options, &Silent).await });
    scene.hub.hanging().await;
    cancel.cancel();
    let error = running.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(scene.hub.cancelled(), 1);
}

#[tokio::test]
async fn a_completion_that_was_lost_on_the_way_back_is_found_out() {
    let scene = Scene::new().await;
    let content = noise(12, MIB);
    let disk = scene.disk("disk.img", &content);
    scene.hub.break_complete_after_effect();
    let report = scene.run(&[&disk]).await.unwrap();
    assert_eq!(report.disks.len(), 1);
    assert_eq!(scene.hub.content(0), content);
    // The state came into force: nothing is sent again.
    let next = scene.run(&[&disk]).await.unwrap();
    assert_eq!((names(&next), next.disks[0].sent_bytes), (vec![], 0));
}

#[tokio::test]
async fn a_source_written_while_it_is_read_is_named() {
    let scene = Scene::new().await;
    let disk = scene.disk("disk.img", &noise(13, 2 * MIB));
    scene.hub.hang_at(0, MIB as u64);
    let options = scene.options(&[&disk]);
    let running = tokio::spawn(async move { backup(options, &Silent).await });
    scene.hub.hanging().await;
    let file = fs::File::options().write(true).open(&disk).unwrap();
    file.write_all_at(&[1; 10], 0).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    scene.hub.heal();
    let report = running.await.unwrap().unwrap();
    assert_eq!(names(&report), ["source-modified"]);

    scene.hub.hang_at(0, MIB as u64);
    let mut options = scene.options(&[&disk]);
    options.backup_type = BackupType::Full;
    let running = tokio::spawn(async move { backup(options, &Silent).await });
    scene.hub.hanging().await;
    file.set_len(3 * MIB as u64).unwrap();
    scene.hub.heal();
    let error = running.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Source);
    assert!(
        error.full_text().contains("its size changed"),
        "{}",
        error.full_text()
    );
    assert_eq!(scene.hub.cancelled(), 1);
}

#[tokio::test]
async fn one_connection_where_the_server_promises_no_more() {
    let scene = Scene::new().await;
    let content = noise(14, 4 * MIB);
    let disk = scene.disk("disk.img", &content);
    scene.hub.no_multi_conn();
    scene.run(&[&disk]).await.unwrap();
    assert_eq!(scene.hub.content(0), content);
    assert_eq!(scene.hub.most_connections(), 1);
}

#[tokio::test]
async fn the_token_is_sent_and_never_shown() {
    let scene = Scene::new().await;
    let disk = scene.disk("disk.img", &noise(15, MIB));
    assert!(!format!("{:?}", scene.options(&[&disk])).contains("s3cret"));
    scene.run(&[&disk]).await.unwrap();
    assert_eq!(scene.hub.authorization(), "Bearer s3cret");
}

#[tokio::test]
async fn nonsense_is_refused_before_the_hub_is_asked() {
    let scene = Scene::new().await;
    let disk = scene.disk("disk.img", &[1; 512]);
    let mut no_disk = scene.options(&[]);
    no_disk.connections = 1;
    let mut no_name = scene.options(&[&disk]);
    no_name.vm_name = "..".to_owned();
    let mut no_connection = scene.options(&[&disk]);
    no_connection.connections = 0;
    let mut no_url = scene.options(&[&disk]);
    no_url.hub = "ftp://hub".to_owned();
    for options in [no_disk, no_name, no_connection, no_url] {
        let error = backup(options, &Silent).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{}", error.full_text());
    }
    assert_eq!(scene.hub.calls(), 0);
}
