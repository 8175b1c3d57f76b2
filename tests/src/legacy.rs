//! A node appliance of the legacy hub: what it checks and answers, and the backup client that it starts.
//!
//! The client is `peers/legacy_client.py`: the calls of the legacy client on the same NBD library.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::hub::{DEADLINE, Hub, wait};
use crate::raw_disk;

/// What a node does with a call that starts a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// Starts the client, as a healthy node.
    Run,
    /// Answers that it did, but nothing ever comes.
    Pretend,
    /// Answers with this status and text.
    Refuse(u16, &'static str),
    /// Starts the client, and when that has ended, answers like this: the answer is wrong, or comes late.
    RunThenAnswer(u16),
}

/// One disk of the VM at the hypervisor.
#[derive(Debug, Clone)]
pub struct VirtualDisk {
    /// Device key.
    pub key: u32,
    /// Its bytes.
    pub path: PathBuf,
    /// Identity of its change tracking.
    pub uuid: String,
    /// Number of the snapshot: the part behind the slash of its change id.
    pub snapshot: u32,
    /// What changed from each earlier snapshot to the next.
    changes: Vec<Vec<(u64, u64)>>,
}

impl VirtualDisk {
    /// A disk with data, whose change tracking has begun.
    ///
    /// # Panics
    /// When the file cannot be written.
    #[must_use]
    pub fn new(key: u32, path: PathBuf, size: u64, rng: &mut fastrand::Rng) -> Self {
        raw_disk::make(&path, size, rng);
        begin_chunks_with_data(&path, size);
        Self {
            key,
            path,
            uuid: format!("52 {key:x} {:08x}", rng.u32(..)),
            snapshot: 1,
            changes: Vec::new(),
        }
    }

    /// The change id of the newest snapshot.
    #[must_use]
    pub fn change_id(&self) -> String {
        format!("{}/{}", self.uuid, self.snapshot)
    }

    /// The guest writes here and there, then the next snapshot is taken.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn change(&mut self, writes: u32, rng: &mut fastrand::Rng) {
        let changed = raw_disk::scribble(&self.path, writes, rng);
        self.changes.push(changed);
        self.snapshot += 1;
    }

    /// Change tracking was switched off and on: earlier change ids mean nothing any more.
    pub fn reset_tracking(&mut self, rng: &mut fastrand::Rng) {
        self.uuid = format!("53 {:x} {:08x}", self.key, rng.u32(..));
        self.changes.clear();
        self.snapshot = 1;
    }

    fn as_told(&self) -> Value {
        let first = self.snapshot - u32::try_from(self.changes.len()).expect("few snapshots");
        let since: serde_json::Map<String, Value> = (first..)
            .zip(0..=self.changes.len())
            .map(|(snapshot, from)| {
                let extents: Vec<_> = self.changes[from..].concat();
                (format!("{}/{snapshot}", self.uuid), json!(extents))
            })
            .collect();
        json!({"key": self.key, "path": self.path, "change_id": self.change_id(), "changed": since})
    }
}

/// The client only samples large chunks and sends zeroes where it meets none: its fault, which no hub can see. These
/// disks have data where it looks first.
fn begin_chunks_with_data(path: &Path, size: u64) {
    let file = File::options().write(true).open(path).expect("a disk");
    let third = size / 3 / 512 * 512;
    for chunk in [0, third, 2 * third] {
        file.write_all_at(b"data", chunk).expect("space");
    }
}

/// A running node. Its clients are killed when it is dropped.
#[derive(Debug)]
pub struct Node {
    /// `http://HOST:PORT`.
    pub url: String,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    scratch: PathBuf,
    state: Mutex<NodeState>,
}

#[derive(Debug)]
struct NodeState {
    /// `http://HOST:PORT` that the client reaches the hub at.
    hub: String,
    behaviour: Behaviour,
    vm: Value,
    starts: Vec<Value>,
    clients: Vec<Child>,
}

impl Node {
    /// A node that listens on a free port; its files go into `scratch`.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start(scratch: &Path) -> Self {
        let state = NodeState {
            hub: String::new(),
            behaviour: Behaviour::Run,
            vm: Value::Null,
            starts: Vec::new(),
            clients: Vec::new(),
        };
        let shared = Arc::new(Shared {
            scratch: scratch.to_owned(),
            state: Mutex::new(state),
        });
        let routes = Router::new()
            .route("/api/v1/backup/start", post(start_backup))
            .route("/api/v1/health", get(health))
            .with_state(Arc::clone(&shared));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound port");
        let serving = tokio::spawn(async move {
            let ended = axum::serve(listener, routes).await;
            ended.expect("a server that goes on");
        });
        Self {
            url: format!("http://{address}"),
            shared,
            serving,
        }
    }

    /// The hub that clients of this node report to.
    pub fn serves(&self, hub: &Hub) {
        self.shared.state().hub.clone_from(&hub.api);
    }

    /// What it does from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.shared.state().behaviour = behaviour;
    }

    /// What clients find at the hypervisor, in device order, and where they die, such as `1:copied`.
    pub fn holds(&self, disks: &[VirtualDisk], die_at: Option<&str>) {
        self.holds_and(disks, &json!({"die_at": die_at}));
    }

    /// As [`Node::holds`], with a place where clients stop for ever with their connections open.
    pub fn holds_and_hangs(&self, disks: &[VirtualDisk], hang_at: &str) {
        self.holds_and(disks, &json!({"hang_at": hang_at}));
    }

    fn holds_and(&self, disks: &[VirtualDisk], more: &Value) {
        let disks: Vec<Value> = disks.iter().map(VirtualDisk::as_told).collect();
        let mut vm = json!({"disks": disks, "steps": self.steps_file()});
        for (name, value) in more.as_object().expect("an object") {
            vm[name] = value.clone();
        }
        // Steps of earlier clients are not waited for.
        let _ = std::fs::remove_file(self.steps_file());
        self.shared.state().vm = vm;
    }

    /// The bodies of the calls that started a backup.
    #[must_use]
    pub fn starts(&self) -> Vec<Value> {
        self.shared.state().starts.clone()
    }

    /// Waits until the newest client has ended; whether with status 0.
    ///
    /// # Panics
    /// When none was started, or it does not end in time.
    pub async fn client_succeeded(&self) -> bool {
        let newest = self.shared.state().clients.pop();
        ended(newest).await.success()
    }

    /// Waits until a client has reached a step, such as `0:copied`.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn reached(&self, step: &str) {
        let begin = Instant::now();
        loop {
            let steps = std::fs::read_to_string(self.steps_file()).unwrap_or_default();
            if steps.lines().any(|line| line == step) {
                return;
            }
            assert!(
                begin.elapsed() < DEADLINE,
                "no client reached {step}: {steps}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    fn steps_file(&self) -> PathBuf {
        self.shared.scratch.join("steps.log")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.serving.abort();
        for client in &mut self.shared.state().clients {
            // Both fail when it has ended already, which is what is wanted.
            let _ = client.kill();
            let _ = client.wait();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, NodeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the client with the command line and environment of the legacy node.
    fn spawn_client(&self, start: &Value) {
        let mut state = self.state();
        let text = |name: &str| start[name].as_str().expect("was validated").to_owned();
        let job = text("job_id");
        let vm = self.scratch.join(format!("{job}.json"));
        std::fs::write(&vm, state.vm.to_string()).expect("a writable folder");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/legacy_client.py");
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script).arg("migrate");
        for (flag, value) in [
            ("--vmware-endpoint", text("vcenter_host")),
            ("--vmware-username", text("vcenter_user")),
            ("--vmware-password", text("vcenter_password")),
            ("--vmware-path", text("vm_path")),
            ("--nbd-targets", text("nbd_targets")),
            ("--job-id", job.clone()),
        ] {
            command.args([flag, &value]);
        }
        let client = command
            .env("MIGRATEKIT_JOB_ID", job)
            .env("SHA_API_URL", &state.hub)
            .env("LEGACY_VM", vm)
            .env("LEGACY_RETRY_S", "0.01")
            .stdin(Stdio::null())
            .spawn()
            .expect("Debian's python starts");
        state.clients.push(client);
    }
}

async fn ended(client: Option<Child>) -> ExitStatus {
    let mut client = client.expect("a client was started");
    let ended = tokio::task::spawn_blocking(move || wait(&mut client, DEADLINE));
    let status = ended.await.expect("a wait that does not panic");
    status.expect("the client ends in time")
}

async fn health() -> axum::Json<Value> {
    axum::Json(json!({"status": "healthy", "uptime": "1m"}))
}

/// Checks in the order of the legacy node, with its texts.
async fn start_backup(State(node): State<Arc<Shared>>, body: String) -> (StatusCode, String) {
    let bad = |text: String| (StatusCode::BAD_REQUEST, text);
    let start: Value = match serde_json::from_str(&body) {
        Ok(start) => start,
        Err(error) => return bad(format!("Invalid request: {error}\n")),
    };
    for name in [
        "job_id",
        "vm_name",
        "vcenter_host",
        "vcenter_user",
        "vcenter_password",
        "vm_path",
        "nbd_targets",
    ] {
        if start[name].as_str().is_none_or(str::is_empty) {
            return bad(format!("Validation failed: {name} is required\n"));
        }
    }
    let kind = start["backup_type"].as_str().unwrap_or_default();
    if !matches!(kind, "full" | "incremental") {
        return bad("Validation failed: backup_type must be 'full' or 'incremental'\n".to_owned());
    }
    if kind == "incremental"
        && start["previous_change_id"]
            .as_str()
            .is_none_or(str::is_empty)
    {
        let text = "Validation failed: previous_change_id is required for incremental backups\n";
        return bad(text.to_owned());
    }
    let behaviour = {
        let mut state = node.state();
        state.starts.push(start.clone());
        state.behaviour.clone()
    };
    let answer = |status: u16, text: String| {
        let status = StatusCode::from_u16(status).expect("a status of a test");
        (status, text)
    };
    let started = json!({"job_id": start["job_id"], "status": "started", "pid": 4711}).to_string();
    match behaviour {
        Behaviour::Pretend => answer(200, started),
        Behaviour::Refuse(status, text) => answer(status, text.to_owned()),
        Behaviour::Run => {
            node.spawn_client(&start);
            answer(200, started)
        }
        Behaviour::RunThenAnswer(status) => {
            node.spawn_client(&start);
            let client = node.state().clients.pop();
            ended(client).await;
            answer(status, started)
        }
    }
}
