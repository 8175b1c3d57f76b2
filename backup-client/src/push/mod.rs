//! One disk on its way: read, compare, send.
//!
//! ```text
//! blocking pool:  Source ─▶ scan (zero? unchanged? hash) ─▶ plan::coalesce ─▶ pieces
//!                                                                               │ bounded queue
//! runtime:        nbd::Target ◀── several requests in flight per connection ◀───┘
//! ```

mod deliver;
mod plan;
mod scan;
#[cfg(test)]
mod tests;
mod zero;

pub(crate) use deliver::{DiskJob, push_disk};
