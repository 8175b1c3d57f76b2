//! The REST contract against a real engine: shapes, codes and texts that clients rely on.
#![expect(clippy::unwrap_used, reason = "a panic in a test is the report")]

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request};
use engine::catalog::NewLocalRepository;
use engine::{Catalog, Engine, EngineConfig, ManualClock, Secret, WatchLimits};
use serde_json::{Value, json};
use time::macros::datetime;
use tower::ServiceExt as _;

/// A hub's router in a folder of its own; time stands still.
struct Hub {
    router: Router,
    engine: Engine,
    data: tempfile::TempDir,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        assert_eq!(
            self.header("content-type"),
            "application/json",
            "{}",
            self.text
        );
        assert!(
            self.text.ends_with('\n'),
            "JSON ends with a newline: {:?}",
            self.text
        );
        serde_json::from_str(&self.text).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

impl Hub {
    async fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(datetime!(2025-10-10 08:09:07 UTC)));
        let config = EngineConfig {
            data_dir: data.path().to_owned(),
            database: None,
            nbd_advertise: "127.0.0.1:10809".to_owned(),
            node_url: "http://127.0.0.1:1".to_owned(),
            vcenter_node_urls: Default::default(),
            private_exports: false,
            // 32 zero bytes.
            credential_key: Some(Secret::new(format!("{}=", "A".repeat(43)))),
            watch: WatchLimits::default(),
            extended_headers: true,
        };
        let engine = Engine::open(config, clock.clone()).await.unwrap();
        Self {
            router: api::router(engine.clone(), clock, api::Trust::Everybody),
            engine,
            data,
        }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 1 << 22).await.unwrap();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap())
            .await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.send(Request::delete(path).body(Body::empty()).unwrap())
            .await
    }

    async fn post(&self, path: &str, body: impl ToString) -> Answer {
        let body = Body::from(body.to_string());
        self.send(Request::post(path).body(body).unwrap()).await
    }

    async fn register(&self, vm_name: &str) -> String {
        let answer = self.post("/api/v1/vm-contexts", vm(vm_name)).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.json()["context_id"].as_str().unwrap().to_owned()
    }

    /// Makes a repository past the API, as a legacy hub that had the database before.
    async fn with_repository(&self, id: &str) {
        let url = format!("sqlite:{}", self.data.path().join("hub.db").display());
        let catalog = Catalog::open(&url).await.unwrap();
        let repository = NewLocalRepository {
            id: id.parse().unwrap(),
            name: id.to_owned(),
            path: self.data.path().join(id).display().to_string(),
        };
        let at = datetime!(2025-10-09 00:00:00 UTC);
        catalog.ensure_repository(&repository, at).await.unwrap();
        catalog.close().await;
    }

    /// A completed backup of a new VM.
    async fn completed(&self, vm_name: &str) -> String {
        self.register(vm_name).await;
        let started = self.start(vm_name, "full").await.json();
        let id = started["backup_id"].as_str().unwrap().to_owned();
        for disk in [0, 1] {
            let body = json!({"change_id": format!("52 a{disk}/4"), "disk_id": disk});
            let path = format!("/api/v1/backups/{id}/complete");
            assert_eq!(self.post(&path, body).await.status, 200);
        }
        id
    }

    async fn start(&self, vm_name: &str, backup_type: &str) -> Answer {
        let body = json!({
            "vm_name": vm_name, "repository_id": "local", "backup_type": backup_type,
            "transfer": "direct", "tags": {"who": "test"}
        });
        self.post("/api/v1/backups", body).await
    }
}

fn vm(vm_name: &str) -> Value {
    json!({
        "vm_name": vm_name, "vm_path": format!("/DC/vm/{vm_name}"), "vcenter_host": "vc",
        "disks": [
            {"disk_id": "disk-2000", "capacity_bytes": 4 << 20, "label": "Hard disk 1"},
            {"disk_id": "disk-2001", "capacity_bytes": 1 << 20}
        ]
    })
}

/// Names of an object in the order in which they were sent.
fn names(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut depth, mut key, mut quoted) = (0, String::new(), false);
    for c in text.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                if quoted {
                    key.clear();
                }
            }
            c if quoted => key.push(c),
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ':' if depth == 1 => names.push(key.clone()),
            _ => {}
        }
    }
    names
}

#[tokio::test]
async fn health_is_told_outside_and_inside_the_prefix() {
    let hub = Hub::new().await;
    for path in ["/health", "/api/v1/health"] {
        let answer = hub.get(path).await;
        assert_eq!(answer.status, 200);
        let expected = json!({
            "service": "SHA API", "status": "healthy", "timestamp": "2025-10-10T08:09:07Z",
            "version": env!("CARGO_PKG_VERSION"), "database": "connected"
        });
        assert_eq!(answer.json(), expected);
    }
}

#[tokio::test]
async fn health_notices_a_database_that_is_gone() {
    let hub = Hub::new().await;
    hub.engine.shutdown().await;
    let answer = hub.get("/health").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["database"], "disconnected");
}

#[tokio::test]
async fn the_openapi_document_is_served() {
    let hub = Hub::new().await;
    let expected: Value = serde_json::from_str(&api::openapi_document()).unwrap();
    for path in ["/openapi.json", "/api/v1/openapi.json"] {
        assert_eq!(hub.get(path).await.json(), expected);
    }
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_refused_as_ever() {
    let hub = Hub::new().await;
    for path in [
        "/",
        "/nothing",
        "/api/v1/nothing",
        "/api/v1/backups/",
        "/api/v1/backups/a/b",
    ] {
        let answer = hub.get(path).await;
        assert_eq!(
            (answer.status, answer.text.as_str()),
            (404, "404 page not found\n"),
            "{path}"
        );
        assert!(answer.header("content-type").starts_with("text/plain"));
    }
    for (method, path) in [
        (Method::PUT, "/api/v1/backups"),
        (Method::POST, "/api/v1/backups/stats"),
        (Method::DELETE, "/health"),
    ] {
        let request = Request::builder().method(&method).uri(path);
        let answer = hub.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(
            (answer.status, answer.text.as_str()),
            (405, ""),
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn browsers_may_call() {
    let hub = Hub::new().await;
    let preflight = Request::builder()
        .method(Method::OPTIONS)
        .uri("/api/v1/backups")
        .header("origin", "http://gui")
        .header("access-control-request-method", "PATCH")
        .header(
            "access-control-request-headers",
            "content-type,authorization",
        );
    let answer = hub.send(preflight.body(Body::empty()).unwrap()).await;
    assert!((200..300).contains(&answer.status));
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        assert!(
            answer
                .header("access-control-allow-methods")
                .contains(method),
            "{method}"
        );
    }
    let headers = answer.header("access-control-allow-headers").to_lowercase();
    assert!(headers.contains("content-type") && headers.contains("authorization"));
    assert_eq!(
        hub.get("/health")
            .await
            .header("access-control-allow-origin"),
        "*"
    );
}

#[tokio::test]
async fn a_start_is_refused_with_the_texts_of_the_contract() {
    let hub = Hub::new().await;
    hub.register("web").await;
    let ok = |field: &str, value: Value| {
        let mut body = json!({
            "vm_name": "web", "repository_id": "local", "backup_type": "full", "transfer": "direct"
        });
        body[field] = value;
        body.to_string()
    };
    let cases = [
        (String::new(), 400, "invalid request body"),
        ("{".to_owned(), 400, "invalid request body"),
        ("[]".to_owned(), 400, "invalid request body"),
        (ok("vm_name", json!(7)), 400, "invalid request body"),
        (ok("tags", json!(["a"])), 400, "invalid request body"),
        (ok("tags", json!({"a": 1})), 400, "invalid request body"),
        (ok("vm_name", json!("")), 400, "vm_name is required"),
        (
            ok("repository_id", json!("")),
            400,
            "repository_id is required",
        ),
        (
            ok("backup_type", json!("weekly")),
            400,
            "backup_type must be 'full' or 'incremental'",
        ),
        (
            ok("transfer", json!("post")),
            400,
            "transfer must be 'node' or 'direct'",
        ),
        (ok("vm_name", json!("nobody")), 404, "VM not found"),
        (
            ok("repository_id", json!("nowhere")),
            404,
            "repository not found",
        ),
        (
            ok("backup_type", json!("incremental")),
            400,
            "no previous backup found",
        ),
    ];
    for (body, status, error) in cases {
        let answer = hub.post("/api/v1/backups", &body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        assert_eq!(
            names(&answer.text),
            ["error", "details", "timestamp"],
            "{body}"
        );
        let refusal = answer.json();
        assert_eq!(refusal["error"], error, "{body}");
        assert_eq!(refusal["timestamp"], "", "{body}");
    }
    assert_eq!(
        hub.get("/api/v1/backups?limit=9").await.json()["total"],
        0,
        "refusals leave no backup"
    );
}

#[tokio::test]
async fn a_body_has_a_limit() {
    let hub = Hub::new().await;
    let long = json!({"vm_name": "x".repeat(api::limits::MAX_BODY_BYTES)});
    let answer = hub.post("/api/v1/backups", long).await;
    assert_eq!(answer.status, 413, "{}", answer.text);
    assert_eq!(answer.json()["error"], "invalid request body");
}

#[tokio::test]
async fn a_backup_has_its_shape_from_start_to_cancel() {
    let hub = Hub::new().await;
    let context = hub.register("web").await;
    let answer = hub.start("web", "full").await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let started = answer.json();
    let id = started["backup_id"].as_str().unwrap().to_owned();
    assert_eq!(started["status"], "started");
    assert_eq!(started["vm_context_id"], context.as_str());
    assert_eq!(
        (&started["type"], &started["backup_type"]),
        (&json!("full"), &json!("full"))
    );
    assert_eq!(started["created_at"], "2025-10-10T08:09:07Z");
    assert_eq!(started["tags"], json!({"who": "test"}));
    assert_eq!(started["disks_count"], 2);
    let disks = started["disk_results"].as_array().unwrap();
    let mut targets = Vec::new();
    for (index, disk) in disks.iter().enumerate() {
        let export = disk["nbd_export_name"].as_str().unwrap();
        assert!(export.ends_with(&format!("disk{index}")), "{export}");
        assert_eq!(disk["disk_id"], index);
        assert_eq!(disk["nbd_port"], 10809);
        assert_eq!(disk["status"], "prepared");
        assert!(disk["qemu_nbd_pid"].is_u64() && disk["qcow2_path"].is_string());
        let url = format!("nbd://127.0.0.1:10809/{export}");
        assert_eq!(disk["nbd_url"], url.as_str());
        targets.push(format!("{}:{url}", 2000 + index));
    }
    assert_eq!(started["nbd_targets_string"], targets.join(","));

    let shown = hub.get(&format!("/api/v1/backups/{id}")).await;
    let order = names(&shown.text);
    let head = [
        "backup_id",
        "vm_context_id",
        "vm_name",
        "disk_results",
        "nbd_targets_string",
        "backup_type",
        "type",
        "repository_id",
        "status",
    ];
    assert_eq!(order[..head.len()], head);
    assert_eq!(shown.json()["disk_results"], Value::Null);
    assert_eq!(shown.json()["nbd_targets_string"], "");
    assert_eq!(shown.json()["status"], "running");

    let second = hub.start("web", "full").await;
    assert_eq!(
        second.status, 409,
        "one running backup per VM: {}",
        second.text
    );

    let rows = hub.get(&format!("/api/v1/backups/{id}/disks")).await.json();
    assert_eq!(rows["disks"][1]["disk_index"], 1);
    assert_eq!(rows["disks"][1]["device_key"], 2001);
    assert_eq!(rows["disks"][1]["capacity_bytes"], 1 << 20);
    assert_eq!(rows["disks"][1]["status"], "running");
    assert_eq!(rows["count"], 2);

    let cancel = format!("/api/v1/backups/{id}/cancel");
    let cancelled = hub.post(&cancel, "").await;
    assert_eq!(
        (cancelled.status, &cancelled.json()["status"]),
        (200, &json!("cancelled"))
    );
    assert_eq!(hub.post(&cancel, "").await.status, 409);
    assert_eq!(
        hub.get(&format!("/api/v1/backups/{id}")).await.json()["status"],
        "cancelled"
    );
    let complete = json!({"change_id": "52 a/1", "disk_id": 0});
    let late = hub
        .post(&format!("/api/v1/backups/{id}/complete"), complete)
        .await;
    assert_eq!(late.status, 409, "{}", late.text);
}

#[tokio::test]
async fn completing_every_disk_completes_the_backup() {
    let hub = Hub::new().await;
    hub.register("web").await;
    let id = hub.start("web", "full").await.json()["backup_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let complete = format!("/api/v1/backups/{id}/complete");
    for disk in [0, 1] {
        let change_id = format!("52 a{disk}/4");
        let body = json!({"change_id": change_id, "disk_id": disk, "bytes_transferred": 0});
        for repeat in 0..2 {
            let answer = hub.post(&complete, &body).await;
            assert_eq!(
                answer.status, 200,
                "disk {disk} repeat {repeat}: {}",
                answer.text
            );
            let expected = json!({
                "status": "completed", "backup_id": id, "change_id": change_id,
                "message": "Backup completed successfully, change_id recorded",
                "timestamp": "2025-10-10T08:09:07Z"
            });
            assert_eq!(answer.json(), expected);
        }
    }
    let shown = hub.get(&format!("/api/v1/backups/{id}")).await.json();
    assert_eq!(shown["status"], "completed");
    assert_eq!(shown["completed_at"], "2025-10-10T08:09:07Z");

    let answer = hub
        .get("/api/v1/backups/changeid?vm_name=web&disk_id=1")
        .await;
    let expected = json!({
        "change_id": "52 a1/4", "backup_job_id": id, "disk_id": "1",
        "message": "Previous change_id found", "vm_name": "web"
    });
    assert_eq!(answer.json(), expected);

    let stats = hub
        .get("/api/v1/backups/stats?vm_name=web&repository_id=local")
        .await
        .json();
    assert_eq!(stats["backup_count"], 1);
    assert_eq!(stats["last_backup_at"], "2025-10-10T08:09:07Z");

    let chain = hub.get("/api/v1/backups/web/chain?disk_id=1").await.json();
    assert_eq!(chain["full_backup_id"], id.as_str());
    assert_eq!(
        (&chain["disk_id"], &chain["backup_count"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(chain["backups"][0]["backup_id"], id.as_str());
    let context = shown["vm_context_id"].as_str().unwrap();
    for query in ["vm_name=web", &format!("vm_context_id={context}")] {
        let path = format!("/api/v1/backups/anything/chain?disk_id=1&{query}");
        assert_eq!(hub.get(&path).await.json(), chain, "{query}");
    }

    let auto = hub.start("web", "auto").await.json();
    assert_eq!(auto["type"], "incremental");
}

#[tokio::test]
async fn a_completion_is_refused_with_the_texts_of_the_contract() {
    let hub = Hub::new().await;
    hub.register("web").await;
    let id = hub.start("web", "full").await.json()["backup_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let cases = [
        (id.as_str(), "{".to_owned(), 400, "invalid request body"),
        (
            &id,
            json!({"disk_id": "0"}).to_string(),
            400,
            "invalid request body",
        ),
        (
            &id,
            json!({"disk_id": 0}).to_string(),
            400,
            "missing change_id",
        ),
        (
            &id,
            json!({"change_id": "a/1", "disk_id": 9}).to_string(),
            404,
            "backup job not found",
        ),
        (
            "backup-no-1",
            json!({"change_id": "a/1"}).to_string(),
            404,
            "backup job not found",
        ),
        (
            "..",
            json!({"change_id": "a/1"}).to_string(),
            404,
            "backup job not found",
        ),
    ];
    for (backup, body, status, error) in cases {
        let answer = hub
            .post(&format!("/api/v1/backups/{backup}/complete"), &body)
            .await;
        assert_eq!(answer.status, status, "{backup} {body}: {}", answer.text);
        assert_eq!(answer.json()["error"], error, "{backup} {body}");
    }
    for path in [
        "/api/v1/backups/backup-no-1",
        "/api/v1/backups/%2e%2e%2fx/disks",
    ] {
        let answer = hub.get(path).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (404, &json!("backup not found"))
        );
    }
}

#[tokio::test]
async fn change_ids_are_strings_whatever_happens() {
    let hub = Hub::new().await;
    hub.register("web").await;
    let nothing = |disk: &str, vm: &str| {
        json!({
            "change_id": "", "disk_id": disk, "message": "No previous backup found", "vm_name": vm
        })
    };
    let check = async |query: &str, expected: Value| {
        let answer = hub.get(&format!("/api/v1/backups/changeid?{query}")).await;
        assert_eq!((answer.status, answer.json()), (200, expected), "{query}");
    };
    check("vm_name=web", nothing("0", "web")).await;
    check("vm_name=web&disk_id=3", nothing("3", "web")).await;
    check("vm_name=n%C3%B6+one", nothing("0", "nö one")).await;
    hub.start("web", "full").await;
    check("vm_name=web&disk_id=0", nothing("0", "web")).await;

    for (query, error) in [
        ("", "missing vm_name"),
        ("disk_id=x", "missing vm_name"),
        ("vm_name=web&disk_id=x", "invalid disk_id"),
        ("vm_name=web&disk_id=-1", "invalid disk_id"),
    ] {
        let answer = hub.get(&format!("/api/v1/backups/changeid?{query}")).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (400, &json!(error)),
            "{query}"
        );
    }
}

#[tokio::test]
async fn every_filter_of_the_list_must_hold() {
    let hub = Hub::new().await;
    let web = hub.register("web").await;
    hub.register("db").await;
    for name in ["web", "db"] {
        assert_eq!(hub.start(name, "full").await.status, 200);
    }
    let count = async |query: &str| {
        let answer = hub.get(&format!("/api/v1/backups?{query}")).await;
        assert_eq!(names(&answer.text), ["backups", "total"], "{query}");
        let list = answer.json();
        (
            list["backups"].as_array().unwrap().len(),
            list["total"].as_u64().unwrap(),
        )
    };
    assert_eq!(count("").await, (0, 0), "as the legacy hub answers");
    assert_eq!(count("offset=0").await, (2, 2));
    assert_eq!(count("repository_id=local").await, (2, 2));
    assert_eq!(count("vm_name=web&status=failed").await, (0, 0));
    assert_eq!(count("limit=0").await, (0, 2));
    assert_eq!(count("limit=4000000000").await, (2, 2));
    assert_eq!(count("vm_name=web").await, (1, 1));
    assert_eq!(count(&format!("vm_context_id={web}")).await, (1, 1));
    assert_eq!(count("vm_name=web&repository_id=other").await, (0, 0));
    assert_eq!(
        count("vm_name=web&repository_id=local&status=running").await,
        (1, 1)
    );
    assert_eq!(count("status=completed").await, (0, 0));
    assert_eq!(count("backup_type=incremental").await, (0, 0));
    assert_eq!(count("limit=1").await, (1, 2));
    assert_eq!(count("offset=1").await, (1, 2));
    assert_eq!(count("offset=5").await, (0, 2));
    for (query, error) in [
        ("limit=x", "invalid limit"),
        ("limit=-1", "invalid limit"),
        ("offset=1.5", "invalid offset"),
    ] {
        let answer = hub.get(&format!("/api/v1/backups?{query}")).await;
        let told = answer.json()["error"].clone();
        assert_eq!((answer.status, told), (400, json!(error)), "{query}");
    }
    let unknown = hub.get("/api/v1/backups?vm_name=nobody").await;
    assert_eq!(
        (unknown.status, &unknown.json()["error"]),
        (404, &json!("VM not found"))
    );
}

#[tokio::test]
async fn a_vm_without_backups_has_empty_answers() {
    let hub = Hub::new().await;
    hub.register("web").await;
    let expected = json!({"backup_count": 0, "total_size_bytes": 0, "last_backup_at": ""});
    for vm in ["web", "nobody"] {
        let stats = hub
            .get(&format!(
                "/api/v1/backups/stats?vm_name={vm}&repository_id=local"
            ))
            .await;
        assert_eq!(
            (stats.status, stats.json()),
            (200, expected.clone()),
            "{vm}"
        );
    }
    let stats = hub.get("/api/v1/backups/stats?vm_name=web").await;
    assert_eq!(
        stats.json()["error"],
        "vm_name and repository_id are required"
    );
    let chain = hub.get("/api/v1/backups/web/chain").await;
    assert_eq!(chain.status, 200, "{}", chain.text);
    assert_eq!(
        (&chain.json()["backups"], &chain.json()["backup_count"]),
        (&json!([]), &json!(0))
    );
    let wrong = hub.get("/api/v1/backups/web/chain?disk_id=x").await;
    assert_eq!(
        (wrong.status, &wrong.json()["error"]),
        (400, &json!("invalid disk_id"))
    );
}

#[tokio::test]
async fn a_vm_is_registered_once_and_updated_after() {
    let hub = Hub::new().await;
    let context = hub.register("web").await;
    let again = hub.post("/api/v1/vm-contexts", vm("web")).await;
    assert_eq!(
        (again.status, &again.json()["context_id"]),
        (200, &json!(context))
    );

    let list = hub.get("/api/v1/vm-contexts").await.json();
    assert_eq!(
        (&list["count"], &list["vm_contexts"][0]["vm_name"]),
        (&json!(1), &json!("web"))
    );
    for path in [format!("by-id/{context}"), "web".to_owned()] {
        let shown = hub.get(&format!("/api/v1/vm-contexts/{path}")).await.json();
        assert_eq!(shown["context"]["context_id"], context.as_str());
        assert_eq!(shown["disks"][0]["disk_id"], "disk-2000");
        assert_eq!(
            (&shown["current_job"], &shown["job_history"]),
            (&Value::Null, &json!([]))
        );
    }
    let disks = hub
        .get(&format!("/api/v1/vm-contexts/{context}/disks"))
        .await
        .json();
    assert_eq!(
        (&disks["count"], &disks["disks"][0]["size_gb"]),
        (&json!(2), &json!(1))
    );
    for unknown in ["ctx-unknown", "a%2Fb", &"x".repeat(65)] {
        let none = hub
            .get(&format!("/api/v1/vm-contexts/{unknown}/disks"))
            .await;
        assert_eq!(
            (none.status, none.json()),
            (200, json!({"disks": [], "count": 0})),
            "{unknown}"
        );
    }
    for no_id in ["web", "a%2Fb", "ctx-unknown"] {
        let path = format!("/api/v1/vm-contexts/by-id/{no_id}");
        let answer = hub.get(&path).await;
        assert_eq!(answer.status, 404, "{no_id}: {}", answer.text);
        assert_eq!(names(&answer.text), ["error", "timestamp"], "{no_id}");
    }

    let unknown = hub.get("/api/v1/vm-contexts/nobody").await;
    assert_eq!(
        (unknown.status, names(&unknown.text).join(",")),
        (404, "error,timestamp".to_owned())
    );
    let wrong = hub
        .post("/api/v1/vm-contexts", json!({"vm_name": ""}))
        .await;
    assert_eq!(
        (wrong.status, &wrong.json()["error"]),
        (400, &json!("vm_name is required"))
    );
}

#[tokio::test]
async fn a_password_goes_in_and_never_comes_out() {
    let hub = Hub::new().await;
    let body = json!({
        "credential_name": "lab", "vcenter_host": "vc", "username": "u", "password": "s3cret"
    });
    let answer = hub.post("/api/v1/vmware-credentials", &body).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    assert!(answer.json()["id"].is_i64() && !answer.text.contains("s3cret"));
    let taken = hub.post("/api/v1/vmware-credentials", &body).await;
    assert_eq!(
        (taken.status, taken.header("content-type")),
        (409, "application/problem+json")
    );
    let missing = hub
        .post("/api/v1/vmware-credentials", json!({"password": "s3cret"}))
        .await;
    assert_eq!(missing.status, 400);
    let problem: Value = serde_json::from_str(&missing.text).unwrap();
    assert_eq!(
        (&problem["type"], &problem["status"]),
        (&json!("about:blank"), &json!(400))
    );
    assert_eq!(problem["title"], "credential_name is required");
}

#[tokio::test]
async fn a_fresh_hub_has_a_repository() {
    let hub = Hub::new().await;
    let list = hub.get("/api/v1/repositories").await.json();
    assert_eq!(list["success"], true);
    let local = &list["repositories"][0];
    assert_eq!(
        (&local["id"], &local["type"]),
        (&json!("local"), &json!("local"))
    );
    assert_eq!(
        (&local["enabled"], local["config"]["path"].is_string()),
        (&json!(true), true)
    );
}

#[tokio::test]
async fn metrics_are_text_with_help_and_types() {
    let hub = Hub::new().await;
    let answer = hub.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let has = |line: &str| answer.text.lines().any(|found| found == line);
    for line in [
        "# HELP sendense_nbd_connections_accepted Connections that were accepted",
        "# TYPE sendense_nbd_connections_accepted counter",
        "sendense_nbd_connections_accepted_total 0",
        "sendense_nbd_sessions 0",
        "sendense_nbd_handshakes_ended_total{reason=\"evicted\"} 0",
        "sendense_nbd_requests_total{command=\"block_status\"} 0",
        "# UNIT sendense_nbd_payload_bytes bytes",
        "sendense_nbd_payload_bytes_total{direction=\"received\"} 0",
        "sendense_nbd_payload_held_bytes 0",
        "# EOF",
    ] {
        assert!(has(line), "{line}\n{}", answer.text);
    }
}

#[tokio::test]
async fn a_report_is_taken_in_and_never_ends_well() {
    let hub = Hub::new().await;
    hub.register("web").await;
    let id = hub.start("web", "full").await.json()["backup_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let shown = async || hub.get(&format!("/api/v1/backups/{id}")).await.json();
    assert_eq!(shown().await.get("last_telemetry_at"), None);
    let path = format!("/api/v1/telemetry/backup/{id}");
    let running = json!({
        "job_id": id, "job_type": "backup", "status": "running", "current_phase": "transferring",
        "bytes_transferred": 10, "total_bytes": 0, "transfer_speed_bps": 7, "eta_seconds": -1,
        "progress_percent": 12.5, "disks": [], "timestamp": "2025-10-10T08:09:07Z", "Extra": {}
    });
    let over = json!({
        "status": "completed", "current_phase": "completed", "bytes_transferred": 0,
        "progress_percent": 0, "disks": null, "error": null
    });
    for body in [&running, &over, &json!({"PROGRESS_PERCENT": 1e9})] {
        let answer = hub.post(&path, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let expected = json!({
            "status": "success", "message": "Telemetry received and processed",
            "timestamp": "2025-10-10T08:09:07Z"
        });
        assert_eq!(answer.json(), expected);
        let now = shown().await;
        assert_eq!(now["status"], "running");
        assert_eq!(now["current_phase"], "transferring");
        assert!(now["progress_percent"].as_f64().unwrap() >= 12.5, "{now}");
        assert!(now["progress_percent"].as_f64().unwrap() <= 100.0, "{now}");
        assert_eq!(now["transfer_speed_bps"], 7);
        assert_eq!(now["eta_seconds"], 0);
        assert_eq!(now["last_telemetry_at"], "2025-10-10T08:09:07Z");
    }
    let failed = json!({"status": "running", "error": {"message": "no snapshot", "timestamp": ""}});
    for _ in 0..2 {
        assert_eq!(hub.post(&path, &failed).await.status, 200);
        let now = shown().await;
        assert_eq!(now["status"], "failed");
        assert_eq!(
            now["error_message"],
            "client reported an error: no snapshot"
        );
    }
    assert_eq!(hub.post(&path, &running).await.status, 200);
    assert_eq!(shown().await["status"], "failed");
    assert_eq!(hub.start("web", "full").await.status, 200);
}

#[tokio::test]
async fn a_report_is_refused_in_plain_text() {
    let hub = Hub::new().await;
    hub.register("web").await;
    let id = hub.start("web", "full").await.json()["backup_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let long = format!("{{\"status\":\"{}\"}}", "x".repeat(2 << 20));
    for (job, body, status, text) in [
        (id.as_str(), "{", 400, "Invalid request body\n"),
        (&id, "[]", 400, "Invalid request body\n"),
        (&id, r#"{"status":1}"#, 400, "Invalid request body\n"),
        (&id, r#"{"eta_seconds":1.5}"#, 400, "Invalid request body\n"),
        (&id, r#"{"error":"x"}"#, 400, "Invalid request body\n"),
        (&id, &long, 413, "Invalid request body\n"),
        ("backup-nobody-1", "{}", 404, "backup job not found\n"),
        ("..%2Fx", "{}", 404, "backup job not found\n"),
    ] {
        let answer = hub
            .post(&format!("/api/v1/telemetry/backup/{job}"), body)
            .await;
        assert_eq!(
            (answer.status, answer.text.as_str()),
            (status, text),
            "{job}"
        );
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    }
}

#[tokio::test]
async fn a_backup_is_deleted_unless_something_needs_it() {
    let hub = Hub::new().await;
    hub.register("web").await;
    let mut ids = Vec::new();
    for backup_type in ["full", "incremental"] {
        let started = hub.start("web", backup_type).await.json();
        let id = started["backup_id"].as_str().unwrap().to_owned();
        let running = hub.delete(&format!("/api/v1/backups/{id}")).await;
        assert_eq!(
            (running.status, &running.json()["error"]),
            (409, &json!("backup is running"))
        );
        for disk in [0, 1] {
            let body = json!({"change_id": format!("52 a{disk}/{}", ids.len()), "disk_id": disk});
            let complete = format!("/api/v1/backups/{id}/complete");
            assert_eq!(hub.post(&complete, body).await.status, 200);
        }
        ids.push(id);
    }
    let parent = hub.delete(&format!("/api/v1/backups/{}", ids[0])).await;
    assert_eq!(parent.status, 409, "{}", parent.text);
    assert_eq!(names(&parent.text), ["error", "details", "timestamp"]);
    assert_eq!(parent.json()["error"], "backup has dependent backups");
    assert!(parent.json()["details"].as_str().unwrap().contains(&ids[1]));
    for id in ids.iter().rev() {
        let path = format!("/api/v1/backups/{id}");
        let deleted = hub.delete(&path).await;
        let expected = json!({"message": "backup deleted successfully", "backup_id": id});
        assert_eq!((deleted.status, deleted.json()), (200, expected));
        assert_eq!(names(&deleted.text), ["message", "backup_id"]);
        assert_eq!(hub.get(&path).await.status, 404);
        let again = hub.delete(&path).await;
        assert_eq!(
            (again.status, &again.json()["error"]),
            (404, &json!("backup not found"))
        );
    }
    assert_eq!(hub.delete("/api/v1/backups/..%2Fx").await.status, 404);
    let list = hub.get("/api/v1/backups?vm_name=web").await.json();
    assert_eq!(list["total"], 0);
}

/// Reads events until one has this name; `(name, data)` of each.
async fn events_until(body: Body, last: &str) -> Vec<(String, Value)> {
    let mut body = body.into_data_stream();
    let (mut text, mut told) = (String::new(), Vec::new());
    loop {
        while let Some((event, rest)) = text.split_once("\n\n") {
            let field = |name: &str| {
                let line = event.lines().find_map(|line| line.strip_prefix(name));
                line.map(|value| value.trim().to_owned())
            };
            if let (Some(name), Some(data)) = (field("event:"), field("data:")) {
                told.push((name, serde_json::from_str(&data).unwrap()));
            }
            text = rest.to_owned();
            if told.last().is_some_and(|(name, _)| name == last) {
                return told;
            }
        }
        let wait = std::time::Duration::from_secs(30);
        let next = futures_util::StreamExt::next(&mut body);
        let piece = tokio::time::timeout(wait, next).await.unwrap();
        text.push_str(std::str::from_utf8(&piece.expect("no end yet").unwrap()).unwrap());
    }
}

#[tokio::test]
async fn live_views_are_told_what_happens() {
    let hub = Hub::new().await;
    hub.register("web").await;
    let listen = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = hub.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        response.into_body()
    };
    let all = listen("/api/v1/backups/events").await;
    let id = hub.start("web", "full").await.json()["backup_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/api/v1/backups/{id}/events");
    let one = listen(&path).await;
    let body = json!({"change_id": "52 a/1", "disk_id": 0});
    let complete = format!("/api/v1/backups/{id}/complete");
    assert_eq!(hub.post(&complete, body).await.status, 200);
    hub.post(&format!("/api/v1/backups/{id}/cancel"), "").await;

    let names = |told: &[(String, Value)]| {
        let names = told.iter().map(|(name, _)| name.clone());
        names.filter(|name| name != "progress").collect::<Vec<_>>()
    };
    let told = events_until(all, "cancelled").await;
    assert_eq!(names(&told), ["started", "disk_completed", "cancelled"]);
    let told = events_until(one, "cancelled").await;
    assert_eq!(names(&told), ["state", "disk_completed", "cancelled"]);
    assert!(
        told.iter()
            .all(|(_, backup)| backup["backup_id"] == id.as_str())
    );
    assert_eq!(told.last().unwrap().1["status"], "cancelled");

    // One that has ended says so, and that is all.
    let over = hub.get(&path).await;
    assert_eq!(over.text.matches("event:").count(), 1, "{}", over.text);
    assert!(over.text.contains("event: state"), "{}", over.text);
    let unknown = hub.get("/api/v1/backups/backup-nobody-1/events").await;
    assert_eq!(
        (unknown.status, &unknown.json()["error"]),
        (404, &json!("backup not found"))
    );
    // The hub's end is the end of every stream.
    let request = Request::get("/api/v1/backups/events").body(Body::empty());
    let open = hub.router.clone().oneshot(request.unwrap()).await.unwrap();
    hub.engine.end_subscriptions();
    to_bytes(open.into_body(), 1 << 16).await.unwrap();
}

/// A refusal of `/policies` and of copies: one line of plain text.
fn assert_line(answer: &Answer, status: u16, starts: &str, request: &str) {
    let said = format!("{request}: {} {}", answer.status, answer.text);
    assert_eq!(answer.status, status, "{said}");
    assert_eq!(
        answer.header("content-type"),
        "text/plain; charset=utf-8",
        "{said}"
    );
    assert!(answer.text.starts_with(starts), "{said}");
    assert_eq!(answer.text.lines().count(), 1, "{said}");
    assert!(answer.text.ends_with('\n'), "{said}");
}

#[tokio::test]
async fn a_policy_has_its_shape_from_post_to_delete() {
    let hub = Hub::new().await;
    hub.with_repository("far").await;
    assert_eq!(hub.get("/api/v1/policies").await.json(), json!([]));
    let body = json!({
        "name": "daily", "enabled": true, "primary_repository_id": "local", "retention_days": 30,
        "copy_rules": [{
            "id": "own", "destination_repository_id": "far", "copy_mode": "scheduled", "priority": 1,
            "enabled": true, "verify_after_copy": true
        }]
    });
    let made = hub.post("/api/v1/policies", body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let order = [
        "id",
        "name",
        "enabled",
        "primary_repository_id",
        "retention_days",
        "copy_rules",
        "created_at",
        "updated_at",
    ];
    assert_eq!(names(&made.text), order);
    let policy = made.json();
    let id = policy["id"].as_str().unwrap();
    assert!(id.len() == 36 && id.matches('-').count() == 4, "{id}");
    let at = "2025-10-10T08:09:07Z";
    let expected = json!({
        "id": id, "name": "daily", "enabled": true, "primary_repository_id": "local",
        "retention_days": 30, "created_at": at, "updated_at": at,
        "copy_rules": [{
            "id": "own", "policy_id": id, "destination_repository_id": "far",
            "copy_mode": "scheduled", "priority": 1, "enabled": true, "verify_after_copy": true,
            "created_at": at
        }]
    });
    assert_eq!(policy, expected);
    let path = format!("/api/v1/policies/{id}");
    assert_eq!(hub.get(&path).await.json(), expected);
    assert_eq!(hub.get("/api/v1/policies").await.json(), json!([expected]));

    hub.register("web").await;
    let start = json!({
        "vm_name": "web", "repository_id": "local", "backup_type": "full", "transfer": "direct",
        "policy_id": id
    });
    let started = hub.post("/api/v1/backups", start).await.json();
    assert_eq!(started["policy_id"], id);
    let backup = started["backup_id"].as_str().unwrap();
    let shown = hub.get(&format!("/api/v1/backups/{backup}")).await;
    assert_eq!(shown.json()["policy_id"], id);

    let deleted = hub.delete(&path).await;
    assert_eq!(
        (deleted.status, deleted.json()),
        (
            200,
            json!({"message": "Policy deleted successfully", "id": id})
        )
    );
    assert_line(&hub.get(&path).await, 404, "Policy not found: ", &path);
    assert_line(&hub.delete(&path).await, 404, "Policy not found: ", &path);
    let shown = hub.get(&format!("/api/v1/backups/{backup}")).await.json();
    assert_eq!(shown.get("policy_id"), None, "the backup stays");
    let start = json!({
        "vm_name": "web", "repository_id": "local", "backup_type": "full", "transfer": "direct",
        "policy_id": id
    });
    let gone = hub.post("/api/v1/backups", start).await;
    assert_eq!(
        (gone.status, &gone.json()["error"]),
        (404, &json!("Policy not found"))
    );
}

#[tokio::test]
async fn a_policy_is_refused_in_a_line_of_text_and_leaves_nothing() {
    let hub = Hub::new().await;
    hub.with_repository("far").await;
    let policy = |change: &dyn Fn(&mut Value)| {
        let mut body = json!({"name": "new", "primary_repository_id": "local", "copy_rules": [
            {"id": "new", "destination_repository_id": "far", "priority": 1}]});
        change(&mut body);
        body
    };
    let rule = |field: &'static str, value: Value| {
        policy(&|body| body["copy_rules"][0][field] = value.clone())
    };
    let taken = policy(&|body| {
        body["name"] = json!("taken");
        body["copy_rules"][0]["id"] = json!("held");
    });
    assert_eq!(hub.post("/api/v1/policies", taken).await.status, 201);
    let cases = [
        (json!("text"), 400, "invalid request body: "),
        (
            json!({"retention_days": "7"}),
            400,
            "invalid request body: ",
        ),
        (json!({}), 400, "Policy name is required"),
        (
            json!({"name": "n"}),
            400,
            "Primary repository ID is required",
        ),
        (
            policy(&|body| body["retention_days"] = json!(-1)),
            400,
            "Failed to create policy: retention_days is out of range: ",
        ),
        (
            policy(&|body| body["primary_repository_id"] = json!("nowhere")),
            404,
            "Failed to create policy: repository not found: ",
        ),
        (
            rule("destination_repository_id", json!("nowhere")),
            404,
            "Failed to create policy: repository not found: ",
        ),
        (
            rule("destination_repository_id", json!("local")),
            400,
            "Failed to create policy: a copy rule goes to the primary repository: ",
        ),
        (
            rule("priority", json!(0)),
            400,
            "Failed to create policy: priority is out of range: ",
        ),
        (rule("copy_mode", json!("later")), 400, "copy_mode must be "),
        (
            rule("id", json!("x".repeat(65))),
            400,
            "malformed copy rule id: ",
        ),
        (
            rule("id", json!("held")),
            409,
            "Failed to create policy: copy rule id is taken: ",
        ),
        (
            json!({"name": "taken", "primary_repository_id": "local"}),
            409,
            "Failed to create policy: policy name is taken: ",
        ),
    ];
    for (body, status, starts) in cases {
        let answer = hub.post("/api/v1/policies", &body).await;
        assert_line(&answer, status, starts, &body.to_string());
    }
    let list = hub.get("/api/v1/policies").await.json();
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list[0]["name"], "taken");
    let odd = hub.get("/api/v1/policies/a%2Fb").await;
    assert_line(&odd, 404, "Policy not found: ", "a/b");
}

#[tokio::test]
async fn a_copy_is_recorded_as_pending_and_nothing_else() {
    let hub = Hub::new().await;
    hub.with_repository("far").await;
    let id = hub.completed("web").await;
    let copies = format!("/api/v1/backups/{id}/copies");
    let copy = format!("/api/v1/backups/{id}/copy");
    assert_eq!(hub.get(&copies).await.json(), json!([]));
    let far = json!({"repository_id": "far"});
    let asked = hub.post(&copy, &far).await;
    assert_eq!(asked.status, 201, "{}", asked.text);
    assert_eq!(names(&asked.text), ["message", "copy_id", "status"]);
    let asked = asked.json();
    assert_eq!(asked["message"], "Backup copy triggered successfully");
    assert_eq!(asked["status"], "pending");
    let expected = json!([{
        "id": asked["copy_id"], "source_backup_id": id, "repository_id": "far", "status": "pending",
        "file_path": "", "size_bytes": 0, "verification_status": "pending",
        "created_at": "2025-10-10T08:09:07Z"
    }]);
    assert_eq!(hub.get(&copies).await.json(), expected);

    hub.register("db").await;
    let running = hub.start("db", "full").await.json();
    let running = format!(
        "/api/v1/backups/{}/copy",
        running["backup_id"].as_str().unwrap()
    );
    let nothing = "/api/v1/backups/backup-nothing-1";
    for (path, body, status, starts) in [
        (&copy, json!("far"), 400, "invalid request body: "),
        (&copy, json!({}), 400, "Repository ID is required"),
        (
            &copy,
            json!({"repository_id": "local"}),
            400,
            "the backup is in this repository: ",
        ),
        (
            &copy,
            json!({"repository_id": "nowhere"}),
            404,
            "repository not found: ",
        ),
        (
            &copy,
            far.clone(),
            409,
            "the repository has a copy of this backup: ",
        ),
        (&running, far.clone(), 409, "backup is not completed: "),
        (
            &format!("{nothing}/copy"),
            far.clone(),
            404,
            "backup not found: ",
        ),
    ] {
        let answer = hub.post(path, &body).await;
        assert_line(&answer, status, starts, &format!("{path} {body}"));
    }
    assert_eq!(hub.get(&copies).await.json(), expected);
    let none = hub.get(&format!("{nothing}/copies")).await;
    assert_eq!((none.status, none.json()), (200, json!([])));
}
