//! One export over several connections.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::{ConnectOptions, Connection, NbdError, NbdUri, RemoteInfo};
use crate::limits::WINDOW_BYTES;

/// An export that is written over several connections, where the server promises that one flush covers them all;
/// otherwise over one.
#[derive(Debug)]
pub struct Target {
    /// At least one.
    connections: Vec<Connection>,
    next: AtomicUsize,
    info: RemoteInfo,
}

impl Target {
    /// Opens up to `wanted` connections.
    ///
    /// # Errors
    /// As [`Connection::connect`]; `Invalid` when the connections tell different sizes.
    pub async fn connect(uri: &NbdUri, wanted: usize) -> Result<Self, NbdError> {
        let options = ConnectOptions::default();
        let first = Connection::connect(uri, options).await?;
        let info = first.info();
        let more = if info.multi_conn {
            wanted.saturating_sub(1)
        } else {
            0
        };
        let mut connections = vec![first];
        connections
            .extend(try_join_all((0..more).map(|_| Connection::connect(uri, options))).await?);
        if let Some(other) = connections.iter().find(|other| other.info() != info) {
            return Err(NbdError::invalid(format_args!(
                "connections to one export tell different things size={} other_size={}",
                info.size_bytes,
                other.info().size_bytes
            )));
        }
        Ok(Self {
            connections,
            next: AtomicUsize::new(0),
            info,
        })
    }

    /// What the server said about the export.
    #[must_use]
    pub fn info(&self) -> RemoteInfo {
        self.info
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Writes over the next connection in turn.
    ///
    /// # Errors
    /// As [`Connection::write`].
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), NbdError> {
        self.turn().write(offset, data).await
    }

    /// Makes a range read as zero; space may be given back. A server without the command is sent zeroes.
    ///
    /// # Errors
    /// As [`Connection::write`].
    pub async fn write_zeroes(&self, offset: u64, len_bytes: u64) -> Result<(), NbdError> {
        let zeroes = if self.info.can_write_zeroes {
            None
        } else {
            let longest = usize::try_from(self.info.maximum_payload_bytes).unwrap_or(usize::MAX);
            Some(Bytes::from(vec![0; longest.min(WINDOW_BYTES)]))
        };
        let step = match &zeroes {
            None => u64::from(u32::MAX - (u32::MAX % self.info.minimum_block_bytes.max(1))),
            Some(zeroes) => zeroes.len() as u64,
        };
        let mut done = 0;
        while done < len_bytes {
            let len = step.min(len_bytes - done);
            let connection = self.turn();
            let at = offset.saturating_add(done);
            match &zeroes {
                None => {
                    let len = u32::try_from(len).map_err(NbdError::invalid)?;
                    connection.write_zeroes(at, len, false).await?;
                }
                Some(zeroes) => {
                    let len = usize::try_from(len).map_err(NbdError::invalid)?;
                    connection.write(at, zeroes.slice(..len)).await?;
                }
            }
            done += len;
        }
        Ok(())
    }

    /// Returns when everything that was completed before the call, on any of the connections, is durable.
    ///
    /// # Errors
    /// As [`Connection::flush`].
    pub async fn flush(&self) -> Result<(), NbdError> {
        // Either there is only one connection, or the server promises that one is enough.
        self.connections[0].flush().await
    }

    /// Says farewell on every connection.
    pub async fn disconnect(self) {
        futures_util::future::join_all(self.connections.into_iter().map(Connection::disconnect))
            .await;
    }

    fn turn(&self) -> &Connection {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        &self.connections[turn % self.connections.len()]
    }
}
