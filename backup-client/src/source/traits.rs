//! The face of every source.

use std::fmt::Debug;
use std::io;

/// A disk to be read: positional, blocking, shared among threads.
///
/// A source does not freeze its content. Callers hand in snapshots or stopped disks; what can be noticed of a change
/// is noticed by [`Source::check_unchanged`].
pub trait Source: Send + Sync + Debug {
    /// How messages name it: the path as it was given.
    fn label(&self) -> &str;

    /// Size of the disk as the guest sees it.
    fn size_bytes(&self) -> u64;

    /// Fills `into` from `offset`.
    ///
    /// # Errors
    /// Any error of the medium; `UnexpectedEof` past the end.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// The run of equal state that begins at `offset`, which is below the size. `0 < len_bytes <= size - offset`.
    ///
    /// # Errors
    /// Any error of the medium. A source that cannot tell says data.
    fn run_at(&self, offset: u64) -> io::Result<Run>;

    /// Compares what the medium says about itself with what it said when it was opened.
    ///
    /// # Errors
    /// Any error of the medium, and a size that is not the one at opening.
    fn check_unchanged(&self) -> io::Result<Unchanged>;

    /// Remarks about how the source was understood, for the user.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A stretch of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Length of the stretch.
    pub len_bytes: u64,
    /// It is known to read as zero without reading it.
    pub reads_zero: bool,
}

/// Answer of [`Source::check_unchanged`] when the size is still the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unchanged {
    /// Nothing hints at a change. (A block device never hints at one.)
    Quiet,
    /// Somebody wrote to it since it was opened, so the backup may mix two states.
    Modified,
}
