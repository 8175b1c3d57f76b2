//! Any lies in a hash sidecar: errors and damage, never panics, never unbounded memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::qcow2_hashes::run(data));
