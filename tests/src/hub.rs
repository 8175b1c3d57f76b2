//! The hub as a process: see the harness.
