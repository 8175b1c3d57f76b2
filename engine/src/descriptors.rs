//! How many files and sockets this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the bound to what the system allows this process, and returns it. Programs start with a
/// low one for the sake of `select(2)`, which nothing here uses.
pub fn raise() -> u64 {
    let bound = getrlimit(Resource::Nofile);
    if bound.current != bound.maximum {
        let raised = Rlimit {
            current: bound.maximum,
            ..bound
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the bound of open files");
        }
    }
    current()
}

/// The bound now.
pub(crate) fn current() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
