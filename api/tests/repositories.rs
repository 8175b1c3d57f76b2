//! Repositories over REST: shapes, codes and texts that the GUI relies on.
#![expect(clippy::unwrap_used, reason = "a panic in a test is the report")]

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use engine::{Engine, EngineConfig, ManualClock, Secret, WatchLimits};
use serde_json::{Value, json};
use time::macros::datetime;
use tower::ServiceExt as _;

const ALL: &str = "/api/v1/repositories";

struct Hub {
    router: Router,
    folder: tempfile::TempDir,
}

impl Hub {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(datetime!(2025-10-10 08:09:07 UTC)));
        let config = EngineConfig {
            data_dir: folder.path().join("data"),
            database: None,
            nbd_advertise: "127.0.0.1:10809".to_owned(),
            node_url: "http://127.0.0.1:1".to_owned(),
            vcenter_node_urls: Default::default(),
            private_exports: false,
            watch: WatchLimits::default(),
            extended_headers: true,
            credential_key: Some(Secret::new(format!("{}=", "A".repeat(43)))),
        };
        let engine = Engine::open(config, clock.clone()).await.unwrap();
        Self {
            router: api::router(engine, clock, api::Trust::Everybody),
            folder,
        }
    }

    /// Status and body; everything under `/repositories` is JSON, whatever goes wrong.
    async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = match body {
            Value::Null => Body::empty(),
            Value::String(text) => Body::from(text),
            body => Body::from(body.to_string()),
        };
        let request = Request::builder().method(method).uri(path).body(body);
        let response = self.router.clone().oneshot(request.unwrap()).await.unwrap();
        let status = response.status().as_u16();
        assert_eq!(
            response.headers()["content-type"],
            "application/json",
            "{path}"
        );
        let body = to_bytes(response.into_body(), 1 << 22).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.ask("GET", path, Value::Null).await
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    async fn create(&self, name: &str, enabled: bool) -> Value {
        let body = json!({"name": name, "type": "local", "enabled": enabled,
            "config": {"path": self.path(name), "description": "für alle"}});
        let (status, answer) = self.ask("POST", ALL, body).await;
        assert_eq!(status, 201, "{answer}");
        answer
    }

    async fn names(&self, query: &str) -> Vec<String> {
        let (status, answer) = self.get(&format!("{ALL}{query}")).await;
        assert_eq!((status, &answer["success"]), (200, &json!(true)));
        let repositories = answer["repositories"].as_array().unwrap().iter();
        let name = |repository: &Value| repository["name"].as_str().unwrap().to_owned();
        repositories.map(name).collect()
    }
}

#[tokio::test]
async fn a_local_repository_is_made_shown_used_and_forgotten() {
    let hub = Hub::new().await;
    let made = hub.create("second", true).await;
    let repository = &made["repository"];
    assert_eq!(made["success"], true);
    assert_eq!(repository["id"], "repo-local-1760083747");
    assert_eq!(
        repository["config"],
        json!({"path": hub.path("second"), "description": "für alle"})
    );
    assert_eq!(
        (
            &repository["type"],
            &repository["enabled"],
            &repository["state"]
        ),
        (&json!("local"), &json!(true), &json!("ready"))
    );
    assert_eq!(repository["created_at"], "2025-10-10T08:09:07Z");
    let info = &repository["storage_info"];
    assert_eq!(info["repository_id"], repository["id"]);
    let bytes = |name: &str| info[name].as_u64().unwrap();
    assert_eq!(
        bytes("used_bytes") + bytes("available_bytes"),
        bytes("total_bytes")
    );
    assert_eq!(
        info["used_percent"],
        repository["storage"]["used_percentage"]
    );
    assert_eq!(info["last_check_at"], "2025-10-10T08:09:07Z");

    let one = format!("{ALL}/repo-local-1760083747");
    let (status, shown) = hub.get(&one).await;
    assert_eq!(
        (status, &shown["repository"]["name"]),
        (200, &json!("second"))
    );
    let (status, storage) = hub.get(&format!("{one}/storage")).await;
    assert_eq!((status, &storage["backup_count"]), (200, &json!(0)));
    let (status, tested) = hub.ask("POST", &format!("{one}/test"), Value::Null).await;
    assert_eq!(
        (status, &tested["success"]),
        (200, &json!(true)),
        "{tested}"
    );
    assert_eq!(tested["storage"]["writable"], true);
    assert_eq!(
        std::fs::read_dir(hub.path("second")).unwrap().count(),
        0,
        "the test cleans up"
    );

    let vm =
        json!({"vm_name": "web", "disks": [{"disk_id": "disk-2000", "capacity_bytes": 1 << 20}]});
    assert_eq!(hub.ask("POST", "/api/v1/vm-contexts", vm).await.0, 201);
    let start = json!({"vm_name": "web", "repository_id": "repo-local-1760083747", "backup_type": "full", "transfer": "direct"});
    let (status, started) = hub.ask("POST", "/api/v1/backups", start).await;
    assert_eq!(status, 200, "{started}");
    let image = started["disk_results"][0]["qcow2_path"].as_str().unwrap();
    assert!(Path::new(image).starts_with(hub.path("second")), "{image}");
    let (status, refused) = hub.ask("DELETE", &one, Value::Null).await;
    let expected = json!({"success": false, "error": "Cannot delete repository with existing backups", "backup_count": 1});
    assert_eq!((status, refused), (409, expected));

    let spare = hub.create("spare", false).await["repository"]["id"].clone();
    let spare = spare.as_str().unwrap();
    assert_eq!(spare, "repo-local-1760083747-1", "two within one second");
    let (status, gone) = hub
        .ask("DELETE", &format!("{ALL}/{spare}"), Value::Null)
        .await;
    let expected =
        json!({"success": true, "message": "Repository deleted successfully", "id": spare});
    assert_eq!((status, gone), (200, expected));
    assert!(Path::new(&hub.path("spare")).is_dir(), "its folder stays");
    for (method, tail) in [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/storage"),
        ("POST", "/test"),
    ] {
        let (status, refused) = hub
            .ask(method, &format!("{ALL}/{spare}{tail}"), Value::Null)
            .await;
        assert_eq!(
            (status, &refused["success"]),
            (404, &json!(false)),
            "{method} {tail}"
        );
    }
    let (status, _) = hub
        .ask("DELETE", &format!("{ALL}/local"), Value::Null)
        .await;
    assert_eq!(status, 409, "the default one stays");
}

#[tokio::test]
async fn a_list_has_those_that_are_disabled_or_broken_too() {
    let hub = Hub::new().await;
    hub.create("b-off", false).await;
    hub.create("a-gone", true).await;
    assert_eq!(hub.names("").await, ["a-gone", "b-off", "local"]);
    assert_eq!(hub.names("?enabled=true").await, ["a-gone", "local"]);
    assert_eq!(hub.names("?enabled=false&type=local").await, ["b-off"]);
    assert!(hub.names("?type=nfs").await.is_empty());
    let (status, odd) = hub.get(&format!("{ALL}?enabled=maybe")).await;
    assert_eq!(status, 400, "{odd}");

    let share = json!({"name": "share", "type": "nfs", "enabled": true,
        "config": {"server": "127.0.0.1", "export_path": "/nowhere", "mount_options": "retry=0", "mount_point": hub.path("mnt")}});
    let (status, refused) = hub.ask("POST", ALL, share).await;
    assert_eq!(status, 503, "{refused}");
    assert_eq!(
        hub.names("").await.len(),
        3,
        "what cannot be used is not recorded"
    );
    let (status, refreshed) = hub
        .ask("POST", &format!("{ALL}/refresh-storage"), Value::Null)
        .await;
    assert_eq!(status, 200);
    let expected = json!({"success": true, "message": "Storage information refreshed for 2 repositories",
        "refreshed_count": 2, "failed_count": 0});
    assert_eq!(refreshed, expected);
}

#[tokio::test]
async fn what_cannot_be_a_repository_is_refused_with_the_texts_of_the_contract() {
    let hub = Hub::new().await;
    hub.create("taken", false).await;
    let path = hub.path("new");
    let check = async |body: Value, status: u16, error: &str| {
        let (found, answer) = hub.ask("POST", ALL, body.clone()).await;
        let said = answer["error"].as_str().unwrap();
        assert_eq!(
            (found, &answer["success"]),
            (status, &json!(false)),
            "{body} {said}"
        );
        assert!(said.starts_with(error), "{body}: {said}");
    };
    check(json!("{"), 400, "invalid request body").await;
    check(json!({"type": "local"}), 400, "Repository name is required").await;
    check(json!({"name": "x"}), 400, "Repository type is required").await;
    check(
        json!({"name": "x", "type": "s3"}),
        400,
        "Unsupported repository type: s3",
    )
    .await;
    let local = |config: Value| json!({"name": "x", "type": "local", "config": config});
    check(
        local(json!({})),
        400,
        "Invalid local repository config: path is required",
    )
    .await;
    check(
        local(json!({"path": "a"})),
        400,
        "Invalid local repository config",
    )
    .await;
    check(
        local(json!({"path": 7})),
        400,
        "Invalid local repository config",
    )
    .await;
    let nfs = json!({"name": "x", "type": "nfs", "config": {"server": "nas"}});
    check(
        nfs,
        400,
        "Invalid NFS repository config: export_path is required",
    )
    .await;
    let smb = json!({"name": "x", "type": "smb", "config": {"server": "nas"}});
    check(
        smb,
        400,
        "Invalid CIFS repository config: share_name is required",
    )
    .await;
    let leak = json!({"name": "x", "type": "cifs", "config": {"server": "nas", "share_name": "s",
        "mount_options": "password=hunter2"}});
    check(
        leak,
        400,
        "Invalid CIFS repository config: mount_options must not hold a secret",
    )
    .await;
    let taken = json!({"name": "taken", "type": "local", "config": {"path": path}});
    check(taken, 409, "repository name is taken").await;
    for other in ["taken", "taken/in/it", "data/repositories"] {
        check(
            local(json!({"path": hub.path(other)})),
            409,
            "another repository is there",
        )
        .await;
    }
    std::fs::write(hub.path("file"), "x").unwrap();
    let body = local(json!({"path": hub.path("file")}));
    let (status, answer) = hub.ask("POST", ALL, body).await;
    assert!(
        status >= 400 && answer["success"] == false,
        "{status} {answer}"
    );

    let test = format!("{ALL}/test");
    let good = json!({"type": "local", "config": {"path": hub.path("trial")}});
    let (status, tested) = hub.ask("POST", &test, good).await;
    assert_eq!(
        (status, &tested["success"]),
        (200, &json!(true)),
        "{tested}"
    );
    let bad = json!({"type": "local", "config": {"path": hub.path("file")}});
    let (status, tested) = hub.ask("POST", &test, bad).await;
    assert_eq!(
        (status, &tested["message"]),
        (200, &json!("Repository test failed"))
    );
    assert!(tested["error"].is_string() && tested["error_details"].is_string());
    let (status, _) = hub
        .ask("POST", &test, json!({"type": "s3", "config": {}}))
        .await;
    assert_eq!(status, 400);
}

/// The mounter fails here, so the password gets as far as it can get.
#[tokio::test]
async fn a_password_is_in_no_answer() {
    let hub = Hub::new().await;
    let body = json!({"name": "x", "type": "cifs", "config": {"server": "127.0.0.1", "share_name": "s",
        "username": "u", "password": "hunter2", "mount_point": hub.path("mnt"), "mount_options": ["port=9"]}});
    let (status, answer) = hub.ask("POST", ALL, body.clone()).await;
    assert_eq!(status, 503, "{answer}");
    assert!(!answer.to_string().contains("hunter2"), "{answer}");
    let (_, answer) = hub.ask("POST", &format!("{ALL}/test"), body).await;
    assert!(!answer.to_string().contains("hunter2"), "{answer}");
    let data = hub.folder.path().join("data");
    assert!(
        !data.join("mount.credentials").exists(),
        "the file with the password stays"
    );
}
