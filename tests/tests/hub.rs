//! The hub as operators run it: the real programs, real clients, kill -9.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::hub::Hub;
use tests::peers::{have, run, run_ok};
use tests::raw_disk::{make as make_disk, scribble};
use tests::wire::Wire;
use tests::{qemu, seed};

const HUB: &str = env!("CARGO_BIN_EXE_hub");
const CLIENT: &str = env!("CARGO_BIN_EXE_client");
const MIB: u64 = 1 << 20;

fn images(hub: &Hub) -> Vec<PathBuf> {
    hub.repository_files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "qcow2"))
        .collect()
}

fn partials(hub: &Hub) -> Vec<PathBuf> {
    let is_partial = |path: &PathBuf| path.to_string_lossy().contains(".partial");
    hub.repository_files()
        .into_iter()
        .filter(is_partial)
        .collect()
}

fn backup_with_client(hub: &Hub, state: &Path, backup_type: &str, disks: &[PathBuf]) {
    let mut command = Command::new(CLIENT);
    command
        .args([
            "backup",
            "--hub",
            &hub.api,
            "--vm",
            "web1",
            "--type",
            backup_type,
            "--state",
        ])
        .arg(state);
    for disk in disks {
        command.arg("--disk").arg(disk);
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The newest backup of a VM and its disks, as the API shows them.
async fn newest(hub: &Hub, vm: &str) -> (Value, Vec<Value>) {
    let (status, list) = hub.get(&format!("/api/v1/backups?vm_name={vm}")).await;
    assert_eq!(status, 200, "{list}");
    let backup = list["backups"][0].clone();
    let id = backup["backup_id"].as_str().unwrap();
    let (status, disks) = hub.get(&format!("/api/v1/backups/{id}/disks")).await;
    assert_eq!(status, 200, "{disks}");
    (backup, disks["disks"].as_array().unwrap().clone())
}

#[tokio::test]
async fn a_full_and_two_increments_of_two_disks_read_back_byte_for_byte() {
    if !have("qemu-img") {
        return;
    }
    let mut rng = seed::rng("full_and_increments");
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let hub = Hub::start(HUB, &dir.path().join("hub"));
    let disks = [dir.path().join("a.raw"), dir.path().join("b.raw")];
    make_disk(&disks[0], 96 * MIB, &mut rng);
    // An odd size: the last cluster is a part of one.
    make_disk(&disks[1], 33 * MIB + 512, &mut rng);

    let mut points = Vec::new();
    for (number, backup_type) in ["full", "incremental", "auto"].into_iter().enumerate() {
        if number > 0 {
            for disk in &disks {
                scribble(disk, 10, &mut rng);
            }
        }
        backup_with_client(&hub, &state, backup_type, &disks);
        let (backup, rows) = newest(&hub, "web1").await;
        assert_eq!(backup["status"], "completed");
        assert_eq!(backup["disks_count"], 2);
        assert_eq!(
            backup["backup_type"],
            if number == 0 { "full" } else { "incremental" }
        );
        for (index, disk) in disks.iter().enumerate() {
            let copy = dir.path().join(format!("point-{number}-disk-{index}.raw"));
            fs::copy(disk, &copy).unwrap();
            let image = PathBuf::from(rows[index]["image_path"].as_str().unwrap());
            assert_eq!(rows[index]["status"], "completed");
            points.push((image, copy, number));
            if number > 0 {
                let stored = rows[index]["stored_bytes"].as_u64().unwrap();
                assert!(
                    stored < 8 * MIB,
                    "an increment stores what differs: {}",
                    rows[index]
                );
            }
        }
    }
    for (image, copy, depth) in &points {
        qemu::assert_clean(image);
        qemu::assert_reads_like(image, copy);
        let chain = qemu::backing_chain(image);
        assert_eq!(
            chain.len(),
            depth + 1,
            "every increment stands on the one before"
        );
        for layer in chain
            .iter()
            .filter(|layer| layer.get("backing-filename").is_some())
        {
            let name = layer["backing-filename"].as_str().unwrap();
            assert!(!name.contains('/'), "a repository can be moved: {name}");
            assert_eq!(layer["backing-filename-format"], "qcow2");
        }
    }
    // The whole repository can be moved: names inside are relative.
    let moved = dir.path().join("moved");
    fs::rename(hub.data.join("repositories"), &moved).unwrap();
    let (image, copy, _) = points.last().unwrap();
    let image = moved.join(image.strip_prefix(hub.data.join("repositories")).unwrap());
    qemu::assert_reads_like(&image, copy);
}

#[tokio::test]
async fn nbdcopy_pushes_a_backup_without_our_client() {
    if !have("nbdcopy") || !have("qemu-img") {
        return;
    }
    let mut rng = seed::rng("nbdcopy_pushes");
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.raw");
    make_disk(&disk, 64 * MIB, &mut rng);
    let hub = Hub::start(HUB, &dir.path().join("hub"));
    hub.register("db1", &[64 * MIB]).await;
    let (status, started) = hub.start_backup("db1", "full").await;
    assert_eq!(status, 200, "{started}");
    assert_eq!(started["status"], "started");
    let id = started["backup_id"].as_str().unwrap();
    let url = started["disk_results"][0]["nbd_url"].as_str().unwrap();
    run_ok("nbdcopy", [disk.to_str().unwrap(), url]);

    // Not complete, so not a backup: no image has its final name.
    assert_eq!(images(&hub), Vec::<PathBuf>::new());
    let body = json!({"change_id": "epoch/1", "disk_id": 0, "bytes_transferred": 0});
    let (status, answer) = hub
        .post(&format!("/api/v1/backups/{id}/complete"), &body)
        .await;
    assert_eq!(status, 200, "{answer}");
    let (status, again) = hub
        .post(&format!("/api/v1/backups/{id}/complete"), &body)
        .await;
    assert_eq!(status, 200, "completion is idempotent: {again}");

    let published = images(&hub);
    assert_eq!(published.len(), 1);
    qemu::assert_clean(&published[0]);
    qemu::assert_reads_like(&published[0], &disk);
    let (_, change_id) = hub
        .get("/api/v1/backups/changeid?vm_name=db1&disk_id=0")
        .await;
    assert_eq!(change_id["change_id"], "epoch/1");
    assert_eq!(change_id["disk_id"], "0");
}

#[tokio::test]
async fn bad_requests_get_their_answers() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(HUB, dir.path());
    hub.register("vm1", &[MIB]).await;
    let repository = hub.repository().await;
    let start = |vm: &str, repository: &str, kind: &str| json!({"vm_name": vm, "repository_id": repository, "backup_type": kind, "transfer": "direct"});
    for (body, status, error) in [
        (start("nobody", &repository, "full"), 404, "VM not found"),
        (
            start("vm1", "repo-nowhere", "full"),
            404,
            "repository not found",
        ),
        (
            start("vm1", &repository, "incremental"),
            400,
            "no previous backup found",
        ),
        (start("", &repository, "full"), 400, "vm_name is required"),
        (start("vm1", "", "full"), 400, "repository_id is required"),
        (
            start("vm1", &repository, "weekly"),
            400,
            "backup_type must be 'full' or 'incremental'",
        ),
    ] {
        let (got, answer) = hub.post("/api/v1/backups", &body).await;
        assert_eq!(
            (got, answer["error"].as_str()),
            (status, Some(error)),
            "{body}: {answer}"
        );
        assert_eq!(answer["timestamp"], "");
    }
    assert_eq!(hub.get("/api/v1/backups?vm_name=nobody").await.0, 404);
    assert_eq!(hub.get("/api/v1/backups/backup-none-1").await.0, 404);
    let complete = json!({"change_id": "a/1", "disk_id": 0});
    assert_eq!(
        hub.post("/api/v1/backups/backup-none-1/complete", &complete)
            .await
            .0,
        404
    );
    assert_eq!(hub.get("/api/v1/nothing").await.0, 404);

    let (status, first) = hub.start_backup("vm1", "full").await;
    assert_eq!(status, 200, "{first}");
    let (status, second) = hub.start_backup("vm1", "full").await;
    assert_eq!(status, 409, "{second}");
    let id = first["backup_id"].as_str().unwrap();
    assert!(
        second["details"].as_str().unwrap().contains(id),
        "the running job is named: {second}"
    );
    for body in [
        json!({"disk_id": 0}),
        json!({"change_id": "", "disk_id": 0}),
    ] {
        let (status, answer) = hub
            .post(&format!("/api/v1/backups/{id}/complete"), &body)
            .await;
        assert_eq!(
            (status, answer["error"].as_str()),
            (400, Some("missing change_id")),
            "{answer}"
        );
    }
    let wrong_disk = json!({"change_id": "a/1", "disk_id": 7});
    assert_eq!(
        hub.post(&format!("/api/v1/backups/{id}/complete"), &wrong_disk)
            .await
            .0,
        404
    );
    // None of it left anything behind that was not asked for.
    assert_eq!(partials(&hub).len(), hub.repository_files().len());
    let (status, health) = hub.get("/health").await;
    assert_eq!((status, health["status"].as_str()), (200, Some("healthy")));
}

/// Starts a full of one VM and returns (backup id, export names).
async fn start_full(hub: &Hub, vm: &str, sizes: &[u64]) -> (String, Vec<String>) {
    hub.register(vm, sizes).await;
    let (status, started) = hub.start_backup(vm, "full").await;
    assert_eq!(status, 200, "{started}");
    let disks = started["disk_results"].as_array().unwrap();
    let exports = disks
        .iter()
        .map(|disk| disk["nbd_export_name"].as_str().unwrap().to_owned())
        .collect();
    (started["backup_id"].as_str().unwrap().to_owned(), exports)
}

async fn complete(hub: &Hub, id: &str, disk: usize) -> u16 {
    let body = json!({"change_id": format!("epoch-{id}/1"), "disk_id": disk});
    hub.post(&format!("/api/v1/backups/{id}/complete"), &body)
        .await
        .0
}

#[tokio::test]
async fn a_client_that_vanishes_in_the_middle_of_a_write_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(HUB, dir.path());
    let (id, exports) = start_full(&hub, "vm1", &[64 * MIB]).await;
    let mut steady = Wire::open(hub.nbd, &exports[0]);
    let pattern = vec![0x5a; 1 << 20];
    assert_eq!(steady.write(40 * MIB, &pattern), 0);

    let mut vanishing = Wire::open(hub.nbd, &exports[0]);
    vanishing.send_header(0, 1, 0, 32 << 20);
    vanishing.send(&vec![0xee; 5 << 20]).unwrap();
    drop(vanishing);

    assert_eq!(steady.write(50 * MIB, &pattern), 0);
    assert_eq!(steady.flush(), 0);
    assert_eq!(complete(&hub, &id, 0).await, 200);
    // A late write on the connection that is still open is refused, never applied.
    let late = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| steady.write(0, &pattern)));
    assert!(
        late.is_err() || late.unwrap() != 0,
        "a write after completion must not succeed"
    );
    let published = images(&hub);
    assert_eq!(published.len(), 1);
    if have("qemu-img") {
        qemu::assert_clean(&published[0]);
        let raw = dir.path().join("out.raw");
        run_ok(
            "qemu-img",
            [
                "convert",
                "-O",
                "raw",
                published[0].to_str().unwrap(),
                raw.to_str().unwrap(),
            ],
        );
        let file = File::open(&raw).unwrap();
        let mut read = vec![0; 1 << 20];
        file.read_exact_at(&mut read, 50 * MIB).unwrap();
        assert_eq!(read, pattern);
    }
}

#[tokio::test]
async fn out_of_range_and_oversize_requests_leave_the_connection_alive() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(HUB, dir.path());
    let (_, exports) = start_full(&hub, "vm1", &[MIB]).await;
    let mut wire = Wire::open(hub.nbd, &exports[0]);
    const ENOSPC: u32 = 28;
    const EINVAL: u32 = 22;
    assert_eq!(
        wire.write(MIB - 100, &[1; 101]),
        ENOSPC,
        "one byte beyond the end"
    );
    assert_eq!(
        wire.write(u64::MAX - 10, &[1; 100]),
        ENOSPC,
        "an offset that overflows"
    );
    let oversize = vec![7; (64 << 20) + 1];
    assert_eq!(wire.write(0, &oversize), EINVAL, "drained and refused");
    wire.send_header(0, 99, 0, 0);
    assert_eq!(wire.reply().unwrap().0, EINVAL, "an unknown command");
    assert_eq!(wire.write(1, &[9; 3]), 0, "no alignment is asked for");
    assert_eq!(wire.write(5, &[]), 0, "nothing is something to answer, too");
}

#[tokio::test]
async fn a_killed_hub_leaves_nothing_that_could_become_a_parent() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("hub");
    // One good point first: it must survive everything.
    let hub = Hub::start(HUB, &data);
    let (id, exports) = start_full(&hub, "vm1", &[8 * MIB, 4 * MIB]).await;
    for (index, export) in exports.iter().enumerate() {
        assert_eq!(
            Wire::open(hub.nbd, export).write(0, &[index.to_le_bytes()[0] + 1; 65_536]),
            0
        );
        assert_eq!(complete(&hub, &id, index).await, 200);
    }
    let good = hub.repository_files();
    hub.kill();

    for stage in 0..4 {
        let hub = Hub::start(HUB, &data);
        let (status, started) = hub.start_backup("vm1", "incremental").await;
        assert_eq!(status, 200, "stage {stage}: {started}");
        let attempt = started["backup_id"].as_str().unwrap().to_owned();
        let export = |index: usize| {
            started["disk_results"][index]["nbd_export_name"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        if stage >= 1 {
            let mut wire = Wire::open(hub.nbd, &export(0));
            assert_eq!(wire.write(0, &vec![0xbb; 1 << 20]), 0);
            if stage >= 2 {
                assert_eq!(wire.flush(), 0);
            }
        }
        if stage >= 3 {
            assert_eq!(complete(&hub, &attempt, 0).await, 200, "one of two disks");
        }
        hub.kill();

        let hub = Hub::start(HUB, &data);
        let (status, backup) = hub.get(&format!("/api/v1/backups/{attempt}")).await;
        assert_eq!(
            (status, backup["status"].as_str()),
            (200, Some("failed")),
            "stage {stage}: {backup}"
        );
        assert_eq!(
            hub.repository_files(),
            good,
            "stage {stage}: only the good point's files are there"
        );
        for disk in 0..2 {
            let (_, answer) = hub
                .get(&format!(
                    "/api/v1/backups/changeid?vm_name=vm1&disk_id={disk}"
                ))
                .await;
            assert_eq!(
                answer["change_id"],
                format!("epoch-{id}/1"),
                "stage {stage} disk {disk}"
            );
        }
        hub.kill();
    }
    if have("qemu-img") {
        good.iter()
            .filter(|path| path.extension().is_some_and(|e| e == "qcow2"))
            .for_each(|p| qemu::assert_clean(p));
    }
}

#[tokio::test]
async fn a_client_that_never_comes_and_one_that_goes_are_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(HUB);
    command.env("SENDENSE_START_TIMEOUT", "1");
    command.env("SENDENSE_GONE_GRACE", "1");
    let hub = Hub::spawn(command, dir.path());
    let (never, _) = start_full(&hub, "vm1", &[4 * MIB]).await;
    let (gone, exports) = start_full(&hub, "vm2", &[4 * MIB]).await;
    assert_eq!(
        Wire::open(hub.nbd, &exports[0]).write(0, &[1; 65_536]),
        0,
        "the connection ends here"
    );
    for (id, reason) in [(never, "client never came"), (gone, "client is gone")] {
        let backup = wait_for_status(&hub, &id, "failed").await;
        let told = backup["error_message"].as_str().unwrap();
        assert!(told.starts_with(reason), "{told}");
    }
    assert_eq!(hub.repository_files(), Vec::<PathBuf>::new());
    for vm in ["vm1", "vm2"] {
        assert_eq!(hub.start_backup(vm, "full").await.0, 200);
    }
}

#[tokio::test]
async fn a_full_disk_fails_the_job_and_publishes_nothing() {
    let namespaces = have("unshare") && run("unshare", ["-rm", "true"]).status.success();
    if !namespaces {
        tests::peers::missing("a mount namespace (unshare -rm)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // 24 MiB of space for a disk of 64 MiB; the mount is the hub's own and goes with it.
    let mut command = Command::new("unshare");
    let script = format!(
        "mount -t tmpfs -o size=24m tmpfs {} && exec \"$@\"",
        dir.path().display()
    );
    command.args(["-rm", "sh", "-c", &script, "sh", HUB]);
    let hub = Hub::spawn(command, dir.path());
    let (id, exports) = start_full(&hub, "vm1", &[64 * MIB]).await;
    let mut rng = seed::rng("a_full_disk");
    let mut block = vec![0; 1 << 20];
    let mut error = 0;
    let mut wire = Wire::open(hub.nbd, &exports[0]);
    for number in 0..64 {
        rng.fill(&mut block);
        wire.send_header(0, 1, number * MIB, 1 << 20);
        if wire.send(&block).is_err() {
            break;
        }
        match wire.reply() {
            Ok((0, _)) => {}
            Ok((code, _)) => {
                error = code;
                break;
            }
            Err(_) => break,
        }
    }
    assert_eq!(error, 28, "the client is told ENOSPC");
    // The job fails at once, without the client's help.
    let backup = wait_for_status(&hub, &id, "failed").await;
    let message = backup["error_message"]
        .as_str()
        .unwrap_or_default()
        .to_lowercase();
    assert!(
        message.contains("space"),
        "the message names the reason: {backup}"
    );
    assert_ne!(
        complete(&hub, &id, 0).await,
        200,
        "a failed job cannot be completed"
    );
    let (_, answer) = hub
        .get("/api/v1/backups/changeid?vm_name=vm1&disk_id=0")
        .await;
    assert_eq!(answer["change_id"], "");
    // The space is free again: a small disk fits.
    let (id, exports) = start_full(&hub, "vm2", &[8 * MIB]).await;
    assert_eq!(Wire::open(hub.nbd, &exports[0]).write(0, &block), 0);
    assert_eq!(complete(&hub, &id, 0).await, 200);
}

async fn wait_for_status(hub: &Hub, id: &str, status: &str) -> Value {
    let end = tokio::time::Instant::now() + tests::hub::DEADLINE;
    loop {
        let (_, backup) = hub.get(&format!("/api/v1/backups/{id}")).await;
        if backup["status"] == status {
            return backup;
        }
        assert!(tokio::time::Instant::now() < end, "still {backup}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_full_pushed_into_an_increment_keeps_only_the_differences() {
    if !have("qemu-img") || !have("nbdcopy") {
        return;
    }
    let mut rng = seed::rng("full_into_increment");
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.raw");
    make_disk(&disk, 64 * MIB, &mut rng);
    let hub = Hub::start(HUB, &dir.path().join("hub"));
    hub.register("vm1", &[64 * MIB]).await;
    for kind in ["full", "incremental"] {
        if kind == "incremental" {
            scribble(&disk, 5, &mut rng);
        }
        let (status, started) = hub.start_backup("vm1", kind).await;
        assert_eq!(status, 200, "{started}");
        let id = started["backup_id"].as_str().unwrap().to_owned();
        let url = started["disk_results"][0]["nbd_url"].as_str().unwrap();
        // Everything, zeroes included: what a client without change tracking sends.
        run_ok("nbdcopy", ["--allocated", disk.to_str().unwrap(), url]);
        assert_eq!(complete(&hub, &id, 0).await, 200);
    }
    let (_, rows) = newest(&hub, "vm1").await;
    let figure = |name: &str| {
        rows[0][name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name} in {}", rows[0]))
    };
    assert!(figure("stored_bytes") < 2 * MIB, "{}", rows[0]);
    assert_eq!(
        figure("received_bytes"),
        figure("zero_bytes") + figure("equal_bytes") + figure("stored_bytes")
    );
    let image = PathBuf::from(rows[0]["image_path"].as_str().unwrap());
    qemu::assert_clean(&image);
    qemu::assert_reads_like(&image, &disk);
}

#[tokio::test]
async fn an_orderly_stop_ends_with_zero_and_the_hub_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(HUB, dir.path());
    let (id, exports) = start_full(&hub, "vm1", &[MIB]).await;
    assert_eq!(Wire::open(hub.nbd, &exports[0]).write(0, &[1; 512]), 0);
    assert_eq!(complete(&hub, &id, 0).await, 200);
    assert_eq!(hub.stop().code(), Some(0));
    let hub = Hub::start(HUB, dir.path());
    let (status, backup) = hub.get(&format!("/api/v1/backups/{id}")).await;
    assert_eq!(
        (status, backup["status"].as_str()),
        (200, Some("completed"))
    );
}
