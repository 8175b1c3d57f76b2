//! A small asynchronous NBD client: fixed newstyle, structured replies, several requests in flight.
//!
//! ```text
//!  Target ──▶ Connection ──▶ queue ──▶ writer task ──▶ socket
//!             (per request:             reader task ◀── socket
//!              a waiting entry ◀────────────┘)
//! ```
//!
//! [`Connection`] is one connection to one export; [`Target`] spreads writes over several. The protocol itself is
//! `nbd_server::proto`; nothing here knows its bytes.

mod connection;
mod driver;
mod error;
mod handshake;
mod pending;
mod target;
#[cfg(test)]
mod tests;
mod uri;

pub use connection::{ConnectOptions, Connection, RemoteInfo};
pub use error::NbdError;
pub use nbd_server::proto::{ErrorCode, Extent};
pub use target::Target;
pub use uri::{Address, NbdUri};
