//! What clients of the legacy hub rely on, one test for each of its behaviours, with its node and its backup client as peers.
//!
//! | behaviour | test |
//! |---|---|
//! | a start prepares all disks of the VM | `a_start_prepares_every_disk` |
//! | ids and export names | `names_fit_what_clients_do_with_them` |
//! | exports accept before the node is told | `exports_accept_before_the_node_is_told` |
//! | the node's call, and its refusals | `the_node_gets_ten_fields`, `a_refusal_of_the_node_leaves_nothing`, `a_point_that_was_delivered_stays_whatever_the_node_answers` |
//! | real device keys | `targets_carry_the_device_keys` |
//! | handshake, connections, commands | `the_wire_is_as_the_client_expects` here, and `nbd.rs` |
//! | sizes; zeroes mask the parent; the full that comes as an increment | `a_full_and_increments_of_two_disks` |
//! | change ids | `change_ids_are_strings_and_those_of_the_parent`, `a_second_full_is_a_full` |
//! | parents | `a_failed_backup_is_nobodys_parent` |
//! | completion | `a_completion_may_be_repeated_and_must_name_a_change_id`, `a_backup_is_complete_with_its_last_disk` |
//! | one running backup per VM | `a_vm_has_one_running_backup` |
//! | lists | `lists_hold_backups_newest_first` |
//! | refusals per family | `refusals_have_the_shape_of_their_family` |
//! | tables and files | `tables_and_columns_have_their_names`, `files_lie_where_the_legacy_hub_put_them` |

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::hub::Hub;
use tests::legacy::{Behaviour, Node, VirtualDisk};
use tests::peers::{have, have_python_libnbd, run_ok};
use tests::wire::Wire;
use tests::{qemu, seed};

const HUB: &str = env!("CARGO_BIN_EXE_hub");
const MIB: u64 = 1 << 20;
const PASSWORD: &str = "s3cret & \"quoted\"";
/// base64 of 32 bytes.
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// A hub with a node, and one VM that both know.
struct World {
    dir: tempfile::TempDir,
    node: Node,
    hub: Hub,
    disks: Vec<VirtualDisk>,
    rng: fastrand::Rng,
}

impl World {
    /// A VM `web01` with disks of these device keys and sizes; `None` where a peer is missing.
    async fn new(test: &str, disks: &[(u32, u64)]) -> Option<Self> {
        if !(have_python_libnbd() && have("qemu-img")) {
            return None;
        }
        let mut rng = seed::rng(test);
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(dir.path()).await;
        let mut command = Command::new(HUB);
        command
            .env("SENDENSE_SNA", &node.url)
            .env("MIGRATEKIT_CRED_ENCRYPTION_KEY", KEY);
        let hub = Hub::spawn(command, &dir.path().join("hub"));
        node.serves(&hub);
        let disks: Vec<_> = disks
            .iter()
            .map(|&(key, size)| {
                let path = dir.path().join(format!("{key}.raw"));
                VirtualDisk::new(key, path, size, &mut rng)
            })
            .collect();
        node.holds(&disks, None);
        let world = Self {
            dir,
            node,
            hub,
            disks,
            rng,
        };
        world.register().await;
        Some(world)
    }

    async fn register(&self) {
        let credential = json!({
            "credential_name": "lab", "vcenter_host": "vc.lab", "username": "backup", "password": PASSWORD
        });
        let (status, credential) = self
            .hub
            .post("/api/v1/vmware-credentials", &credential)
            .await;
        assert_eq!(status, 201, "{credential}");
        let disks: Vec<_> = self
            .disks
            .iter()
            .map(|disk| {
                let size = disk.path.metadata().unwrap().len();
                json!({"disk_id": format!("disk-{}", disk.key), "capacity_bytes": size})
            })
            .collect();
        let vm = json!({
            "vm_name": "web01", "vm_path": "/DC1/vm/web01", "vmware_vm_id": "vm-17", "vcenter_host": "vc.lab",
            "datacenter": "DC1", "credential_id": credential["id"], "disks": disks
        });
        let (status, answer) = self.hub.post("/api/v1/vm-contexts", &vm).await;
        assert_eq!(status, 201, "{answer}");
    }

    async fn start(&self, backup_type: &str) -> (u16, Value) {
        let body = json!({
            "vm_name": "web01", "repository_id": self.hub.repository().await, "backup_type": backup_type
        });
        self.hub.post("/api/v1/backups", &body).await
    }

    /// Starts a backup that must start; returns its id.
    async fn started(&self, backup_type: &str) -> String {
        let (status, answer) = self.start(backup_type).await;
        assert_eq!(status, 200, "{answer}");
        answer["backup_id"].as_str().unwrap().to_owned()
    }

    /// Runs a backup to its end with the node's client.
    async fn backed_up(&self, backup_type: &str) -> String {
        let id = self.started(backup_type).await;
        assert!(
            self.node.client_succeeded().await,
            "{}",
            self.backup(&id).await
        );
        let backup = self.backup(&id).await;
        assert_eq!(backup["status"], "completed", "{backup}");
        id
    }

    async fn backup(&self, id: &str) -> Value {
        let (status, backup) = self.hub.get(&format!("/api/v1/backups/{id}")).await;
        assert_eq!(status, 200, "{backup}");
        backup
    }

    async fn disk_rows(&self, id: &str) -> Vec<Value> {
        let (status, answer) = self.hub.get(&format!("/api/v1/backups/{id}/disks")).await;
        assert_eq!(status, 200, "{answer}");
        answer["disks"].as_array().unwrap().clone()
    }

    async fn image(&self, id: &str, disk: usize) -> PathBuf {
        let rows = self.disk_rows(id).await;
        PathBuf::from(rows[disk]["image_path"].as_str().unwrap())
    }

    /// The fields of a change id answer, all of which must be strings.
    async fn change_id(&self, query: &str) -> Value {
        let (status, answer) = self
            .hub
            .get(&format!("/api/v1/backups/changeid?{query}"))
            .await;
        assert_eq!(status, 200, "{answer}");
        for (name, value) in answer.as_object().unwrap() {
            assert!(value.is_string(), "the client reads only strings: {name}");
        }
        answer
    }

    async fn complete(&self, id: &str, disk: usize, change_id: &str) -> (u16, Value) {
        let body = json!({"change_id": change_id, "disk_id": disk, "bytes_transferred": 0});
        let path = format!("/api/v1/backups/{id}/complete");
        self.hub.post(&path, &body).await
    }

    async fn cancel(&self, id: &str) {
        let path = format!("/api/v1/backups/{id}/cancel");
        let (status, answer) = self.hub.post(&path, &json!({})).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// Keeps the disks as they are now, to compare a point with later.
    fn copies(&self, name: &str) -> Vec<PathBuf> {
        let copy = |disk: &VirtualDisk| {
            let copy = self.dir.path().join(format!("{name}-{}.raw", disk.key));
            std::fs::copy(&disk.path, &copy).unwrap();
            copy
        };
        self.disks.iter().map(copy).collect()
    }

    async fn assert_reads_like(&self, id: &str, copies: &[PathBuf]) {
        for (disk, copy) in copies.iter().enumerate() {
            let image = self.image(id, disk).await;
            qemu::assert_clean(&image);
            qemu::assert_reads_like(&image, copy);
        }
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("{name} in {value}"))
}

#[tokio::test]
async fn a_start_prepares_every_disk() {
    let Some(world) = World::new("a_start", &[(2000, 8 * MIB), (2001, 4 * MIB)]).await else {
        return;
    };
    world.node.behave(Behaviour::Pretend);
    let (status, answer) = world.start("full").await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["status"], "started");
    assert_eq!(answer["vm_name"], "web01");
    assert_eq!(answer["backup_type"], "full");
    assert_eq!(answer["type"], "full");
    let results = answer["disk_results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for (index, result) in results.iter().enumerate() {
        assert_eq!(result["disk_id"], index);
        assert_eq!(result["nbd_port"], world.hub.nbd.port());
        assert_eq!(result["status"], "prepared");
        assert!(result["qemu_nbd_pid"].is_u64(), "{result}");
        assert!(text(result, "qcow2_path").ends_with(".qcow2"));
        let target = format!(
            "{}:nbd://127.0.0.1:{}/{}",
            2000 + index,
            world.hub.nbd.port(),
            text(result, "nbd_export_name")
        );
        let targets: Vec<_> = text(&answer, "nbd_targets_string").split(',').collect();
        assert_eq!(targets[index], target);
    }
    // A legacy client may still name one disk; a backup is of the whole VM.
    world.cancel(text(&answer, "backup_id")).await;
    let body = json!({
        "vm_name": "web01", "repository_id": world.hub.repository().await, "backup_type": "full", "disk_id": 1,
        "tags": {"why": "test"}
    });
    let (status, answer) = world.hub.post("/api/v1/backups", &body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["disk_results"].as_array().unwrap().len(), 2);
    assert_eq!(answer["tags"]["why"], "test");
}

#[tokio::test]
async fn names_fit_what_clients_do_with_them() {
    let Some(world) = World::new("names", &[(2000, MIB)]).await else {
        return;
    };
    let repository = world.hub.repository().await;
    let mut ids = HashSet::new();
    for vm in [
        "plain",
        "x-disk3-y",
        "with space/and ümläut?#%&,:",
        &"long".repeat(60),
        "a-disk0",
    ] {
        world.hub.register(vm, &[MIB]).await;
        let body = json!({
            "vm_name": vm, "repository_id": repository, "backup_type": "full", "transfer": "direct"
        });
        for _ in 0..2 {
            let (status, answer) = world.hub.post("/api/v1/backups", &body).await;
            assert_eq!(status, 200, "{answer}");
            let id = text(&answer, "backup_id");
            assert!(id.starts_with("backup-") && id.len() <= 64, "{id}");
            let safe = |name: &str| {
                name.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            };
            assert!(safe(id), "{id} is a file name and part of a URL");
            // The client takes a disk index from `-disk<number>-` anywhere in a job's id.
            let poisoned = id.split("-disk").skip(1).any(|rest| {
                let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit());
                digits.len() < rest.len() && digits.starts_with('-')
            });
            assert!(!poisoned, "{id}");
            let export = text(&answer["disk_results"][0], "nbd_export_name");
            assert!(safe(export) && export.ends_with("disk0"), "{export}");
            assert!(ids.insert(id.to_owned()), "{id} was given twice");
            world.cancel(id).await;
        }
    }
}

#[tokio::test]
async fn the_node_gets_ten_fields() {
    let Some(world) = World::new("ten_fields", &[(2000, MIB)]).await else {
        return;
    };
    world.node.behave(Behaviour::Pretend);
    let (_, answer) = world.start("full").await;
    let start = world.node.starts().pop().unwrap();
    let expected = json!({
        "job_id": answer["backup_id"], "vm_name": "web01", "vcenter_host": "vc.lab", "vcenter_user": "backup",
        "vcenter_password": PASSWORD, "vm_path": "/DC1/vm/web01", "nbd_host": "127.0.0.1",
        "nbd_targets": answer["nbd_targets_string"], "backup_type": "full", "previous_change_id": "PLACEHOLDER"
    });
    assert_eq!(start, expected);
    assert!(
        !answer.to_string().contains("s3cret"),
        "the password never comes back"
    );
}

#[tokio::test]
async fn a_refusal_of_the_node_leaves_nothing() {
    let Some(world) = World::new("node_refuses", &[(2000, MIB), (2001, MIB)]).await else {
        return;
    };
    for (behaviour, error) in [
        (
            Behaviour::Refuse(400, "Validation failed: x\n"),
            "SNA API error",
        ),
        (
            Behaviour::Refuse(500, "Process start failed: y\n"),
            "SNA API error",
        ),
        (Behaviour::Refuse(204, ""), "SNA API error"),
    ] {
        world.node.behave(behaviour.clone());
        let (status, answer) = world.start("full").await;
        assert_eq!((status, text(&answer, "error")), (500, error), "{answer}");
        let said = text(&answer, "details").contains("status: ");
        assert!(said, "the node's answer is told: {answer}");
        assert_eq!(world.hub.repository_files(), Vec::<PathBuf>::new());
        let (_, list) = world.hub.get("/api/v1/backups?vm_name=web01").await;
        let running = list["backups"].as_array().unwrap().iter();
        assert_eq!(running.filter(|b| b["status"] == "running").count(), 0);
    }
    // Nobody listens where the node was.
    world.node.behave(Behaviour::Run);
    let id = world.backed_up("full").await;
    world.assert_reads_like(&id, &world.copies("after")).await;
}

#[tokio::test]
async fn a_point_that_was_delivered_stays_whatever_the_node_answers() {
    let disks = [(2000, 4 * MIB), (2001, 4 * MIB)];
    let Some(world) = World::new("late_answer", &disks).await else {
        return;
    };
    // The client has completed every disk when the node's answer turns out to be wrong.
    world.node.behave(Behaviour::RunThenAnswer(503));
    let id = world.started("full").await;
    assert_eq!(world.backup(&id).await["status"], "completed");
    world.assert_reads_like(&id, &world.copies("late")).await;

    // It has completed one of two: no point, and nothing of it is left.
    world.node.holds(&world.disks, Some("1:decided"));
    let files = world.hub.repository_files();
    let (status, answer) = world.start("incremental").await;
    assert_eq!((status, text(&answer, "error")), (500, "SNA API error"));
    assert_eq!(world.hub.repository_files(), files);
    let (_, list) = world.hub.get("/api/v1/backups?vm_name=web01").await;
    assert_eq!(list["total"], 1, "{list}");
}

#[tokio::test]
async fn exports_accept_before_the_node_is_told() {
    // The client connects the moment it is started, and its tunnel makes a refused connection look like a broken one: a
    // hundred starts would not hide one that comes too early.
    let Some(world) = World::new("accept_first", &[(2000, MIB)]).await else {
        return;
    };
    for _ in 0..10 {
        world.backed_up("full").await;
    }
}

#[tokio::test]
async fn targets_carry_the_device_keys() {
    let disks = [(2016, MIB), (16000, 2 * MIB), (2000, 3 * MIB)];
    let Some(world) = World::new("device_keys", &disks).await else {
        return;
    };
    let id = world.backed_up("full").await;
    let rows = world.disk_rows(&id).await;
    assert_eq!(rows.len(), 3);
    for row in rows {
        let key = row["device_key"].as_u64().unwrap();
        let disk = world
            .disks
            .iter()
            .find(|disk| u64::from(disk.key) == key)
            .unwrap();
        let image = Path::new(text(&row, "image_path"));
        qemu::assert_reads_like(image, &disk.path);
        assert_eq!(row["change_id"], disk.change_id());
    }
}

#[tokio::test]
async fn the_wire_is_as_the_client_expects() {
    let Some(world) = World::new("wire", &[(2000, MIB)]).await else {
        return;
    };
    world.node.behave(Behaviour::Pretend);
    let (_, answer) = world.start("full").await;
    let export = text(&answer["disk_results"][0], "nbd_export_name");
    let mut many: Vec<_> = (0..12).map(|_| Wire::open(world.hub.nbd, export)).collect();
    for (number, wire) in (0_u8..).zip(&mut many) {
        assert_eq!(wire.write(u64::from(number) * 512, &[number + 1; 512]), 0);
    }
    // Each sees what the others wrote, and one that goes without a word disturbs nobody.
    many.remove(3);
    let script = r#"
import nbd, sys
port, export = sys.argv[1:]
h = nbd.NBD()
h.set_export_name(export)
h.set_request_structured_replies(True)
h.connect_tcp("127.0.0.1", port)
assert h.can_zero() and h.can_flush() and h.can_fua() and h.can_trim() and h.can_multi_conn()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1, h.get_block_size(nbd.SIZE_MINIMUM)
assert h.get_block_size(nbd.SIZE_MAXIMUM) >= 32 << 20
data = bytes(h.pread(12 * 512, 0))
assert data == b"".join(bytes([n + 1]) * 512 for n in range(12)), data
h.zero(512, 512)
assert bytes(h.pread(512, 512)) == bytes(512)
unknown = nbd.NBD()
unknown.set_export_name(export + "0")
try:
    unknown.connect_tcp("127.0.0.1", port)
    raise SystemExit("an unknown export was served")
except nbd.Error as error:
    assert "has no export named" in error.string, error.string
print("ok")
"#;
    let port = world.hub.nbd.port().to_string();
    assert_eq!(
        run_ok("/usr/bin/python3", ["-c", script, &port, export]).trim(),
        "ok"
    );
}

#[tokio::test]
async fn a_full_and_increments_of_two_disks() {
    // Sizes that are no multiple of anything, as the 102 GiB disk that taught the legacy hub about it.
    let disks = [(2000, 40 * MIB + 512), (2001, 17 * MIB + 1024)];
    let Some(mut world) = World::new("two_disks", &disks).await else {
        return;
    };
    let mut points = vec![(world.backed_up("full").await, world.copies("p0"))];
    for number in 1..4 {
        for disk in &mut world.disks {
            disk.change(10, &mut world.rng);
        }
        world.node.holds(&world.disks, None);
        points.push((
            world.backed_up("incremental").await,
            world.copies(&format!("p{number}")),
        ));
    }
    for (number, (id, copies)) in points.iter().enumerate() {
        world.assert_reads_like(id, copies).await;
        for row in world.disk_rows(id).await {
            let index = usize::try_from(row["disk_index"].as_u64().unwrap()).unwrap();
            let image = PathBuf::from(text(&row, "image_path"));
            let chain = qemu::backing_chain(&image);
            assert_eq!(chain.len(), number + 1);
            assert_eq!(
                chain[0]["virtual-size"],
                world.disks[index].path.metadata().unwrap().len()
            );
            let stored = row["stored_bytes"].as_u64().unwrap();
            if number > 0 {
                assert_eq!(row["parent_backup_id"], *points[number - 1].0);
                assert_eq!(
                    row["base_change_id"],
                    format!("{}/{number}", world.disks[index].uuid)
                );
                // The second disk is not copied whole, although the client asks for the first one's change id.
                let received = row["received_bytes"].as_u64().unwrap();
                assert!(received < 12 * MIB, "{row}");
                assert!(stored < 6 * MIB, "{row}");
            }
        }
    }
}

#[tokio::test]
async fn a_reset_of_change_tracking_costs_time_and_nothing_else() {
    let disks = [(2000, 9 * MIB), (2001, 9 * MIB)];
    let Some(mut world) = World::new("reset_tracking", &disks).await else {
        return;
    };
    world.backed_up("full").await;
    world.disks[0].change(5, &mut world.rng);
    world.disks[1].change(5, &mut world.rng);
    // The first disk is copied whole into its increment, the second is not.
    world.disks[0].reset_tracking(&mut world.rng);
    world.node.holds(&world.disks, None);
    let id = world.backed_up("incremental").await;
    world.assert_reads_like(&id, &world.copies("reset")).await;
    let rows = world.disk_rows(&id).await;
    assert_eq!(rows[0]["received_bytes"], 9 * MIB);
    assert!(rows[0]["stored_bytes"].as_u64().unwrap() < 3 * MIB);
    assert!(rows[1]["received_bytes"].as_u64().unwrap() < 5 * MIB);

    // And the next one goes on from the new identity.
    world.disks[0].change(3, &mut world.rng);
    world.disks[1].change(3, &mut world.rng);
    world.node.holds(&world.disks, None);
    let id = world.backed_up("incremental").await;
    world.assert_reads_like(&id, &world.copies("next")).await;
    assert!(
        world.disk_rows(&id).await[0]["received_bytes"]
            .as_u64()
            .unwrap()
            < 5 * MIB
    );
}

#[tokio::test]
async fn change_ids_are_strings_and_those_of_the_parent() {
    let disks = [(2000, 4 * MIB), (2001, 4 * MIB)];
    let Some(mut world) = World::new("change_ids", &disks).await else {
        return;
    };
    let none = world.change_id("vm_name=web01&disk_id=0").await;
    let expected = json!({
        "change_id": "", "disk_id": "0", "message": "No previous backup found", "vm_name": "web01"
    });
    assert_eq!(none, expected);
    assert_eq!(world.change_id("vm_name=nobody").await["change_id"], "");
    let id = world.backed_up("full").await;
    let found = world.change_id("vm_name=web01&disk_id=1").await;
    assert_eq!(found["change_id"], world.disks[1].change_id());
    assert_eq!(found["backup_job_id"], *id);
    assert_eq!(found["message"], "Previous change_id found");

    // While an increment runs: the base of its declared parent, for exactly this disk; for a question about disk 0, the base
    // of the disk that the client works on.
    let bases: Vec<_> = world.disks.iter().map(VirtualDisk::change_id).collect();
    for disk in &mut world.disks {
        disk.change(2, &mut world.rng);
    }
    world.node.holds_and_hangs(&world.disks, "1:connected");
    let running = world.started("incremental").await;
    world.node.reached("1:connected").await;
    for (query, base) in [("0", &bases[1]), ("1", &bases[1])] {
        let query = format!("vm_name=web01&disk_id={query}");
        assert_eq!(world.change_id(&query).await["change_id"], **base);
    }
    world.cancel(&running).await;
    let (status, answer) = world.hub.get("/api/v1/backups/changeid").await;
    assert_eq!((status, text(&answer, "error")), (400, "missing vm_name"));
    let (status, answer) = world
        .hub
        .get("/api/v1/backups/changeid?vm_name=web01&disk_id=x")
        .await;
    assert_eq!((status, text(&answer, "error")), (400, "invalid disk_id"));
}

#[tokio::test]
async fn a_second_full_is_a_full() {
    let Some(mut world) = World::new("second_full", &[(2000, 6 * MIB)]).await else {
        return;
    };
    world.backed_up("full").await;
    world.disks[0].change(3, &mut world.rng);
    world.node.holds(&world.disks, None);
    // The client is never told that this is a full; it would copy only changes if it were given a change id.
    let id = world.backed_up("full").await;
    world.assert_reads_like(&id, &world.copies("second")).await;
    assert_eq!(
        qemu::backing_chain(&world.image(&id, 0).await).len(),
        1,
        "a full stands alone"
    );
}

#[tokio::test]
async fn a_failed_backup_is_nobodys_parent() {
    let disks = [(2000, 4 * MIB), (2001, 4 * MIB)];
    let Some(mut world) = World::new("failed_parent", &disks).await else {
        return;
    };
    let (status, answer) = world.start("incremental").await;
    let told = (status, text(&answer, "error"));
    assert_eq!(told, (400, "no previous backup found"), "{answer}");
    let full = world.backed_up("full").await;
    // The client dies when its first disk is complete, and the second is half there.
    for disk in &mut world.disks {
        disk.change(3, &mut world.rng);
    }
    world.node.holds(&world.disks, Some("1:connected"));
    let broken = world.started("incremental").await;
    assert!(!world.node.client_succeeded().await);
    world.cancel(&broken).await;

    for disk in &mut world.disks {
        disk.change(3, &mut world.rng);
    }
    world.node.holds(&world.disks, None);
    let good = world.backed_up("incremental").await;
    world.assert_reads_like(&good, &world.copies("good")).await;
    for row in world.disk_rows(&good).await {
        assert_eq!(row["parent_backup_id"], *full, "{row}");
    }
}

#[tokio::test]
async fn a_completion_may_be_repeated_and_must_name_a_change_id() {
    let Some(world) = World::new("completion", &[(2000, MIB), (2001, MIB)]).await else {
        return;
    };
    world.node.behave(Behaviour::Pretend);
    let id = world.started("full").await;
    let (status, answer) = world.complete(&id, 0, "").await;
    assert_eq!((status, text(&answer, "error")), (400, "missing change_id"));
    for (backup, disk) in [("backup-nobody-1", 0), (id.as_str(), 2)] {
        let (status, answer) = world.complete(backup, disk, "u/1").await;
        assert_eq!(
            (status, text(&answer, "error")),
            (404, "backup job not found")
        );
        let details = format!("backup disk not found: job_id={backup} disk_index={disk}");
        assert_eq!(answer["details"], *details);
    }
    // Twice within one second: the same answer.
    for _ in 0..2 {
        let (status, answer) = world.complete(&id, 0, "u/1").await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["status"], "completed");
        assert_eq!(answer["change_id"], "u/1");
        assert_eq!(answer["backup_id"], *id);
        let message = "Backup completed successfully, change_id recorded";
        assert_eq!(answer["message"], message);
    }
    // Another position for the same disk would be a lie about one of them.
    assert_eq!(world.complete(&id, 0, "u/2").await.0, 409);
}

#[tokio::test]
async fn a_backup_is_complete_with_its_last_disk() {
    let Some(world) = World::new("last_disk", &[(2000, MIB), (2001, MIB)]).await else {
        return;
    };
    world.hub.register("web01-clone", &[MIB]).await;
    let other = json!({
        "vm_name": "web01-clone", "repository_id": world.hub.repository().await, "backup_type": "full",
        "transfer": "direct"
    });
    let (_, other) = world.hub.post("/api/v1/backups", &other).await;
    world.node.behave(Behaviour::Pretend);
    let (_, answer) = world.start("full").await;
    let id = text(&answer, "backup_id");
    assert_eq!(world.complete(id, 1, "v/1").await.0, 200);
    assert_eq!(world.backup(id).await["status"], "running");
    let (_, stats) = world.hub.get(&stats_path(&world).await).await;
    assert_eq!(stats["backup_count"], 0);
    assert_eq!(stats["last_backup_at"], "");
    assert_eq!(world.complete(id, 0, "u/1").await.0, 200);
    let backup = world.backup(id).await;
    assert_eq!(backup["status"], "completed");
    assert_eq!(backup["disks_count"], 2);
    assert_eq!(backup["total_bytes"], 2 * MIB);
    let (_, stats) = world.hub.get(&stats_path(&world).await).await;
    assert_eq!(stats["backup_count"], 1);
    // The exports of this backup are gone, those of another one go on.
    let export = text(&other["disk_results"][0], "nbd_export_name");
    assert_eq!(Wire::open(world.hub.nbd, export).write(0, &[1; 512]), 0);
}

async fn stats_path(world: &World) -> String {
    let repository = world.hub.repository().await;
    format!("/api/v1/backups/stats?vm_name=web01&repository_id={repository}")
}

#[tokio::test]
async fn a_vm_has_one_running_backup() {
    let Some(world) = World::new("one_running", &[(2000, MIB)]).await else {
        return;
    };
    world.node.behave(Behaviour::Pretend);
    let first = world.started("full").await;
    // A second client would delete the snapshot that the first one reads.
    let (status, answer) = world.start("full").await;
    assert_eq!(status, 409, "{answer}");
    assert_eq!(world.backup(&first).await["status"], "running");
    assert_eq!(world.node.starts().len(), 1);
}

#[tokio::test]
async fn lists_hold_backups_newest_first() {
    let Some(world) = World::new("lists", &[(2000, MIB), (2001, MIB)]).await else {
        return;
    };
    // A name that legacy hubs took for the row of a disk.
    world.hub.register("db-disk0-x", &[MIB]).await;
    let (_, direct) = world.hub.start_backup("db-disk0-x", "full").await;
    let mut ids = Vec::new();
    for backup_type in ["full", "incremental", "full"] {
        ids.insert(0, world.backed_up(backup_type).await);
    }
    let repository = world.hub.repository().await;
    let list = async |query: &str| {
        let (status, answer) = world.hub.get(&format!("/api/v1/backups?{query}")).await;
        assert_eq!(status, 200, "{answer}");
        let backups = answer["backups"].as_array().unwrap().clone();
        assert_eq!(answer["total"], backups.len());
        let id = |backup: &Value| text(backup, "backup_id").to_owned();
        (backups.iter().map(id).collect::<Vec<_>>(), backups)
    };
    let (found, backups) = list(&format!("vm_name=web01&repository_id={repository}")).await;
    assert_eq!(found, ids);
    for backup in &backups {
        assert_eq!(backup["type"], backup["backup_type"]);
        assert_eq!(backup["disks_count"], 2);
        for name in ["created_at", "started_at", "completed_at"] {
            let shape: String = text(backup, name)
                .chars()
                .map(|c| if c.is_ascii_digit() { '0' } else { c })
                .collect();
            assert_eq!(shape, "0000-00-00T00:00:00Z");
        }
        for name in [
            "bytes_transferred",
            "total_bytes",
            "progress_percent",
            "transfer_speed_bps",
        ] {
            assert!(backup[name].is_number(), "{name}");
        }
        assert!(backup["disk_results"].is_null());
    }
    let (found, _) = list("vm_name=web01&backup_type=incremental").await;
    assert_eq!(found, ids[1..2]);
    // Every filter counts.
    assert!(
        list("vm_name=web01&repository_id=elsewhere")
            .await
            .0
            .is_empty()
    );
    assert!(list("vm_name=web01&status=running").await.0.is_empty());
    let (found, _) = list("status=running").await;
    assert_eq!(found, [text(&direct, "backup_id")]);
    let (status, answer) = world.hub.get("/api/v1/backups?vm_name=nobody").await;
    assert_eq!((status, text(&answer, "error")), (404, "VM not found"));
}

#[tokio::test]
async fn refusals_have_the_shape_of_their_family() {
    let Some(world) = World::new("refusals", &[(2000, MIB)]).await else {
        return;
    };
    let (status, answer) = world.hub.get("/api/v1/backups/backup-none-1").await;
    assert_eq!(status, 404);
    assert_eq!(text(&answer, "error"), "backup not found");
    assert_eq!(text(&answer, "timestamp"), "", "present and empty");
    assert!(answer["details"].is_string());
    let (status, answer) = world.hub.get("/api/v1/vm-contexts/by-id/none").await;
    assert_eq!(status, 404);
    assert!(text(&answer, "timestamp").contains('T'), "{answer}");
    let (status, answer) = world.hub.get("/api/v1/nowhere").await;
    assert_eq!((status, answer), (404, Value::Null), "plain text");
}

#[tokio::test]
async fn tables_and_columns_have_their_names() {
    let Some(world) = World::new("tables", &[(2000, MIB)]).await else {
        return;
    };
    world.backed_up("full").await;
    let script = r#"
import json, sqlite3, sys
database = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
print(json.dumps({table: [row[1] for row in database.execute(f"PRAGMA table_info({table})")] for table in tables}))
"#;
    let database = world.hub.data.join("hub.db");
    let told = run_ok(
        "/usr/bin/python3",
        ["-c", script, database.to_str().unwrap()],
    );
    let tables: Value = serde_json::from_str(&told).unwrap();
    for (table, columns) in LEGACY_COLUMNS {
        let has = tables[table]
            .as_array()
            .unwrap_or_else(|| panic!("no table {table}"));
        for column in columns.split(' ') {
            assert!(has.contains(&json!(column)), "{table}.{column}");
        }
    }
}

const LEGACY_COLUMNS: [(&str, &str); 9] = [
    (
        "backup_repositories",
        "id name repository_type enabled config is_immutable immutable_config min_retention_days total_size_bytes \
         used_size_bytes available_size_bytes last_check_at created_at updated_at",
    ),
    (
        "backup_policies",
        "id name enabled primary_repository_id retention_days created_at updated_at",
    ),
    (
        "backup_copy_rules",
        "id policy_id destination_repository_id copy_mode priority enabled verify_after_copy created_at",
    ),
    (
        "backup_jobs",
        "id vm_backup_context_id vm_context_id vm_name disk_id repository_id policy_id backup_type status repository_path \
         parent_backup_id change_id bytes_transferred total_bytes compression_enabled error_message current_phase \
         transfer_speed_bps eta_seconds progress_percent last_telemetry_at created_at started_at completed_at",
    ),
    (
        "vm_backup_contexts",
        "context_id vm_name vmware_vm_id vm_path vcenter_host datacenter repository_id total_backups_run successful_backups \
         failed_backups last_backup_id last_backup_type last_backup_at created_at updated_at",
    ),
    (
        "backup_disks",
        "id vm_backup_context_id backup_job_id disk_index vmware_disk_key size_gb unit_number disk_change_id qcow2_path \
         bytes_transferred progress_percent status error_message created_at completed_at",
    ),
    (
        "backup_copies",
        "id source_backup_id repository_id copy_rule_id status file_path size_bytes copy_started_at copy_completed_at \
         verified_at verification_status error_message created_at",
    ),
    (
        "backup_chains",
        "id vm_context_id disk_id full_backup_id latest_backup_id total_backups total_size_bytes created_at updated_at",
    ),
    (
        "restore_mounts",
        "id backup_disk_id mount_path nbd_device filesystem_type mount_mode status error_message created_at \
         last_accessed_at expires_at unmounted_at partition_metadata",
    ),
];

#[tokio::test]
async fn files_lie_where_the_legacy_hub_put_them() {
    let Some(world) = World::new("files", &[(2000, MIB), (2001, MIB)]).await else {
        return;
    };
    let id = world.backed_up("full").await;
    let backup = world.backup(&id).await;
    for (index, row) in world.disk_rows(&id).await.iter().enumerate() {
        let image = PathBuf::from(text(row, "image_path"));
        let folder = image.parent().unwrap();
        assert!(folder.ends_with(format!("{}/disk-{index}", text(&backup, "vm_context_id"))));
        let name = image.file_name().unwrap().to_str().unwrap();
        let stem = name
            .strip_prefix(&format!("backup-web01-disk{index}-"))
            .unwrap();
        let time = stem.strip_suffix(".qcow2").unwrap();
        assert!(
            time.len() >= 15 && time.as_bytes()[8] == b'-',
            "YYYYMMDD-HHMMSS: {name}"
        );
        let sidecar = std::fs::read(folder.join(format!("{name}.json"))).unwrap();
        let sidecar: Value = serde_json::from_slice(&sidecar).unwrap();
        assert_eq!(sidecar["backup_id"], *id);
        assert_eq!(sidecar["disk_id"], index);
        assert_eq!(sidecar["change_id"], row["change_id"]);
        assert_eq!(sidecar["total_bytes"], MIB);
        assert_eq!(sidecar["qcow2_info"]["format"], "qcow2");
    }
}
