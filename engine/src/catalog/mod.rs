//! The facts in the database. The only SQL of the hub is in this folder.
//!
//! ```text
//! model types ◀──▶ rows (private) ◀──▶ SQL        one method = one transaction
//! ```
//! * Every method is coarse: it does all of one thing in one transaction, or nothing.
//! * What a job or a disk may become is decided by the machines of [`model`](crate::model); the catalog loads a state, applies an
//!   event and stores the result, under `version`, so that two hubs on one database cannot both win.
//! * Nothing is decided from the number of rows that a statement changed; existence is read first.
//! * Dropping a call midway rolls its transaction back.

mod audit;
mod begin;
mod chain;
mod change_id;
mod copies;
mod credentials;
mod delete;
mod error;
mod finish;
mod open;
mod policies;
mod query;
mod repositories;
mod rows;
mod timestamp;
mod tokens;
mod types;
mod vms;

pub use open::Catalog;
pub use types::*;

#[cfg(test)]
mod tests;
