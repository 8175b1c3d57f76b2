//! The program from outside: who decides a setting, and what its exit status says.

use std::path::Path;
use std::process::{Command, Output};

fn hub(dir: &Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sendense-hub"))
        .current_dir(dir)
        .env_clear()
        .envs(environment.iter().copied())
        .args(args)
        .output()
        .expect("the program starts")
}

/// An exposed address is refused by its name before anything else happens, so it tells who won.
#[test]
fn a_flag_wins_over_the_environment_and_the_environment_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("hub.toml"), "api = \"0.0.0.0:1\"").unwrap();
    let check = |args: &[&str], environment: &[(&str, &str)], address: &str| {
        let output = hub(dir.path(), args, environment);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(&format!("listener=api address={address}\n")),
            "{said}"
        );
    };
    let variable = [("SENDENSE_API", "0.0.0.0:2")];
    check(&["serve", "--config", "hub.toml"], &[], "0.0.0.0:1");
    check(&["serve"], &[("SENDENSE_CONFIG", "hub.toml")], "0.0.0.0:1");
    check(&["serve", "--config", "hub.toml"], &variable, "0.0.0.0:2");
    check(
        &["serve", "--config", "hub.toml", "--api", "0.0.0.0:3"],
        &variable,
        "0.0.0.0:3",
    );
}

#[test]
fn usage_errors_exit_with_two_and_failures_with_one() {
    let dir = tempfile::tempdir().unwrap();
    let check = |args: &[&str], status: i32, named: &str| {
        let output = hub(dir.path(), args, &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        assert!(said.contains(named), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}");
    };
    check(&[], 2, "Usage");
    check(&["nonsense"], 2, "nonsense");
    check(&["serve", "--api", "nowhere"], 2, "HOST:PORT");
    check(&["export"], 2, "IMAGE");
    let needs = "--tls-certificates";
    check(&["export", "--tls", "require", "disk.img"], 2, needs);
    let listen = "127.0.0.1:0,tls=on";
    check(&["export", "--listen", listen, "disk.img"], 2, needs);
    check(&["serve", "--tls", "on"], 2, needs);
    check(&["serve", "--nbd", listen], 2, needs);
    check(&["serve", "--tls", "always"], 2, "always");
    let absent = ["--tls", "on", needs, "absent"];
    check(
        &[&["serve"], &absent[..]].concat(),
        1,
        "absent/server-cert.pem",
    );
    check(&["serve", "--config", "absent.toml"], 1, "path=absent.toml");
    check(&["serve", "--log", "]["], 1, "log filter");
    check(&["list", "--hub", "http://127.0.0.1:1"], 1, "ask the hub");
    check(&["image", "info", "absent.qcow2"], 1, "path=");
    check(&["image", "check", "absent.qcow2"], 1, "path=");
    check(
        &["image", "compare", "absent.qcow2", "absent.raw"],
        2,
        "path=",
    );
}
