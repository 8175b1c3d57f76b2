//! Any bytes as an image: checked, opened, read, mapped and written; errors, never panics, never unbounded memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::qcow2_open::run(data));
