//! The real program is killed at every step of a two-disk backup. Whatever the step, the next start leaves no export, no
//! partial file, no running row and no lock, keeps the good point, and takes the next backup of the VM.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use tests::hub::{DEADLINE, Hub};
use tests::wire::Wire;

const HUB: &str = env!("CARGO_BIN_EXE_hub");
const MIB: u64 = 1 << 20;

/// When the hub is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// While the start is being answered, as soon as a file of it is there.
    Starting,
    /// The start is answered.
    Started,
    /// A write is answered.
    FirstWrite,
    /// Half a write is sent.
    HalfWrite,
    /// The first disk is being completed.
    FirstCompletion,
    /// The first disk is complete.
    BetweenDisks,
    /// The second disk has data.
    SecondWrite,
    /// The last disk is being sealed.
    LastCompletion,
    /// An image is being given its final name.
    Publishing,
    /// The last disk is complete.
    Completed,
    /// A cancellation is under way.
    Cancelling,
    /// The finished increment is being deleted.
    Deleting,
}

const MOMENTS: [Moment; 12] = [
    Moment::Starting,
    Moment::Started,
    Moment::FirstWrite,
    Moment::HalfWrite,
    Moment::FirstCompletion,
    Moment::BetweenDisks,
    Moment::SecondWrite,
    Moment::LastCompletion,
    Moment::Publishing,
    Moment::Completed,
    Moment::Cancelling,
    Moment::Deleting,
];

/// A call whose answer nobody waits for.
fn fire(hub: &Hub, method: &str, path: &str, body: &Value) -> TcpStream {
    let address = hub.api.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let body = body.to_string();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: hub\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Waits until a file below `folder` is as wanted, or the call is answered: then the moment is over.
fn wait_for_file(call: &mut TcpStream, folder: &Path, wanted: impl Fn(&Path) -> bool) {
    call.set_nonblocking(true).unwrap();
    let start = Instant::now();
    while !is_there(folder, &wanted) {
        assert!(
            start.elapsed() < DEADLINE,
            "neither the file nor the answer came"
        );
        if matches!(call.read(&mut [0; 64]), Ok(1..)) {
            return;
        }
    }
}

/// Whether such a file is below the folder. Others come and go meanwhile.
fn is_there(folder: &Path, wanted: &impl Fn(&Path) -> bool) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| {
        if path.is_dir() {
            is_there(&path, wanted)
        } else {
            wanted(&path)
        }
    })
}

fn ends_with(ending: &'static str) -> impl Fn(&Path) -> bool {
    move |path| path.to_string_lossy().ends_with(ending)
}

async fn start(hub: &Hub, backup_type: &str) -> (String, Vec<String>) {
    let (status, started) = hub.start_backup("vm1", backup_type).await;
    assert_eq!(status, 200, "{started}");
    let disks = started["disk_results"].as_array().unwrap().iter();
    let exports = disks.map(|disk| disk["nbd_export_name"].as_str().unwrap().to_owned());
    let id = started["backup_id"].as_str().unwrap().to_owned();
    (id, exports.collect())
}

fn completion(id: &str, disk: usize) -> Value {
    json!({"change_id": format!("epoch-{id}/{disk}"), "disk_id": disk})
}

async fn complete(hub: &Hub, id: &str, disk: usize) {
    let path = format!("/api/v1/backups/{id}/complete");
    let (status, answer) = hub.post(&path, &completion(id, disk)).await;
    assert_eq!(status, 200, "{answer}");
}

/// Runs an increment up to the moment and kills the hub there. Returns the exports that clients know.
async fn live_until(moment: Moment, hub: Hub, good: &[PathBuf]) -> Vec<String> {
    let repositories = hub.data.join("repositories");
    let is_new = |path: &Path| !good.iter().any(|known| known == path);
    if moment == Moment::Starting {
        let body = json!({
            "vm_name": "vm1", "repository_id": hub.repository().await, "backup_type": "incremental",
            "transfer": "direct"
        });
        let mut call = fire(&hub, "POST", "/api/v1/backups", &body);
        wait_for_file(&mut call, &repositories, is_new);
        hub.kill();
        return Vec::new();
    }
    let (id, exports) = start(&hub, "incremental").await;
    let complete_path = format!("/api/v1/backups/{id}/complete");
    let fire_completion = |disk| fire(&hub, "POST", &complete_path, &completion(&id, disk));
    // The calls stay open until the hub is gone.
    let mut calls = Vec::new();
    let mut wires = Vec::new();
    if moment > Moment::Started {
        let mut wire = Wire::open(hub.nbd, &exports[0]);
        assert_eq!(wire.write(0, &vec![0xb0; 3 << 20]), 0);
        if moment == Moment::HalfWrite {
            wire.send_header(0, 1, 4 * MIB, 2 << 20);
            wire.send(&vec![0xb1; 1 << 20]).unwrap();
        }
        wires.push(wire);
    }
    if moment == Moment::FirstCompletion {
        calls.push(fire_completion(0));
        wait_for_file(
            calls.last_mut().unwrap(),
            &repositories,
            ends_with(".json.partial"),
        );
    }
    if moment > Moment::FirstCompletion {
        complete(&hub, &id, 0).await;
    }
    if moment > Moment::BetweenDisks {
        let mut wire = Wire::open(hub.nbd, &exports[1]);
        assert_eq!(wire.write(MIB, &vec![0xb2; 2 << 20]), 0);
        wires.push(wire);
    }
    if moment == Moment::LastCompletion || moment == Moment::Publishing {
        calls.push(fire_completion(1));
        let is_sealed = |path: &Path| {
            let path = path.to_string_lossy();
            path.contains("-disk1-") && path.ends_with(".json.partial")
        };
        let is_published = |path: &Path| is_new(path) && ends_with(".hashes")(path);
        let call = calls.last_mut().unwrap();
        match moment {
            Moment::LastCompletion => wait_for_file(call, &repositories, is_sealed),
            _ => wait_for_file(call, &repositories, is_published),
        }
    }
    if moment == Moment::Completed || moment == Moment::Deleting {
        complete(&hub, &id, 1).await;
    }
    if moment == Moment::Cancelling {
        let path = format!("/api/v1/backups/{id}/cancel");
        calls.push(fire(&hub, "POST", &path, &Value::Null));
    }
    if moment == Moment::Deleting {
        let path = format!("/api/v1/backups/{id}");
        calls.push(fire(&hub, "DELETE", &path, &Value::Null));
    }
    hub.kill();
    exports
}

/// Whether the server finds an export of this name.
fn is_served(hub: &Hub, export: &str) -> bool {
    let mut stream = TcpStream::connect(hub.nbd).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut hello = [0; 18];
    stream.read_exact(&mut hello).unwrap();
    let mut option = 3_u32.to_be_bytes().to_vec();
    option.extend(b"IHAVEOPT");
    option.extend(1_u32.to_be_bytes());
    option.extend(u32::try_from(export.len()).unwrap().to_be_bytes());
    option.extend(export.as_bytes());
    stream.write_all(&option).unwrap();
    stream.read_exact(&mut [0; 10]).is_ok()
}

/// The hub that starts after the kill; `good` are the files of the good point.
async fn assert_clean(what: &str, hub: &Hub, exports: &[String], base: &str, good: &[PathBuf]) {
    let (_, list) = hub.get("/api/v1/backups?vm_name=vm1").await;
    for backup in list["backups"].as_array().unwrap() {
        let status = backup["status"].as_str().unwrap();
        let ended = ["completed", "failed", "cancelled"].contains(&status);
        assert!(ended, "{what}: {backup}");
    }
    for export in exports {
        assert!(!is_served(hub, export), "{what}: {export} is still served");
    }
    let files = hub.repository_files();
    let partial = files.iter().find(|path| ends_with(".partial")(path));
    assert_eq!(partial, None, "{what}");
    assert!(
        good.iter().all(|path| files.contains(path)),
        "{what}: {files:?}"
    );
    // The point that was being made is there with all its disks, or not at all.
    let completed = list["backups"].as_array().unwrap().iter();
    let completed = completed
        .filter(|backup| backup["status"] == "completed")
        .count();
    assert_eq!(files.len(), 6 * completed, "{what}: {files:?}");
    // The next backup of the VM starts, on the newest good point.
    let (id, _) = start(hub, "incremental").await;
    let (_, disks) = hub.get(&format!("/api/v1/backups/{id}/disks")).await;
    let parent = disks["disks"][0]["parent_backup_id"].as_str().unwrap();
    assert_eq!(parent == base, completed == 1, "{what}: {disks}");
    let (status, _) = hub
        .post(&format!("/api/v1/backups/{id}/cancel"), &Value::Null)
        .await;
    assert_eq!(status, 200, "{what}");
    // And what is left of this round goes, so that the next one begins with the good point alone.
    for backup in list["backups"].as_array().unwrap() {
        let old = backup["backup_id"].as_str().unwrap();
        if old != base {
            let (status, answer) = hub.delete(&format!("/api/v1/backups/{old}")).await;
            assert_eq!(status, 200, "{what}: {answer}");
        }
    }
    assert_eq!(hub.repository_files(), good, "{what}");
}

#[tokio::test]
async fn a_hub_that_is_killed_at_any_step_starts_clean() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("hub");
    let hub = Hub::start(HUB, &data);
    hub.register("vm1", &[8 * MIB, 4 * MIB]).await;
    let (base, exports) = start(&hub, "full").await;
    for (disk, export) in exports.iter().enumerate() {
        assert_eq!(
            Wire::open(hub.nbd, export).write(0, &vec![0xaa; 1 << 20]),
            0
        );
        complete(&hub, &base, disk).await;
    }
    let good = hub.repository_files();
    let mut next = Some(hub);
    for moment in MOMENTS {
        let hub = next.take().unwrap();
        let exports = live_until(moment, hub, &good).await;
        let hub = Hub::start(HUB, &data);
        assert_clean(&format!("{moment:?}"), &hub, &exports, &base, &good).await;
        next = Some(hub);
    }
}
