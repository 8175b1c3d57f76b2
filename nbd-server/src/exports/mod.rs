//! Small devices: for measuring the wire, and for tests.

mod discard;
mod memory;
mod single;

pub use discard::DiscardExport;
pub use memory::MemoryExport;
pub use single::SingleExport;
