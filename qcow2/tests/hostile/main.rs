//! Images that lie: refused with a reason, never written where they must not be, never a panic.
#![expect(clippy::unwrap_used, reason = "a panic is the report")]

mod overlap;
mod sample;
