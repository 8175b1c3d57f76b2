//! Images that lie: refused with a reason, never written where they must not be, never a panic.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is the report; seeds are printed"
)]

mod cves;
mod mutation;
mod overlap;
mod sample;
