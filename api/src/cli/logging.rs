//! Logs on stderr: lines for people on a terminal, JSON otherwise.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

/// Starts logging. `filter` has the grammar of `RUST_LOG`, such as `info,nbd_server=debug`.
///
/// # Errors
/// For a filter that cannot be read, or when logging has been started before.
pub(crate) fn start(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("log filter={filter:?}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let started = match io::stderr().is_terminal() {
        true => builder.try_init(),
        false => builder.json().try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("start logging: {error}"))
}
