//! The hub as a process: started, driven over REST and NBD, stopped, killed.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long a hub may take to start or to end: generous, because it only bounds a failure.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A running `sendense-hub serve`. Killed when dropped.
#[derive(Debug)]
pub struct Hub {
    child: Child,
    /// `http://HOST:PORT`.
    pub api: String,
    /// Where NBD listens.
    pub nbd: SocketAddr,
    /// `--data`.
    pub data: PathBuf,
    http: reqwest::Client,
}

impl Hub {
    /// Starts `program serve` on free ports with its state in `data`, and waits for its `ready` line.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(program: &str, data: &Path) -> Self {
        Self::spawn(Command::new(program), data)
    }

    /// Like [`Hub::start`] through a command that ends in executing the program, such as `unshare`.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn spawn(mut command: Command, data: &Path) -> Self {
        command.args([
            "serve",
            "--api",
            "127.0.0.1:0",
            "--nbd",
            "127.0.0.1:0",
            "--log",
            "warn",
            "--data",
        ]);
        let mut child = command
            .arg(data)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the hub starts");
        let line = first_line(&mut child);
        let (api, nbd) = ready(&line).unwrap_or_else(|| panic!("no ready line: {line:?}"));
        Self {
            child,
            api,
            nbd,
            data: data.to_owned(),
            http: reqwest::Client::new(),
        }
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill(mut self) {
        self.child.kill().expect("the process is ours");
        self.child.wait().expect("the process is ours");
    }

    /// SIGTERM, and waits for its orderly end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn stop(mut self) -> ExitStatus {
        terminate(&self.child);
        wait(&mut self.child, DEADLINE).expect("SIGTERM ends the hub")
    }

    /// `GET path`: status and body (`Null` when it is no JSON).
    ///
    /// # Panics
    /// When the hub does not answer.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.http.get(format!("{}{path}", self.api))).await
    }

    /// `DELETE path`: status and body (`Null` when it is no JSON).
    ///
    /// # Panics
    /// When the hub does not answer.
    pub async fn delete(&self, path: &str) -> (u16, Value) {
        answer(self.http.delete(format!("{}{path}", self.api))).await
    }

    /// `POST path` with a JSON body.
    ///
    /// # Panics
    /// When the hub does not answer.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        answer(self.http.post(format!("{}{path}", self.api)).json(body)).await
    }

    /// Registers a VM with disks of these sizes.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn register(&self, vm: &str, sizes: &[u64]) {
        let disks: Vec<Value> = (2000..)
            .zip(sizes)
            .map(|(key, size)| json!({"disk_id": format!("disk-{key}"), "capacity_bytes": size}))
            .collect();
        let (status, body) = self
            .post(
                "/api/v1/vm-contexts",
                &json!({"vm_name": vm, "disks": disks}),
            )
            .await;
        assert!(status == 200 || status == 201, "{status} {body}");
    }

    /// The first repository's id.
    ///
    /// # Panics
    /// When there is none.
    pub async fn repository(&self) -> String {
        let (_, body) = self.get("/api/v1/repositories").await;
        body["repositories"][0]["id"]
            .as_str()
            .expect("a fresh hub has a repository")
            .to_owned()
    }

    /// Starts a direct backup.
    pub async fn start_backup(&self, vm: &str, backup_type: &str) -> (u16, Value) {
        let repository = self.repository().await;
        let body = json!({
            "vm_name": vm, "repository_id": repository, "backup_type": backup_type, "transfer": "direct"
        });
        self.post("/api/v1/backups", &body).await
    }

    /// Images (published or not) and other files below the data folder's repositories.
    ///
    /// # Panics
    /// When the folder cannot be read.
    #[must_use]
    pub fn repository_files(&self) -> Vec<PathBuf> {
        files_below(&self.data.join("repositories"))
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All regular files below a folder, sorted.
///
/// # Panics
/// When the folder cannot be read.
#[must_use]
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                pending.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Sends SIGTERM.
///
/// # Panics
/// When `kill` cannot be run.
pub fn terminate(child: &Child) {
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .expect("kill is there")
            .success()
    );
}

/// Waits for the end of a process, at most `deadline`.
#[must_use]
pub fn wait(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + deadline;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => {
                std::thread::park_timeout(Duration::from_millis(20));
            }
            _ => return None,
        }
    }
}

/// The first line that a process prints, within the deadline.
///
/// # Panics
/// When it prints none in time, or its stdout is not piped.
pub fn first_line(child: &mut Child) -> String {
    let stdout = child.stdout.take().expect("stdout is piped");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stdout).lines();
        if let Some(Ok(line)) = lines.next() {
            let _ = sender.send(line);
        }
        // Reads on, so that the process never writes into a full pipe.
        lines.for_each(drop);
    });
    receiver
        .recv_timeout(DEADLINE)
        .expect("a first line in time")
}

fn ready(line: &str) -> Option<(String, SocketAddr)> {
    let rest = line.strip_prefix("ready api=")?;
    let (api, nbd) = rest.split_once(" nbd=")?;
    let nbd = nbd.strip_prefix("nbds://").or(nbd.strip_prefix("nbd://"))?;
    let nbd = nbd.split([' ', '/']).next()?;
    Some((api.to_owned(), nbd.parse().ok()?))
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("the hub answers");
    let status = response.status().as_u16();
    let text = response.text().await.expect("a whole body");
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}
