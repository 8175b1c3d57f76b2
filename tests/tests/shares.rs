//! Repositories on shares: nothing is written unless the share is there. A tmpfs that says it came from
//! the server stands in for one.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::path::{Path, PathBuf};
use std::process::Command;

use api::hub::{self, RunningHub, ServeConfig};
use serde_json::{Value, json};
use tests::peers::missing;

const SOURCE: &str = "nas.invalid:/export";

/// A mount that ends with the test.
struct Share(PathBuf);

impl Share {
    fn mount(source: &str, at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=64m", source])
            .arg(at);
        assert!(mount.status().unwrap().success(), "mount {source}");
        Self(at.to_owned())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Gone already when the test took it away.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

/// Whether this process may mount: root in CI, nobody in many a container.
fn may_mount() -> bool {
    let at = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "none"])
        .arg(at.path())
        .output();
    let mounted = mount.is_ok_and(|output| output.status.success());
    if mounted {
        drop(Share(at.path().to_owned()));
        return true;
    }
    missing("the right to mount");
    false
}

struct Site {
    hub: RunningHub,
    http: reqwest::Client,
    folder: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hub = hub::start(ServeConfig::ephemeral(folder.path().join("data")))
            .await
            .unwrap();
        Self {
            hub,
            http: reqwest::Client::new(),
            folder,
        }
    }

    fn mount_point(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join("mnt")
    }

    async fn ask(&self, method: reqwest::Method, path: &str, body: Value) -> (u16, Value) {
        let url = format!("{}/api/v1{path}", self.hub.api_url());
        let answer = self
            .http
            .request(method, url)
            .json(&body)
            .send()
            .await
            .unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or_default())
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(reqwest::Method::POST, path, body).await
    }

    async fn create(&self) -> (u16, Value) {
        let config = json!({"server": "nas.invalid", "export_path": "/export/", "mount_point": self.mount_point()});
        self.post(
            "/repositories",
            json!({"name": "share", "type": "nfs", "enabled": true, "config": config}),
        )
        .await
    }

    async fn start(&self, repository: &Value) -> (u16, Value) {
        let body = json!({"vm_name": "web", "repository_id": repository, "backup_type": "full", "transfer": "direct"});
        self.post("/backups", body).await
    }

    async fn state(&self, repository: &Value) -> Value {
        let path = format!("/repositories/{}", repository.as_str().unwrap());
        self.ask(reqwest::Method::GET, &path, Value::Null).await.1["repository"]["state"].clone()
    }
}

/// Files below the mount point, on whatever is there.
fn files(at: &Path) -> usize {
    let entries = std::fs::read_dir(at).map(|entries| entries.count());
    entries.unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_that_is_away_is_never_taken_for_the_folder_below_it() {
    if !may_mount() {
        return;
    }
    let site = Site::new().await;
    let at = site.mount_point();
    let (status, refused) = site.create().await;
    assert_eq!(status, 503, "nobody is nas.invalid: {refused}");
    assert_eq!(files(&at), 0);

    let other = Share::mount("nas.invalid:/other", &at);
    let (status, refused) = site.create().await;
    assert_eq!(status, 503, "{refused}");
    drop(other);

    let share = Share::mount(SOURCE, &at);
    let (status, made) = site.create().await;
    assert_eq!(status, 201, "an existing mount is adopted: {made}");
    let repository = made["repository"]["id"].clone();
    assert_eq!(site.state(&repository).await, "ready");
    let vm =
        json!({"vm_name": "web", "disks": [{"disk_id": "disk-2000", "capacity_bytes": 1 << 20}]});
    assert_eq!(site.post("/vm-contexts", vm).await.0, 201);

    let (status, started) = site.start(&repository).await;
    assert_eq!(status, 200, "{started}");
    assert!(files(&at) > 0, "the image is on the share");
    drop(share);
    assert_eq!(files(&at), 0, "nothing is below the share");
    let backup = started["backup_id"].as_str().unwrap().to_owned();
    let done = json!({"change_id": "c/1", "disk_id": 0});
    let (status, refused) = site
        .post(&format!("/backups/{backup}/complete"), done.clone())
        .await;
    assert_eq!(status, 503, "not published into nowhere: {refused}");
    assert_eq!(site.state(&repository).await, "broken");
    let (status, refused) = site.start(&repository).await;
    assert!(status == 503 || status == 409, "{status} {refused}");
    assert_eq!(files(&at), 0, "the hub's own disk was written");

    let again = Share::mount(SOURCE, &at);
    assert_eq!(site.state(&repository).await, "ready");
    site.post(&format!("/backups/{backup}/cancel"), json!({}))
        .await;
    let (status, started) = site.start(&repository).await;
    assert_eq!(status, 200, "the share is back: {started}");
    assert!(
        files(&at) > 0,
        "the image is on the share that is there now"
    );
    let backup = started["backup_id"].as_str().unwrap().to_owned();
    let (status, answer) = site
        .post(&format!("/backups/{backup}/complete"), done)
        .await;
    assert_eq!(status, 200, "{answer}");
    site.hub.stop().await;
    drop(again);
}
