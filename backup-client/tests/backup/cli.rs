//! The program as a process: what it prints and how it exits.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{MIB, Scene, noise};

/// The program with these arguments, outside of the environment of whoever runs the tests.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendense-backup-client"));
    command
        .args(arguments)
        .env_clear()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Waits for a process without holding up the hub, which lives in this runtime.
async fn ended(child: Child) -> Output {
    tokio::task::spawn_blocking(|| child.wait_with_output().unwrap())
        .await
        .unwrap()
}

async fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = ended(program(arguments).spawn().unwrap()).await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn backup_of<'a>(scene: &'a Scene, disk: &'a Path, state: &'a str) -> Vec<&'a str> {
    let disk = disk.to_str().unwrap();
    vec![
        "backup",
        "--hub",
        scene.hub.url(),
        "--vm",
        "web 01/ü",
        "--disk",
        disk,
        "--state",
        state,
    ]
}

#[tokio::test]
async fn a_backup_tells_what_it_did_and_exits_by_how_it_went() {
    let scene = Scene::new().await;
    let mut content = noise(20, 2 * MIB);
    content[MIB..].fill(0);
    let disk = scene.disk("disk.img", &content);
    let state = scene.folder.path().join("state");
    let arguments = backup_of(&scene, &disk, state.to_str().unwrap());

    let (status, out, err) = run(&arguments).await;
    assert_eq!(status, 0, "{err}");
    for line in [
        "backup backup-web-0 vm=web 01/ü type=full repository=repo-on",
        "disk-2000: size 2.00 MiB, read 2.00 MiB, sent 1.00 MiB, zero 1.00 MiB, unchanged 0 B,",
        "transferred 1.00 MiB of 2.00 MiB in ",
        "backup is sparse: 1.00 MiB (50%) zero data",
    ] {
        assert!(out.contains(line), "{line}\nnot in:\n{out}");
    }

    let mut json = arguments.clone();
    json.push("--json");
    let (status, out, _) = run(&json).await;
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &report["backup_type"]), (0, &"incremental".into()));
    assert_eq!(report["disks"][0]["unchanged_bytes"], 2 * MIB);

    // Warnings are named, and the exit status says that there are some.
    fs::remove_dir_all(&state).unwrap();
    let (status, out, err) = run(&arguments).await;
    assert_eq!(status, 3);
    assert!(
        out.contains("warning: tracking-state-missing: disk-2000: "),
        "{out}"
    );
    assert!(err.contains("warning: tracking-state-missing"), "{err}");
}

#[tokio::test]
async fn failures_say_why() {
    let scene = Scene::new().await;
    let disk = scene.disk("disk.img", &noise(21, MIB));
    let state = scene.folder.path().join("state");
    let arguments = backup_of(&scene, &disk, state.to_str().unwrap());

    scene.hub.fail_writes_at(0, 0);
    let (status, out, err) = run(&arguments).await;
    assert_eq!((status, out.as_str()), (1, ""));
    let text = "error: backup=backup-web-0: disk-2000: cannot write to the export offset=0 len=1048576: \
                the server answered WRITE with ENOSPC";
    assert!(err.contains(text), "{err}");

    let usage: [(&[&str], &str); 5] = [
        (&["backup", "--vm", "x"], "--disk"),
        (&["backup", "--vm", "x", "--disk", "nbd://h/x"], "nbd uri"),
        (
            &["backup", "--vm", "x", "--disk", "x", "--type", "half"],
            "incremental",
        ),
        (
            &[
                "backup",
                "--vm",
                "x",
                "--disk",
                "x",
                "--state",
                "s",
                "--connections",
                "0",
            ],
            "between 1 and 16",
        ),
        (&["backup", "--vm", "x", "--disk", "x"], "--no-tracking"),
    ];
    for (arguments, expected) in usage {
        let (status, _, err) = run(arguments).await;
        assert_eq!(status, 2, "{arguments:?}: {err}");
        assert!(err.contains(expected), "{arguments:?}: {err}");
    }
}

#[tokio::test]
async fn an_interrupt_cancels_the_job() {
    let scene = Scene::new().await;
    let disk = scene.disk("disk.img", &noise(22, 4 * MIB));
    let state = scene.folder.path().join("state");
    scene.hub.hang_at(0, MIB as u64);
    let child = program(&backup_of(&scene, &disk, state.to_str().unwrap()))
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    scene.hub.hanging().await;
    kill_process(pid, Signal::INT).unwrap();
    let output = ended(child).await;
    assert_eq!(output.status.code(), Some(1));
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(
        err.contains("error: backup=backup-web-0: cancelled"),
        "{err}"
    );
    assert_eq!(scene.hub.cancelled(), 1);
}
