//! Any operations on a valid image with any lies in it: errors, never panics, never a write after a refusal.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::qcow2_mutate::run(data));
