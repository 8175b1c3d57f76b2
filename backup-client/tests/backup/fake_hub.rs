//! The REST side of a hub with one VM, in memory: just enough to keep a client honest.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use nbd_server::proto::ByteRange;
use nbd_server::{Content, Export, ListenAddress, Listener};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::nbd::{Device, Devices, Faults};

const VM: &str = "web 01/ü";

/// A hub that listens; ends with this value.
pub(crate) struct FakeHub {
    url: String,
    hub: Arc<Hub>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Hub {
    nbd: SocketAddr,
    devices: Arc<Devices>,
    faults: Arc<Faults>,
    calls: AtomicUsize,
    break_complete: AtomicBool,
    facts: Mutex<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    capacities: Vec<u64>,
    /// The last completed backup and its change id per disk.
    latest: Option<(String, BTreeMap<u32, String>)>,
    jobs: BTreeMap<String, Job>,
    cancelled: usize,
    authorization: String,
}

#[derive(Debug)]
struct Job {
    full: bool,
    status: &'static str,
    done: BTreeMap<u32, String>,
}

impl FakeHub {
    pub(crate) async fn start() -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        let nbd = Listener::bind(&ListenAddress::Tcp(any)).await.unwrap();
        let ListenAddress::Tcp(nbd_address) = nbd.local_address() else {
            panic!("not tcp")
        };
        let devices = Arc::new(Devices::default());
        let hub = Arc::new(Hub {
            nbd: nbd_address,
            devices: Arc::clone(&devices),
            faults: Arc::default(),
            calls: AtomicUsize::new(0),
            break_complete: AtomicBool::new(false),
            facts: Mutex::default(),
        });
        let rest = tokio::net::TcpListener::bind(any).await.unwrap();
        let url = format!("http://{}", rest.local_addr().unwrap());
        let router = router(Arc::clone(&hub));
        let tasks = vec![
            tokio::spawn(nbd.serve(devices, CancellationToken::new())),
            tokio::spawn(async move { axum::serve(rest, router).await.unwrap() }),
        ];
        Self { url, hub, tasks }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What the device of a disk holds now.
    pub(crate) fn content(&self, disk: u32) -> Vec<u8> {
        let device = self.device(disk);
        let range = ByteRange {
            offset: 0,
            len_bytes: device.size_bytes,
        };
        let read = async {
            match device.memory.read(range).await.unwrap() {
                Content::Data(data) => data.to_vec(),
                Content::Zeroes => vec![0; usize::try_from(range.len_bytes).unwrap()],
            }
        };
        futures_util::FutureExt::now_or_never(read).expect("memory answers at once")
    }

    pub(crate) fn flushed(&self, disk: u32) -> bool {
        self.device(disk).flushed.load(Ordering::SeqCst)
    }

    pub(crate) fn forget_writes(&self) {
        for device in self.hub.devices.0.lock().values() {
            device.touched.lock().clear();
        }
    }

    /// Ranges written or zeroed since then, in order, adjacent ones joined.
    pub(crate) fn touched(&self, disk: u32) -> Vec<(u64, u64)> {
        let mut ranges = self.device(disk).touched.lock().clone();
        ranges.sort_unstable();
        ranges.dedup_by(|next, before| {
            let adjacent = before.0 + before.1 == next.0;
            if adjacent {
                before.1 += next.1;
            }
            adjacent
        });
        ranges
    }

    pub(crate) fn touched_bytes(&self, disk: u32) -> u64 {
        self.touched(disk).iter().map(|range| range.1).sum()
    }

    pub(crate) fn most_connections(&self) -> usize {
        let devices = self.hub.devices.0.lock();
        devices.values().map(Device::most_open).max().unwrap_or(0)
    }

    pub(crate) fn pretend_latest(&self, backup_id: &str, change_ids: &[(u32, &str)]) {
        let ids = change_ids
            .iter()
            .map(|(disk, id)| (*disk, (*id).to_owned()));
        self.hub.facts.lock().latest = Some((backup_id.to_owned(), ids.collect()));
    }

    pub(crate) fn fail_writes_at(&self, _disk: u32, offset: u64) {
        self.hub.faults.fail_at.store(offset, Ordering::SeqCst);
    }

    pub(crate) fn vanish_at(&self, _disk: u32, offset: u64) {
        self.hub.faults.vanish_at.store(offset, Ordering::SeqCst);
    }

    pub(crate) fn hang_at(&self, _disk: u32, offset: u64) {
        self.hub.faults.hang_at.store(offset, Ordering::SeqCst);
    }

    /// Returns when a write hangs.
    pub(crate) async fn hanging(&self) {
        self.hub.faults.hanging.notified().await;
    }

    pub(crate) fn heal(&self) {
        self.hub.faults.heal();
    }

    pub(crate) fn no_multi_conn(&self) {
        self.hub.faults.no_multi_conn.store(true, Ordering::SeqCst);
    }

    /// Completions take effect, but are answered by an error.
    pub(crate) fn break_complete_after_effect(&self) {
        self.hub.break_complete.store(true, Ordering::SeqCst);
    }

    pub(crate) fn cancelled(&self) -> usize {
        self.hub.facts.lock().cancelled
    }

    /// What the last call that had one gave as its authorization.
    pub(crate) fn authorization(&self) -> String {
        self.hub.facts.lock().authorization.clone()
    }

    pub(crate) fn calls(&self) -> usize {
        self.hub.calls.load(Ordering::SeqCst)
    }

    fn device(&self, disk: u32) -> Device {
        self.hub.devices.0.lock()[&format!("disk{disk}")].clone()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn router(hub: Arc<Hub>) -> Router {
    let count = middleware::from_fn_with_state(Arc::clone(&hub), count_calls);
    Router::new()
        .route("/api/v1/repositories", get(repositories))
        .route("/api/v1/vm-contexts", post(register))
        .route("/api/v1/vm-contexts/{vm}", get(vm))
        .route("/api/v1/backups", post(start))
        .route("/api/v1/backups/changeid", get(change_id))
        .route("/api/v1/backups/{id}", get(show))
        .route("/api/v1/backups/{id}/disks", get(disks))
        .route("/api/v1/backups/{id}/complete", post(complete))
        .route("/api/v1/backups/{id}/cancel", post(cancel))
        .layer(count)
        .with_state(hub)
}

async fn count_calls(State(hub): State<Arc<Hub>>, request: Request, next: Next) -> Response {
    hub.calls.fetch_add(1, Ordering::SeqCst);
    if let Some(value) = request.headers().get("authorization") {
        hub.facts.lock().authorization = value.to_str().unwrap().to_owned();
    }
    next.run(request).await
}

fn refuse(status: StatusCode, error: &str, details: &str) -> Response {
    (status, Json(json!({"error": error, "details": details}))).into_response()
}

async fn repositories() -> Json<Value> {
    Json(json!({"success": true, "repositories": [
        {"id": "repo-off", "enabled": false}, {"id": "repo-on", "enabled": true, "name": "x"},
    ]}))
}

async fn vm(State(hub): State<Arc<Hub>>, Path(name): Path<String>) -> Response {
    assert_eq!(name, VM, "the name was not escaped right");
    if hub.facts.lock().capacities.is_empty() {
        return refuse(StatusCode::NOT_FOUND, "VM not found", "");
    }
    Json(json!({"context": {"vm_name": VM, "vcenter_host": "vc1"}})).into_response()
}

async fn register(State(hub): State<Arc<Hub>>, Json(body): Json<Value>) -> Response {
    assert_eq!(body["vm_name"], VM);
    let mut facts = hub.facts.lock();
    // Known VMs are updated as what they are.
    assert_eq!(
        body["vcenter_host"].as_str(),
        (!facts.capacities.is_empty()).then_some("vc1")
    );
    let disks = body["disks"].as_array().unwrap();
    for (index, disk) in disks.iter().enumerate() {
        assert_eq!(disk["disk_id"], format!("disk-{}", 2000 + index));
    }
    let capacity = |disk: &Value| disk["capacity_bytes"].as_u64().unwrap();
    facts.capacities = disks.iter().map(capacity).collect();
    (StatusCode::CREATED, Json(json!({"context_id": "ctx-1"}))).into_response()
}

async fn start(State(hub): State<Arc<Hub>>, Json(body): Json<Value>) -> Response {
    assert_eq!(
        (&body["transfer"], &body["repository_id"]),
        (&json!("direct"), &json!("repo-on"))
    );
    let mut facts = hub.facts.lock();
    let full = match (body["backup_type"].as_str(), &facts.latest) {
        (Some("full"), _) | (Some("auto"), None) => true,
        (Some("auto" | "incremental"), Some(_)) => false,
        (_, None) => {
            let details = "full backup required before incremental";
            return refuse(StatusCode::BAD_REQUEST, "no previous backup found", details);
        }
        other => panic!("unknown type {other:?}"),
    };
    let mut devices = hub.devices.0.lock();
    for (index, size) in facts.capacities.iter().enumerate() {
        let fresh = Device::new(*size, &hub.faults);
        let device = devices
            .entry(format!("disk{index}"))
            .or_insert_with(|| fresh.clone());
        if full || device.size_bytes != *size {
            *device = fresh;
        }
    }
    let id = format!("backup-web-{}", facts.jobs.len());
    let job = Job {
        full,
        status: "running",
        done: BTreeMap::new(),
    };
    facts.jobs.insert(id.clone(), job);
    let results: Vec<Value> = (0..facts.capacities.len())
        .map(|disk| json!({"disk_id": disk, "nbd_url": format!("nbd://{}/disk{disk}", hub.nbd)}))
        .collect();
    let backup_type = if full { "full" } else { "incremental" };
    Json(
        json!({"backup_id": id, "backup_type": backup_type, "status": "started",
        "disk_results": results, "unknown_field": 1}),
    )
    .into_response()
}

#[derive(serde::Deserialize)]
struct ChangeIdQuery {
    vm_name: String,
    disk_id: u32,
}

async fn change_id(State(hub): State<Arc<Hub>>, Query(query): Query<ChangeIdQuery>) -> Json<Value> {
    assert_eq!(query.vm_name, VM);
    let facts = hub.facts.lock();
    let running = facts.jobs.values().find(|job| job.status == "running");
    let job = running.expect("asked outside a job");
    assert!(!job.full, "a full backup has no base");
    assert!(job.done.is_empty(), "asked after a disk was completed");
    let found = facts
        .latest
        .as_ref()
        .and_then(|(backup, ids)| Some((backup, ids.get(&query.disk_id)?)));
    Json(match found {
        Some((backup, id)) => json!({"change_id": id, "disk_id": query.disk_id.to_string(),
            "vm_name": VM, "backup_job_id": backup, "message": "Previous change_id found"}),
        None => json!({"change_id": "", "disk_id": query.disk_id.to_string(), "vm_name": VM,
            "message": "No previous backup found"}),
    })
}

async fn complete(
    State(hub): State<Arc<Hub>>,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Response {
    let mut facts = hub.facts.lock();
    let disks = facts.capacities.len();
    let job = facts.jobs.get_mut(&id).expect("a known job");
    assert_eq!(job.status, "running");
    let disk = u32::try_from(body["disk_id"].as_u64().unwrap()).unwrap();
    let change_id = body["change_id"].as_str().unwrap().to_owned();
    assert_eq!(change_id.matches('/').count(), 1);
    job.done.insert(disk, change_id);
    if job.done.len() == disks {
        job.status = "completed";
        let done = job.done.clone();
        facts.latest = Some((id, done));
    }
    if hub.break_complete.swap(false, Ordering::SeqCst) {
        return refuse(StatusCode::BAD_GATEWAY, "proxy error", "");
    }
    Json(json!({"status": "completed"})).into_response()
}

async fn cancel(State(hub): State<Arc<Hub>>, Path(id): Path<String>) -> Response {
    let mut facts = hub.facts.lock();
    let job = facts.jobs.get_mut(&id).expect("a known job");
    if job.status != "running" {
        return refuse(StatusCode::CONFLICT, "backup has ended", job.status);
    }
    job.status = "cancelled";
    facts.cancelled += 1;
    Json(json!({})).into_response()
}

async fn show(State(hub): State<Arc<Hub>>, Path(id): Path<String>) -> Json<Value> {
    let facts = hub.facts.lock();
    let job = &facts.jobs[&id];
    let backup_type = if job.full { "full" } else { "incremental" };
    Json(
        json!({"backup_id": id, "backup_type": backup_type, "status": job.status,
        "disk_results": null}),
    )
}

async fn disks(State(hub): State<Arc<Hub>>, Path(id): Path<String>) -> Json<Value> {
    let facts = hub.facts.lock();
    let disks: Vec<Value> = facts.jobs[&id]
        .done
        .keys()
        .map(|disk| json!({"disk_index": disk, "received_bytes": 1, "stored_bytes": 1}))
        .collect();
    Json(json!({ "disks": disks }))
}
