//! Who is let in, at every path of the document, for every role.
#![expect(clippy::unwrap_used, reason = "a panic in a test is the report")]

use std::net::SocketAddr;
use std::sync::Arc;

use api::Trust;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::connect_info::MockConnectInfo;
use axum::http::{HeaderMap, Request};
use engine::{
    Engine, EngineConfig, ManualClock, NewToken, Reach, RequestedType, Role, Secret, StartBackup,
    Transfer, Verb, WatchLimits, reach,
};
use serde_json::{Value, json};
use time::macros::datetime;
use tower::ServiceExt as _;

const HERE: &str = "127.0.0.1:5000";
const ELSEWHERE: &str = "192.0.2.7:5000";

/// A hub as one caller reaches it.
struct Hub {
    engine: Engine,
    clock: Arc<ManualClock>,
    _data: tempfile::TempDir,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }
}

/// From where, with what.
#[derive(Clone, Copy)]
struct Way<'a> {
    trust: Trust,
    peer: &'a str,
    token: Option<&'a str>,
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
            credential_key: Some(Secret::new(format!("{}=", "A".repeat(43)))),
            watch: WatchLimits::default(),
            extended_headers: true,
        };
        let engine = Engine::open(config, clock.clone()).await.unwrap();
        Self {
            engine,
            clock,
            _data: data,
        }
    }

    fn router(&self, way: Way<'_>) -> Router {
        let peer: SocketAddr = way.peer.parse().unwrap();
        api::router(self.engine.clone(), self.clock.clone(), way.trust).layer(MockConnectInfo(peer))
    }

    async fn ask(&self, way: Way<'_>, method: &str, path: &str, body: Value) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = way.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = match body {
            Value::Null => Body::empty(),
            body => Body::from(body.to_string()),
        };
        let request = request.body(body).unwrap();
        let response = self.router(way).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        // A stream of events has no end to wait for.
        let kind = parts.headers.get("content-type");
        let is_endless = kind.is_some_and(|kind| kind == "text/event-stream");
        let body = match is_endless {
            true => Bytes::new(),
            false => to_bytes(body, 1 << 22).await.unwrap(),
        };
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// A token of this role; a node's is for `job`.
    async fn token(&self, role: Role, job: Option<&str>) -> String {
        let job = job.map(|id| id.parse().unwrap());
        let name = format!("{role}-{}", job.is_some());
        let (_, text) = self
            .engine
            .create_token(&NewToken { name, role, job })
            .await
            .unwrap();
        text.reveal().to_owned()
    }

    /// A running backup of a new VM.
    async fn backup(&self, vm_name: &str) -> String {
        let body = json!({"vm_name": vm_name, "vcenter_host": "vc",
            "disks": [{"disk_id": "disk-2000", "capacity_bytes": 1 << 20}]});
        let registered = self.ask(trusted(), "POST", "/api/v1/vm-contexts", body);
        assert_eq!(registered.await.status, 201);
        let request = StartBackup {
            backup_type: RequestedType::Full,
            transfer: Transfer::Direct,
            repository_id: "local".parse().unwrap(),
            vm_name: vm_name.to_owned(),
            policy_id: None,
        };
        let started = self.engine.start_backup(request).await.unwrap();
        started.backup.id.to_string()
    }
}

fn trusted() -> Way<'static> {
    Way {
        trust: Trust::Loopback,
        peer: HERE,
        token: None,
    }
}

fn with(token: &str) -> Way<'_> {
    Way {
        trust: Trust::Nobody,
        peer: ELSEWHERE,
        token: Some(token),
    }
}

/// Method, path with something in each hole, and the verb; `None` for those that are open.
fn operations() -> Vec<(String, String, Option<Verb>)> {
    let document: Value = serde_json::from_str(&api::openapi_document()).unwrap();
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let filled: Vec<_> = path
            .split('/')
            .map(|part| {
                if part.starts_with('{') {
                    "nothing"
                } else {
                    part
                }
            })
            .collect();
        for (method, operation) in methods.as_object().unwrap() {
            let verb = operation["x-verb"]
                .as_str()
                .map(|word| word.parse().unwrap());
            assert_eq!(verb.is_some(), operation["security"].is_array(), "{path}");
            found.push((method.to_uppercase(), filled.join("/"), verb));
        }
    }
    found
}

fn is_refusal(status: u16) -> bool {
    matches!(status, 401 | 403)
}

#[test]
fn only_these_are_open() {
    let open: Vec<_> = operations()
        .into_iter()
        .filter(|(_, _, verb)| verb.is_none())
        .map(|(method, path, _)| format!("{method} {path}"))
        .collect();
    let expected = [
        "POST /api/v1/auth/login",
        "GET /api/v1/health",
        "GET /health",
    ];
    assert_eq!(open, expected);
}

#[tokio::test]
async fn every_role_gets_as_far_on_every_path_as_the_table_says() {
    let hub = Hub::new().await;
    let job = hub.backup("web").await;
    for role in Role::ALL {
        let token = match role {
            Role::Trusted => String::new(),
            Role::Node => hub.token(*role, Some(&job)).await,
            _ => hub.token(*role, None).await,
        };
        let way = match role {
            Role::Trusted => trusted(),
            _ => with(&token),
        };
        for (method, path, verb) in operations() {
            let answer = hub.ask(way, &method, &path, Value::Null).await;
            // The paths name nothing that exists, so a node never asks about its own job.
            let may = verb.is_none_or(|verb| reach(*role, verb) == Reach::All);
            let said = format!("{role} {method} {path}: {} {}", answer.status, answer.text);
            match (may, verb) {
                (true, Some(_)) => assert!(!is_refusal(answer.status), "{said}"),
                (true, None) => assert_ne!(answer.status, 403, "{said}"),
                (false, _) => assert_eq!(answer.status, 403, "{said}"),
            }
        }
    }
}

#[tokio::test]
async fn without_a_token_every_path_that_is_not_open_says_401() {
    let hub = Hub::new().await;
    let unknown = format!("sendense_{}", "0".repeat(64));
    let strangers = [
        (Trust::Nobody, HERE, None),
        (Trust::Nobody, ELSEWHERE, None),
        (Trust::Loopback, ELSEWHERE, None),
        // A token that is presented must be good, wherever it comes from.
        (Trust::Nobody, HERE, Some(unknown.as_str())),
        (Trust::Loopback, HERE, Some(unknown.as_str())),
        (Trust::Everybody, ELSEWHERE, Some(unknown.as_str())),
        (Trust::Loopback, HERE, Some("")),
    ];
    for (trust, peer, token) in strangers {
        for (method, path, verb) in operations() {
            let way = Way { trust, peer, token };
            let answer = hub.ask(way, &method, &path, Value::Null).await;
            let said = format!("{trust:?} {peer} {method} {path}: {}", answer.status);
            if verb.is_none() {
                assert_ne!(answer.status, 403, "{said}");
                continue;
            }
            assert_eq!(answer.status, 401, "{said}");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            let body = answer.json();
            let expected = match token {
                None => "Missing authorization header",
                Some(_) => "Invalid or expired token",
            };
            assert_eq!(body["error"], expected, "{said}");
            assert!(body["details"].is_string(), "{said}");
            let at = body["timestamp"].as_str().unwrap();
            assert!(at.starts_with("20") && at.ends_with('Z'), "{at}");
        }
    }
}

#[tokio::test]
async fn a_refusal_has_the_shape_of_its_family() {
    let hub = Hub::new().await;
    let token = hub.token(Role::ReadOnly, None).await;
    let check = async |path: &str, expected: Value| {
        let answer = hub.ask(with(&token), "POST", path, Value::Null).await;
        let mut body = answer.json();
        if body["timestamp"] != "" && body.get("timestamp").is_some() {
            body["timestamp"] = json!("now");
        }
        assert_eq!((answer.status, body), (403, expected), "{path}");
    };
    let why = |verb: &str| format!("role=read-only verb={verb}");
    let error = "not allowed for this role";
    check(
        "/api/v1/backups",
        json!({"error": error, "details": why("start_backup"), "timestamp": ""}),
    )
    .await;
    check(
        "/api/v1/vm-contexts",
        json!({"error": format!("{error}: {}", why("register_vm")), "timestamp": "now"}),
    )
    .await;
    check(
        "/api/v1/tokens",
        json!({"type": "about:blank", "title": error, "status": 403, "detail": why("manage_tokens")}),
    )
    .await;
}

#[tokio::test]
async fn a_node_does_its_own_job_and_no_other() {
    let hub = Hub::new().await;
    let (own, other) = (hub.backup("web").await, hub.backup("db").await);
    let token = hub.token(Role::Node, Some(&own)).await;
    let ask = async |method: &str, path: String, body: Value| {
        hub.ask(with(&token), method, &path, body).await.status
    };
    let change_id = |vm: &str| format!("/api/v1/backups/changeid?vm_name={vm}");
    assert_eq!(ask("GET", change_id("web"), Value::Null).await, 200);
    assert_eq!(ask("GET", change_id("db"), Value::Null).await, 403);
    assert_eq!(
        ask("GET", change_id("db&vm_name=web"), Value::Null).await,
        403,
        "the first of two names is the one that is answered"
    );
    assert_eq!(
        ask("GET", format!("/api/v1/backups/{own}"), Value::Null).await,
        403
    );
    let complete = |id: &str| format!("/api/v1/backups/{id}/complete");
    let done = || json!({"change_id": "c/1", "disk_id": 0});
    assert_eq!(ask("POST", complete(&other), done()).await, 403);
    assert_eq!(ask("POST", complete(&own), done()).await, 200);
    assert_eq!(ask("POST", complete(&own), done()).await, 200, "repeated");
    assert_eq!(
        ask("GET", change_id("web"), Value::Null).await,
        403,
        "its job has ended"
    );
}

#[tokio::test]
async fn a_token_is_made_shown_once_listed_and_revoked() {
    let hub = Hub::new().await;
    let admin = hub.token(Role::Admin, None).await;
    let body = json!({"name": "ops", "role": "operator"});
    let made = hub
        .ask(with(&admin), "POST", "/api/v1/tokens", body.clone())
        .await;
    assert_eq!(made.status, 201, "{}", made.text);
    let token = made.json()["token"].as_str().unwrap().to_owned();
    let again = hub.ask(with(&admin), "POST", "/api/v1/tokens", body).await;
    assert_eq!(again.status, 409);

    let listed = hub
        .ask(with(&admin), "GET", "/api/v1/tokens", Value::Null)
        .await;
    assert!(!listed.text.contains("sendense_"), "{}", listed.text);
    let names: Vec<_> = listed.json()["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["admin-false", "ops"]);

    let list = "/api/v1/vm-contexts";
    assert_eq!(
        hub.ask(with(&token), "GET", list, Value::Null).await.status,
        200
    );
    let revoke = "/api/v1/tokens/ops";
    assert_eq!(
        hub.ask(with(&admin), "DELETE", revoke, Value::Null)
            .await
            .status,
        200
    );
    assert_eq!(
        hub.ask(with(&admin), "DELETE", revoke, Value::Null)
            .await
            .status,
        404
    );
    assert_eq!(
        hub.ask(with(&token), "GET", list, Value::Null).await.status,
        401
    );
    assert_eq!(
        hub.ask(trusted(), "GET", "/api/v1/tokens", Value::Null)
            .await
            .status,
        403,
        "trust without a token makes no tokens"
    );
    for (bad, status) in [
        (json!({"name": "x"}), 400),
        (json!({"name": "x", "role": "trusted"}), 400),
        (json!({"name": "", "role": "admin"}), 400),
        (json!({"name": "x", "role": "node"}), 400),
        (
            json!({"name": "x", "role": "node", "job_id": "backup-none-1"}),
            404,
        ),
        (
            json!({"name": "x", "role": "admin", "job_id": "backup-none-1"}),
            400,
        ),
    ] {
        let answer = hub
            .ask(with(&admin), "POST", "/api/v1/tokens", bad.clone())
            .await;
        assert_eq!(answer.status, status, "{bad} {}", answer.text);
    }
}

#[tokio::test]
async fn an_appliance_logs_in_as_it_always_did() {
    let hub = Hub::new().await;
    let token = hub.token(Role::Operator, None).await;
    let login = async |body: &str| {
        let stranger = Way {
            trust: Trust::Nobody,
            peer: ELSEWHERE,
            token: None,
        };
        let request = Request::post("/api/v1/auth/login").body(Body::from(body.to_owned()));
        let response = hub
            .router(stranger)
            .oneshot(request.unwrap())
            .await
            .unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 16).await.unwrap();
        (status, serde_json::from_slice::<Value>(&body).unwrap())
    };
    let good = json!({"appliance_id": "sna-1", "token": token, "version": "1"}).to_string();
    let expected =
        json!({"success": true, "session_token": token, "expires_at": "2035-10-08T08:09:07Z"});
    assert_eq!(login(&good).await, (200, expected));
    let refused = json!({"success": false, "error_message": "Invalid credentials"});
    assert_eq!(login(r#"{"token":"wrong"}"#).await, (401, refused.clone()));
    assert_eq!(login("{}").await, (401, refused));
    let (status, body) = login("{").await;
    assert_eq!(
        (status, &body["error"]),
        (400, &json!("Invalid request payload"))
    );
    assert!(body["timestamp"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn every_answer_has_the_id_of_its_request() {
    let hub = Hub::new().await;
    let ask = async |id: Option<&str>, path: &str| {
        let mut request = Request::get(path);
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        let request = request.body(Body::empty()).unwrap();
        let response = hub.router(trusted()).oneshot(request).await.unwrap();
        let id = response.headers()["x-request-id"].to_str().unwrap();
        id.to_owned()
    };
    for path in ["/health", "/api/v1/backups", "/nothing"] {
        assert_eq!(ask(Some("abc-1"), path).await, "abc-1");
        let (one, two) = (ask(None, path).await, ask(None, path).await);
        assert_ne!(one, two);
        assert_eq!(ask(Some("a b"), path).await.len(), 36, "replaced");
    }
}

#[tokio::test]
async fn preflights_are_answered_on_every_path_without_a_token() {
    let hub = Hub::new().await;
    let stranger = Way {
        trust: Trust::Nobody,
        peer: ELSEWHERE,
        token: None,
    };
    for (method, path, _) in operations() {
        let request = Request::options(&path)
            .header("origin", "http://gui")
            .header("access-control-request-method", &method)
            .header(
                "access-control-request-headers",
                "authorization,content-type",
            )
            .body(Body::empty())
            .unwrap();
        let response = hub.router(stranger).oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), 200, "{method} {path}");
        let allowed = response.headers()["access-control-allow-methods"]
            .to_str()
            .unwrap();
        assert!(allowed.contains(&method), "{allowed}");
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        assert!(
            !response
                .headers()
                .contains_key("access-control-allow-credentials")
        );
    }
}

#[tokio::test]
async fn what_changes_something_is_recorded_with_who_and_what_and_how_it_ended() {
    let hub = Hub::new().await;
    let admin = hub.token(Role::Admin, None).await;
    let reader = hub.token(Role::ReadOnly, None).await;
    let vm =
        json!({"vm_name": "web", "disks": [{"disk_id": "disk-2000", "capacity_bytes": 1 << 20}]});
    let made = hub
        .ask(trusted(), "POST", "/api/v1/vm-contexts", vm.clone())
        .await;
    let context_id = made.json()["context_id"].as_str().unwrap().to_owned();
    hub.ask(with(&reader), "POST", "/api/v1/vm-contexts", vm.clone())
        .await;
    let stranger = Way {
        token: None,
        ..with("")
    };
    hub.ask(
        stranger,
        "POST",
        "/api/v1/backups/backup-web-1/cancel",
        Value::Null,
    )
    .await;
    let secret = json!({"credential_name": "vc", "vcenter_host": "h", "username": "u", "password": "hunter2"});
    hub.ask(with(&admin), "POST", "/api/v1/vmware-credentials", secret)
        .await;
    let new = json!({"name": "ops", "role": "operator"});
    let token = hub
        .ask(with(&admin), "POST", "/api/v1/tokens", new)
        .await
        .json()["token"]
        .clone();
    hub.ask(
        with(&admin),
        "POST",
        "/api/v1/backups/backup-none-1/cancel",
        Value::Null,
    )
    .await;
    hub.ask(with(&reader), "GET", "/api/v1/vm-contexts", Value::Null)
        .await;

    let log = hub
        .ask(with(&admin), "GET", "/api/v1/audit", Value::Null)
        .await;
    assert_eq!(log.status, 200);
    for secret in ["hunter2", "sendense_", token.as_str().unwrap()] {
        assert!(!log.text.contains(secret), "{}", log.text);
    }
    let rows: Vec<_> = log.json()["entries"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(row)
        .collect();
    let expected = [
        format!("loopback trusted 127.0.0.1 register_vm context_id={context_id} done 201"),
        "read-only-false read-only 192.0.2.7 register_vm  refused 403".to_owned(),
        "unknown - 192.0.2.7 cancel_backup backup_id=backup-web-1 refused 401".to_owned(),
        "admin-false admin 192.0.2.7 add_credential credential_id=1 done 201".to_owned(),
        "admin-false admin 192.0.2.7 manage_tokens name=ops done 201".to_owned(),
        "admin-false admin 192.0.2.7 cancel_backup backup_id=backup-none-1 refused 404".to_owned(),
    ];
    assert_eq!(rows, expected);
    for entry in log.json()["entries"].as_array().unwrap() {
        assert_eq!(entry["request_id"].as_str().unwrap().len(), 36);
        assert_eq!(entry["time"], "2025-10-10T08:09:07Z");
    }
    let page = hub.ask(
        with(&admin),
        "GET",
        "/api/v1/audit?limit=2&actor=admin-false",
        Value::Null,
    );
    let page = page.await.json();
    assert_eq!(page["entries"].as_array().unwrap().len(), 2);
    let next = format!(
        "/api/v1/audit?actor=admin-false&before={}",
        page["next_before"]
    );
    let rest = hub
        .ask(with(&admin), "GET", &next, Value::Null)
        .await
        .json();
    assert_eq!(rest["entries"].as_array().unwrap().len(), 1);
    let odd = hub
        .ask(with(&admin), "GET", "/api/v1/audit?limit=x", Value::Null)
        .await;
    assert_eq!(odd.status, 400, "{}", odd.text);
}

/// An entry of the audit log in a line.
fn row(entry: &Value) -> String {
    let word = |name: &str| entry[name].as_str().unwrap_or("-").to_owned();
    let words = ["actor", "role", "peer", "verb", "object", "outcome"].map(word);
    format!("{} {}", words.join(" "), entry["status"])
}

#[tokio::test]
async fn strangers_do_not_fill_the_audit_log() {
    let hub = Hub::new().await;
    let router = hub.router(Way {
        token: None,
        ..with("")
    });
    for _ in 0..50 {
        let request = Request::post("/api/v1/backups")
            .body(Body::empty())
            .unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), 401);
    }
    let log = hub
        .ask(trusted(), "GET", "/api/v1/audit?limit=1000", Value::Null)
        .await
        .json();
    let entries = log["entries"].as_array().unwrap().len();
    assert_eq!(entries, api::limits::AUDITED_STRANGERS_PER_MINUTE as usize);
}

/// What was begun is done and recorded whatever becomes of the caller.
#[tokio::test]
async fn a_caller_who_goes_away_is_recorded_all_the_same() {
    let hub = Hub::new().await;
    let body =
        json!({"vm_name": "web", "disks": [{"disk_id": "disk-2000", "capacity_bytes": 1 << 20}]});
    let request = Request::post("/api/v1/vm-contexts")
        .body(Body::from(body.to_string()))
        .unwrap();
    let mut asked = std::pin::pin!(hub.router(trusted()).oneshot(request));
    // Up to its first wait, which is for the task that does the work.
    assert!(futures_util::poll!(&mut asked).is_pending());
    let log = async || {
        hub.ask(trusted(), "GET", "/api/v1/audit", Value::Null)
            .await
            .json()
    };
    let recorded = async {
        while log().await["entries"].as_array().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let bound = std::time::Duration::from_secs(60);
    tokio::time::timeout(bound, recorded)
        .await
        .expect("an entry");
    assert_eq!(log().await["entries"][0]["outcome"], "done");
}
