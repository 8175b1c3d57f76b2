//! Drives one disk: the scan on a blocking thread, its pieces over NBD.

use std::sync::Arc;

use futures_util::TryStreamExt;
use futures_util::stream::{self, StreamExt};
use tokio::sync::mpsc;

use super::scan::{Gone, Piece, Scan, ScanError, Scanned, Shape};
use crate::limits::{BLOCK_BYTES, QUEUED_PIECES, REQUESTS_PER_CONNECTION, WINDOW_BYTES};
use crate::nbd::{NbdUri, Target};
use crate::source::Source;
use crate::tracker::{HashReader, StateWriter};
use crate::{Error, ErrorKind};

/// Everything needed to push one disk.
pub(crate) struct DiskJob<'a> {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) uri: &'a NbdUri,
    pub(crate) connections: usize,
    pub(crate) previous: Option<HashReader>,
    pub(crate) next: Option<StateWriter>,
    /// Called after each acknowledged piece with its length.
    pub(crate) advanced: &'a (dyn Fn(u64) + Sync),
}

/// What was done; the four counters add up to the size of the export, except `read_bytes`.
#[derive(Debug)]
pub(crate) struct Pushed {
    pub(crate) read_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) zero_bytes: u64,
    pub(crate) unchanged_bytes: u64,
    pub(crate) next: Option<StateWriter>,
    pub(crate) tracking_lost: Option<String>,
}

#[derive(Default)]
struct Counters {
    sent_bytes: u64,
    zero_bytes: u64,
    unchanged_bytes: u64,
}

/// Reads the source and sends what must be sent; returns after the hub has confirmed a FLUSH of all of it.
///
/// # Cancel safety
/// Dropping the future ends the connections and lets the scan stop at its next piece; the export is then undefined.
pub(crate) async fn push_disk(job: DiskJob<'_>) -> Result<Pushed, Error> {
    let target = Target::connect(job.uri, job.connections)
        .await
        .map_err(|error| Error::because(ErrorKind::Target, "cannot open the export", error))?;
    let shape = shape_of(&target, job.source.size_bytes())?;

    let (queue, pieces) = mpsc::channel(QUEUED_PIECES);
    let scan = Scan {
        source: job.source,
        shape,
        previous: job.previous,
        next: job.next,
    };
    let scanning = tokio::task::spawn_blocking(move || {
        scan.run(&mut |piece| queue.blocking_send(piece).map_err(|_| Gone))
    });

    let sent = send_pieces(&target, pieces, job.advanced).await;
    // The queue is gone now, so the scan ends soon, whatever happened.
    let scanned = scanning
        .await
        .map_err(|error| Error::because(ErrorKind::Source, "reading the source panicked", error))?;
    let (counters, scanned) = outcome(sent, scanned)?;

    target
        .flush()
        .await
        .map_err(|error| Error::because(ErrorKind::Target, "cannot flush the export", error))?;
    target.disconnect().await;
    Ok(Pushed {
        read_bytes: scanned.read_bytes,
        sent_bytes: counters.sent_bytes,
        zero_bytes: counters.zero_bytes,
        unchanged_bytes: counters.unchanged_bytes,
        next: scanned.next,
        tracking_lost: scanned.tracking_lost,
    })
}

/// Checks that the disk fits the export, and how requests must look.
fn shape_of(target: &Target, source_bytes: u64) -> Result<Shape, Error> {
    let info = target.info();
    let refuse = |text: String| Err(Error::new(ErrorKind::Target, text));
    if info.read_only {
        return refuse("the export is read-only".to_owned());
    }
    let slack = info.size_bytes.checked_sub(source_bytes);
    if slack.is_none_or(|slack| slack >= BLOCK_BYTES as u64) {
        return refuse(format!(
            "the export does not fit the disk export_bytes={} disk_bytes={source_bytes}",
            info.size_bytes
        ));
    }
    let alignment = usize::try_from(info.minimum_block_bytes).unwrap_or(usize::MAX);
    if !alignment.is_power_of_two() || alignment > BLOCK_BYTES {
        return refuse(format!(
            "the export wants blocks too large minimum_block_bytes={alignment} limit={BLOCK_BYTES}"
        ));
    }
    let max_data = usize::try_from(info.maximum_payload_bytes)
        .unwrap_or(usize::MAX)
        .min(WINDOW_BYTES);
    let max_data = max_data - max_data % alignment;
    if max_data == 0 {
        return refuse(format!(
            "the export takes no payload maximum_payload_bytes={}",
            info.maximum_payload_bytes
        ));
    }
    Ok(Shape {
        export_bytes: info.size_bytes,
        alignment,
        max_data,
    })
}

/// Sends pieces as they come, several at a time, until the scan ends or a request fails.
async fn send_pieces(
    target: &Target,
    mut pieces: mpsc::Receiver<Piece>,
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<Counters, Error> {
    let in_flight = target.connections() * REQUESTS_PER_CONNECTION;
    stream::poll_fn(|context| pieces.poll_recv(context))
        .map(|piece| send_piece(target, piece))
        .buffer_unordered(in_flight)
        .try_fold(Counters::default(), |mut counters, done: Counters| {
            advanced(done.sent_bytes + done.zero_bytes + done.unchanged_bytes);
            counters.sent_bytes += done.sent_bytes;
            counters.zero_bytes += done.zero_bytes;
            counters.unchanged_bytes += done.unchanged_bytes;
            async move { Ok(counters) }
        })
        .await
}

async fn send_piece(target: &Target, piece: Piece) -> Result<Counters, Error> {
    let mut done = Counters::default();
    match piece {
        Piece::Unchanged { len_bytes } => done.unchanged_bytes = len_bytes,
        Piece::Zero { offset, len_bytes } => {
            target
                .write_zeroes(offset, len_bytes)
                .await
                .map_err(|error| {
                    let text = format!("cannot zero the export offset={offset} len={len_bytes}");
                    Error::because(ErrorKind::Target, text, error)
                })?;
            done.zero_bytes = len_bytes;
        }
        Piece::Data { offset, data } => {
            let len_bytes = data.len();
            target.write(offset, data).await.map_err(|error| {
                let text = format!("cannot write to the export offset={offset} len={len_bytes}");
                Error::because(ErrorKind::Target, text, error)
            })?;
            done.sent_bytes = len_bytes as u64;
        }
    }
    Ok(done)
}

/// The error that came first: a scan that found nobody listening only follows the error of the target.
fn outcome(
    sent: Result<Counters, Error>,
    scanned: Result<Scanned, ScanError>,
) -> Result<(Counters, Scanned), Error> {
    match (sent, scanned) {
        (Ok(counters), Ok(scanned)) => Ok((counters, scanned)),
        (_, Err(ScanError::Failed(error))) | (Err(error), _) => Err(error),
        (Ok(_), Err(ScanError::Gone)) => Err(Error::new(
            ErrorKind::Target,
            "sending ended before reading",
        )),
    }
}
