//! The wire alone: our server as a program beside nbdkit and qemu-nbd, all driven by the same client.
//!
//! Runs alternate between the subjects; a table tells medians and how we compare, `target/criterion/wire.json` has every
//! run. A peer that is missing is named where its figure would be. Figures of one machine and one run compare; others do
//! not.
//!
//! `cargo bench -p benches --bench wire [-- --quick] [-- ceiling|keep|rates|latency|far]`; our program is the
//! `sendense-hub` of the same profile, which `cargo build --release` makes.

#![expect(clippy::print_stdout, reason = "a table for whoever runs the bench")]

mod ceiling;
mod client;
mod far;
mod load;
mod peers;
mod report;
mod small;

use report::Case;

/// How much of everything.
struct Effort {
    rounds: usize,
    /// Of each run.
    mib: usize,
    /// Of each run of small ones.
    requests: usize,
}

const FULL: Effort = Effort {
    rounds: 7,
    mib: 768,
    requests: 40_000,
};

/// That it works, in a few seconds.
const QUICK: Effort = Effort {
    rounds: 1,
    mib: 32,
    requests: 800,
};

fn main() {
    // Those of criterion are understood where they mean something here, and ignored elsewhere.
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let effort = if has("--quick") || has("--test") {
        QUICK
    } else {
        FULL
    };
    let Effort {
        rounds,
        mib,
        requests,
    } = effort;
    let wanted: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wants =
        |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| name.contains(*wanted));
    let dir = tempfile::tempdir().expect("scratch");
    let mut tables = Vec::new();
    let mut tell = |title: &str, names: &[&str], cases: &[Case]| {
        report::print(title, names, cases);
        tables.push(report::to_json(title, names, cases));
    };

    let forgetful = peers::forgetful(dir.path());
    let names: Vec<_> = forgetful.iter().map(|subject| subject.name).collect();
    if wants("ceiling") {
        let cases = ceiling::cases(&forgetful, rounds, mib);
        tell("ceiling: devices that forget", &names, &cases);
    }
    if wants("rates") {
        let cases = small::rates(&forgetful, rounds, requests);
        tell("rates: small requests", &names, &cases);
    }
    if wants("latency") {
        let cases = small::latencies(&forgetful, rounds, requests);
        tell("latency: small requests", &names, &cases);
    }
    if wants("far") {
        let cases = far::cases(&forgetful, rounds, mib);
        tell("far: one connection, 10 ms away", &names, &cases);
    }
    drop(forgetful);
    if wants("keep") {
        let keeping = peers::keeping(dir.path());
        let names: Vec<_> = keeping.iter().map(|subject| subject.name).collect();
        let cases = ceiling::cases(&keeping, rounds, mib / 2);
        tell("keep: devices in memory", &names, &cases);
    }
    if let Some(path) = report::file() {
        let text = serde_json::Value::from(tables).to_string();
        match std::fs::write(&path, text) {
            Ok(()) => println!("\nwritten: {}", path.display()),
            Err(error) => println!("\nnot written: {error} path={}", path.display()),
        }
    }
}
