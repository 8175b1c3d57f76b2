//! Tokens and the real program: made before and beside a running hub, and asked for at once.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::path::Path;
use std::process::{Command, Output};

use tests::hub::Hub;

const HUB: &str = env!("CARGO_BIN_EXE_hub");

fn token(data: &Path, args: &[&str]) -> Output {
    Command::new(HUB)
        .arg("token")
        .args(args)
        .arg("--data")
        .arg(data)
        .output()
        .unwrap()
}

fn token_ok(data: &Path, args: &[&str]) -> String {
    let output = token(data, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn started(data: &Path) -> Hub {
    let mut command = Command::new(HUB);
    command.env("SENDENSE_REQUIRE_TOKENS", "true");
    Hub::spawn(command, data)
}

/// The status of a look at the VMs.
async fn status(hub: &Hub, token: Option<&str>) -> u16 {
    let client = reqwest::Client::new();
    let mut request = client.get(format!("{}/api/v1/vm-contexts", hub.api));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_refusal_is_logged_with_the_id_that_its_answer_has() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("stderr");
    let mut command = Command::new(HUB);
    command.env("SENDENSE_REQUIRE_TOKENS", "true");
    command.stderr(std::fs::File::create(&path).unwrap());
    let hub = Hub::spawn(command, &data.path().join("hub"));
    let url = format!("{}/api/v1/vm-contexts", hub.api);
    let answer = reqwest::get(&url).await.unwrap();
    let id = answer.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(hub.stop().success());
    let log = std::fs::read_to_string(&path).unwrap();
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let refused: Vec<_> = lines
        .filter(|line| line["fields"]["event"] == "access.unauthenticated")
        .collect();
    assert_eq!(refused.len(), 1, "{log}");
    assert_eq!(refused[0]["span"]["request_id"], *id, "{log}");
}

#[tokio::test]
async fn a_token_made_before_or_beside_a_hub_is_good_until_it_is_revoked() {
    let data = tempfile::tempdir().unwrap();
    let before = token_ok(
        data.path(),
        &["create", "--role", "admin", "--name", "before"],
    );
    let hub = started(data.path());
    assert_eq!(status(&hub, None).await, 401, "this machine is not trusted");
    assert_eq!(status(&hub, Some(&before)).await, 200);

    let beside = ["create", "--role", "read-only", "--name", "beside"];
    let beside = token_ok(data.path(), &beside);
    assert_eq!(status(&hub, Some(&beside)).await, 200);
    let listed = token_ok(data.path(), &["list"]);
    assert!(
        listed.contains("before") && listed.contains("read-only"),
        "{listed}"
    );
    assert!(!listed.contains("sendense_"), "{listed}");
    token_ok(data.path(), &["revoke", "beside"]);
    assert_eq!(status(&hub, Some(&beside)).await, 401);

    let again = token(
        data.path(),
        &["create", "--role", "admin", "--name", "before"],
    );
    let said = String::from_utf8_lossy(&again.stderr);
    assert_eq!(again.status.code(), Some(1), "{said}");
    assert!(said.contains("token name is taken"), "{said}");
    for odd in ["trusted", "root"] {
        let refused = token(data.path(), &["create", "--role", odd, "--name", "x"]);
        assert!(!refused.status.success(), "{odd}");
    }

    let list = |token: &str| {
        let mut command = Command::new(HUB);
        command.args(["list", "--hub", &hub.api]);
        command.env("SENDENSE_TOKEN", token).output().unwrap()
    };
    assert!(list(&before).status.success());
    let refused = list(&beside);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("Invalid or expired token"), "{said}");
    assert!(hub.stop().success());

    let files: Vec<u8> = ["hub.db", "hub.db-wal"]
        .iter()
        .filter_map(|name| std::fs::read(data.path().join(name)).ok())
        .flatten()
        .collect();
    assert!(!files.is_empty());
    for secret in [&before, &beside] {
        let found = files.windows(64).any(|at| at == &secret.as_bytes()[9..]);
        assert!(!found, "a token's text is in the database");
    }
}
