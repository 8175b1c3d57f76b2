//! The client's side of the protocol, as pure as the server's.
//!
//! ```text
//!  ClientHandshake::step ─▶ NeedBytes · Ready(Remote) · Listed(names)
//!  Request::encode ─▶ 28 bytes (+ payload of a WRITE)            ─▶ socket
//!  Replies::next(input) ─▶ Simple · Data · Hole · Error · …      ◀─ socket
//! ```
//!
//! The driver owns the socket: it sends [`ClientHandshake::output`] whenever it waits, and reads
//! the data of a READ straight into the buffer it belongs to.

mod handshake;
mod replies;

pub use handshake::{ClientGoal, ClientHandshake, ClientStep, Remote};
pub use replies::{Replies, ReplyEvent};
