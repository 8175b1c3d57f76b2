//! Change tracking at the source, for sources that cannot tell what changed.
//!
//! One state file per disk holds a hash of every block as it was last sent to the hub:
//!
//! ```text
//! header (4 KiB: who, size, change id, backup id) │ 16 bytes of BLAKE3 per 64 KiB block … │ BLAKE3 of all before
//! ```
//!
//! A state says something about exactly one point at the hub. It is used only when the hub names that point as the
//! base of the running increment, and it is replaced only after the hub has acknowledged the whole backup.

mod decide;
mod format;
mod reader;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub use decide::Everything;
pub(crate) use decide::{BaseAtHub, Decision, decide};
pub(crate) use format::{BlockHash, ChangeId, StateHeader, block_hash};
pub(crate) use reader::HashReader;
pub(crate) use store::{Loaded, VmStates};
pub(crate) use writer::{PendingState, StateWriter};
