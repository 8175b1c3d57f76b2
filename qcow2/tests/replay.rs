//! The corpus of the fuzz targets, without a fuzzer: what was found once is never found again.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is the report; names are printed"
)]

use std::path::Path;

#[expect(unreachable_pub, reason = "public where the fuzzer uses it")]
#[path = "../../fuzz/src/qcow2_hashes.rs"]
mod qcow2_hashes;
#[expect(unreachable_pub, reason = "public where the fuzzer uses it")]
#[path = "../../fuzz/src/qcow2_mutate.rs"]
mod qcow2_mutate;
#[expect(unreachable_pub, reason = "public where the fuzzer uses it")]
#[path = "../../fuzz/src/qcow2_open.rs"]
mod qcow2_open;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        eprintln!("{}", path.display());
        run(&std::fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count > 0, "no corpus in {}", folder.display());
}

#[test]
fn qcow2_open_corpus() {
    replay("qcow2_open", qcow2_open::run);
}

#[test]
fn qcow2_mutate_corpus() {
    replay("qcow2_mutate", qcow2_mutate::run);
}

#[test]
fn qcow2_hashes_corpus() {
    replay("qcow2_hashes", qcow2_hashes::run);
}
