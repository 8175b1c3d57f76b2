//! HTTP in, HTTP out: the hub's REST API, and the hub as one running whole.
//!
//! ```text
//! request ─▶ access (who, may they) ─▶ extract (typed input) ─▶ routes::<verb> ─▶ one Engine call ─▶ views ─▶ response
//!                    └──────── error::Failure, in the body of its family ────────┘
//! ```
//!
//! A route is five lines. What it must not know: SQL, paths of images, the NBD wire, qcow2.

pub mod cli;
pub mod hub;
pub mod limits;
pub mod views;

mod access;
mod error;
mod extract;
mod metrics;
mod openapi;
mod request_id;
mod routes;

pub use access::Trust;
pub use openapi::document as openapi_document;
pub use routes::router;

/// The version that `/health` and `--version` tell.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
