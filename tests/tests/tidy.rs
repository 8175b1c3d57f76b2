//! The rules of ARCHITECTURE.md that a machine can check: who may depend on whom, what lives in
//! which room, and what must be absent.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which of our crates each crate may name in `[dependencies]` (ARCHITECTURE.md, "Edges").
const EDGES: &[(&str, &[&str])] = &[
    ("qcow2", &[]),
    ("nbd-server", &[]),
    ("engine", &["nbd-server", "qcow2"]),
    ("backup-client", &["nbd-server", "qcow2"]),
    ("api", &["backup-client", "engine"]),
    ("benches", &["engine", "nbd-server", "qcow2"]),
    (
        "tests",
        &["api", "backup-client", "engine", "nbd-server", "qcow2"],
    ),
];

/// The library crates, where the rooms are.
const ROOMS: &[&str] = &[
    "qcow2/src",
    "nbd-server/src",
    "engine/src",
    "api/src",
    "backup-client/src",
];

/// Folders whose code has no IO, clock, randomness, async or logging.
const PURE: &[&str] = &[
    "nbd-server/src/proto",
    "qcow2/src/format",
    "qcow2/src/plan",
    "engine/src/model",
];

const IMPURE: &[&str] = &[
    "tokio",
    "std::fs",
    "std::net",
    "std::io",
    "std::thread",
    "std::env",
    "std::process",
    "SystemTime",
    "Instant::now",
    "sqlx",
    "tracing::",
    "async fn",
    ".await",
    "rustix",
    "axum",
    "reqwest",
    "now_utc",
];

/// A token, and the only places where it may stand (prefixes of paths below the root).
const HOMES: &[(&str, &[&str])] = &[
    ("sqlx::", &["engine/src/catalog/"]),
    ("axum::", &["api/src/"]),
    (
        "StatusCode::",
        &[
            "api/src/error.rs",
            "api/src/routes/",
            "backup-client/src/",
            "engine/src/node/",
        ],
    ),
    (
        "_be_bytes",
        &["nbd-server/src/proto/wire.rs", "qcow2/src/format/"],
    ),
    (
        "std::fs",
        &[
            "engine/src/repository/",
            "engine/src/catalog/open.rs",
            "engine/src/standalone/",
            "engine/src/workflow/restore",
            "api/src/cli/",
            "qcow2/src/storage/",
            "backup-client/src/",
        ],
    ),
    (
        "qcow2::",
        &["engine/src/", "backup-client/src/", "qcow2/src/"],
    ),
    ("SystemTime::now", &["engine/src/clock.rs"]),
    ("now_utc", &["engine/src/clock.rs"]),
];

/// Everything that may stand at the top level.
const ROOT: &[&str] = &[
    ".cargo",
    ".ci",
    ".config",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "api",
    "backup-client",
    "benches",
    "clippy.toml",
    "deny.toml",
    "docs",
    "engine",
    "fuzz",
    "nbd-server",
    "packaging",
    "qcow2",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "tests",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a folder of the workspace")
        .to_owned()
}

fn manifest(folder: &str) -> toml::Table {
    let path = root().join(folder).join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse().unwrap()
}

/// Rust files below `folder`, as paths relative to the root with their text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut pending = vec![root().join(folder)];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let relative = path
                    .strip_prefix(root())
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.push((relative, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The code without comments and without what follows `#[cfg(test)]`, line by line.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .take_while(|line| line.trim() != "#[cfg(test)]")
        .enumerate()
        .map(|(i, line)| (i + 1, line.split("//").next().unwrap_or("")))
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

#[test]
fn the_workspace_has_exactly_the_crates_of_the_house() {
    let members: BTreeSet<String> = manifest("")["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m.as_str().unwrap().to_owned())
        .collect();
    let expected: BTreeSet<String> = EDGES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(members, expected);
    assert!(
        root().join("fuzz/Cargo.toml").is_file(),
        "fuzz is a workspace of its own"
    );
}

#[test]
fn crates_depend_only_on_whom_they_may() {
    let ours: BTreeSet<&str> = EDGES.iter().map(|(name, _)| *name).collect();
    for (name, allowed) in EDGES {
        let manifest = manifest(name);
        let mut sections = vec!["dependencies", "build-dependencies"];
        if *name == "benches" {
            sections.push("dev-dependencies");
        }
        let named: BTreeSet<&str> = sections
            .iter()
            .filter_map(|section| manifest.get(*section)?.as_table())
            .flat_map(|table| table.keys().map(String::as_str))
            .filter(|key| ours.contains(key))
            .collect();
        for dependency in named {
            assert!(
                allowed.contains(&dependency),
                "{name} must not depend on {dependency}"
            );
        }
    }
}

#[test]
fn the_client_sees_only_the_pure_half_of_nbd_server() {
    let client = manifest("backup-client");
    let entry = &client["dependencies"]["nbd-server"];
    assert!(
        entry.get("features").is_none(),
        "backup-client takes nbd-server without features"
    );
    let workspace = manifest("");
    let shared = &workspace["workspace"]["dependencies"]["nbd-server"];
    assert_eq!(shared["default-features"].as_bool(), Some(false));
    for (path, text) in sources("backup-client/src")
        .iter()
        .filter(|(path, _)| !is_test_file(path))
    {
        for (line, code) in code_lines(text).filter(|(_, code)| code.contains("nbd_server::")) {
            assert!(
                code.contains("nbd_server::proto"),
                "{path}:{line}: only nbd_server::proto"
            );
        }
    }
}

#[test]
fn pure_folders_import_nothing_impure() {
    let mut wrong = Vec::new();
    for folder in PURE {
        let files = sources(folder);
        assert!(!files.is_empty(), "{folder} is empty");
        for (path, text) in files.iter().filter(|(path, _)| !is_test_file(path)) {
            for (line, code) in code_lines(text) {
                for token in IMPURE.iter().filter(|token| code.contains(**token)) {
                    wrong.push(format!("{path}:{line}: {token}"));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "pure folders name impure things:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_token_stays_in_its_home() {
    let mut wrong = Vec::new();
    for folder in ROOMS {
        for (path, text) in sources(folder)
            .iter()
            .filter(|(path, _)| !is_test_file(path))
        {
            for (line, code) in code_lines(text) {
                for (token, homes) in HOMES {
                    let at_home = homes.iter().any(|home| path.starts_with(home));
                    if code.contains(token) && !at_home {
                        wrong.push(format!("{path}:{line}: {token} belongs to {homes:?}"));
                    }
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "out of their rooms:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn limits_have_one_file_per_crate() {
    for home in ["qcow2/src/format", "nbd-server/src/proto", "engine/src"] {
        let file = root().join(home).join("limits.rs");
        assert!(file.is_file(), "{home}/limits.rs holds the crate's bounds");
    }
}

#[test]
fn every_dependency_has_a_reason_and_a_user() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let section = text.split("[workspace.dependencies]").nth(1).unwrap();
    let section = section.split("\n[").next().unwrap();
    let mut reasoned = false;
    let mut names = Vec::new();
    for line in section.lines().map(str::trim) {
        if line.is_empty() {
            reasoned = false;
        } else if line.starts_with('#') {
            reasoned = true;
        } else {
            assert!(reasoned, "no reason above: {line}");
            names.push(line.split([' ', '=']).next().unwrap().to_owned());
        }
    }
    let mut used = BTreeSet::new();
    for (member, _) in EDGES {
        let manifest = manifest(member);
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else {
                continue;
            };
            for (name, value) in table {
                let decided = value.get("workspace").is_some();
                assert!(
                    decided,
                    "{member}: {name} is decided in the workspace's Cargo.toml"
                );
                used.insert(name.clone());
            }
        }
    }
    let unused: Vec<_> = names.iter().filter(|name| !used.contains(*name)).collect();
    assert!(unused.is_empty(), "nobody uses {unused:?}");
}

#[test]
fn the_top_level_holds_only_what_it_may() {
    let known: BTreeSet<&str> = ROOT.iter().copied().collect();
    let untracked = [".git", "target", "sendense-data"];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let expected = known.contains(name.as_str()) || untracked.contains(&name.as_str());
        assert!(expected, "{name} does not belong at the top level");
    }
}

#[test]
fn the_map_names_every_room() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut missing = BTreeMap::new();
    for folder in ROOMS {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let shown = if path.is_dir() {
                format!("{name}/")
            } else {
                format!("{name}.rs")
            };
            if !["lib", "main"].contains(&name.as_str()) && !map.contains(&shown) {
                missing.entry(folder).or_insert_with(Vec::new).push(shown);
            }
        }
    }
    assert!(
        missing.is_empty(),
        "ARCHITECTURE.md does not name {missing:?}"
    );
}
