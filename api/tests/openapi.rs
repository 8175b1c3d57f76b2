//! The OpenAPI document is a committed file, so that a change of the contract is seen in review.

use std::path::Path;

/// `SENDENSE_UPDATE=1 cargo test -p api --test openapi` writes the file anew.
#[test]
fn the_committed_document_is_the_one_that_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let served = api::openapi_document();
    if std::env::var_os("SENDENSE_UPDATE").is_some() {
        std::fs::write(&path, &served).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == served,
        "api/openapi.json differs from the routes; `SENDENSE_UPDATE=1 cargo test -p api --test openapi` writes it anew"
    );
}

/// The calls that others rely on by name.
#[test]
fn the_document_has_the_calls_of_the_contract() {
    let document: serde_json::Value = serde_json::from_str(&api::openapi_document()).unwrap();
    let check = |method: &str, path: &str| {
        assert!(
            document["paths"][path][method].is_object(),
            "{method} {path}"
        );
    };
    check("get", "/health");
    check("get", "/metrics");
    check("get", "/api/v1/health");
    check("post", "/api/v1/backups");
    check("get", "/api/v1/backups");
    check("get", "/api/v1/backups/stats");
    check("get", "/api/v1/backups/changeid");
    check("get", "/api/v1/backups/{vm_name}/chain");
    check("get", "/api/v1/backups/{backup_id}");
    check("delete", "/api/v1/backups/{backup_id}");
    check("get", "/api/v1/backups/events");
    check("get", "/api/v1/backups/{backup_id}/events");
    check("get", "/api/v1/backups/{backup_id}/disks");
    check("post", "/api/v1/backups/{backup_id}/complete");
    check("post", "/api/v1/backups/{backup_id}/cancel");
    check("post", "/api/v1/telemetry/{job_type}/{job_id}");
    check("post", "/api/v1/vm-contexts");
    check("get", "/api/v1/vm-contexts");
    check("get", "/api/v1/vm-contexts/by-id/{context_id}");
    check("get", "/api/v1/vm-contexts/{vm_name}");
    check("get", "/api/v1/vm-contexts/{context_id}/disks");
    check("post", "/api/v1/vmware-credentials");
    check("get", "/api/v1/repositories");
    check("post", "/api/v1/policies");
    check("get", "/api/v1/policies");
    check("get", "/api/v1/policies/{policy_id}");
    check("delete", "/api/v1/policies/{policy_id}");
    check("get", "/api/v1/backups/{backup_id}/copies");
    check("post", "/api/v1/backups/{backup_id}/copy");
    check("post", "/api/v1/auth/login");
    check("post", "/api/v1/tokens");
    check("get", "/api/v1/tokens");
    check("delete", "/api/v1/tokens/{name}");
    check("get", "/api/v1/audit");
}

#[test]
fn operations_have_names_of_their_own() {
    let document: serde_json::Value = serde_json::from_str(&api::openapi_document()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let operations = paths
        .values()
        .flat_map(|path| path.as_object().unwrap().values());
    let mut names: Vec<_> = operations
        .map(|o| o["operationId"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "{names:?}");
}
