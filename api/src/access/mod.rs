//! Who is let in, and to what.
//!
//! ```text
//! request ─▶ Door: who asks? ─▶ Caller::permit (the table in engine::model) ─▶ route ─▶ audit log
//!               └─ 401 ────────────└─ 403 in the words of the route's family ────────────┘
//! ```
//!
//! Every route is added through [`Guarded`], which asks for its verb: a route without one does not
//! compile, and the verb stands in the OpenAPI document.

mod door;
mod guard;
mod guarded;
mod named;
mod strangers;

pub use door::Trust;

pub(crate) use door::Door;
pub(crate) use guarded::Guarded;
pub(crate) use strangers::Strangers;
