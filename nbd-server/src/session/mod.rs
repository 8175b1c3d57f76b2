//! One connection: handshake, then requests until it ends.
//!
//! ```text
//!            ┌────────── receive ──────────┐          ┌─ answer: one task per call of the export ─┐
//!  socket ─▶ │ header ─▶ admit ─▶ payload  │ ─spawn─▶ │ read · write · zero · trim · flush ·      │
//!            │ (waits for a slot and for   │          │ extents                                   │
//!            │  memory before it goes on)  │          └───────────────────┬───────────────────────┘
//!            └─────────────────────────────┘                              ▼ head + payload + permits
//!  socket ◀──────────────────────────────── write_replies (batches, vectored) ◀──── bounded queue
//! ```
//!
//! A slot belongs to a request until its last reply is written or dropped. So *all slots are back*
//! means: every call of the export has returned and every answer has left.

mod answer;
mod gate;
mod handshake;
mod payload;
mod receive;
mod room;
mod run;
mod write_job;
mod write_replies;

pub use gate::Gate;
pub use run::serve_connection;
