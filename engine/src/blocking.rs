//! Work that waits for files, away from the threads that answer connections.

use crate::error::Error;

/// Runs `work` on the blocking pool.
///
/// # Cancel safety
///
/// Dropping the future does not stop the work.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::internal("file work broke off", "").with_source(error)),
    }
}
