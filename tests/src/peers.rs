//! The programs that we are compared with.

use std::ffi::OsStr;
use std::process::{Command, Output};

/// Whether `program` can be started here.
///
/// When it cannot, the test is skipped with a loud line; with `CI` in the environment it fails
/// instead, because there the test command has installed every peer.
///
/// # Panics
/// In CI, when the peer is missing.
#[must_use]
pub fn have(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        missing(program);
    }
    found
}

/// Whether Debian's Python has libnbd's binding (`import nbd`); skips and fails like [`have`].
///
/// # Panics
/// In CI, when the binding is missing.
#[must_use]
pub fn have_python_libnbd() -> bool {
    let works = Command::new("/usr/bin/python3")
        .args(["-c", "import nbd; nbd.NBD()"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !works {
        missing("python3-libnbd");
    }
    works
}

/// Says that a peer is missing, as loudly as this place allows.
///
/// # Panics
/// In CI.
pub fn missing(peer: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "{peer} is missing; in CI every peer must be there (.ci/test installs them)"
    );
    eprintln!("SKIPPED: {peer} is not installed; `.ci/test` installs every peer");
}

/// Runs a program to its end and returns its output, whatever its exit status.
///
/// # Panics
/// When the program cannot be started.
pub fn run<I, A>(program: &str, args: I) -> Output
where
    I: IntoIterator<Item = A>,
    A: AsRef<OsStr>,
{
    Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program} did not start: {error}"))
}

/// Runs a program that must succeed and returns its standard output.
///
/// # Panics
/// When it fails, with all that it said.
pub fn run_ok<I, A>(program: &str, args: I) -> String
where
    I: IntoIterator<Item = A>,
    A: AsRef<OsStr>,
{
    let args: Vec<_> = args
        .into_iter()
        .map(|arg| arg.as_ref().to_owned())
        .collect();
    let output = run(program, &args);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?} ended with {}\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}
