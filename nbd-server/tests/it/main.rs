//! The crate from outside: the pure protocol by tables and properties, sessions over a pipe.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod certificates;
mod codec;
mod crowds;
mod cves;
mod extended;
mod handshake;
mod misbehaving;
mod peer;
mod replies;
mod requests;
mod session;
mod starttls;
mod tls;
mod vectors;
mod withdrawal;
