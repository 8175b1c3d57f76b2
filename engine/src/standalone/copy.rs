//! Copies and compares devices, without reading what is known to be zero.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use nbd_server::Extent;
use qcow2::Image;

use crate::error::{Error, ErrorKind};
use crate::export::{Device, DeviceError};
use crate::limits::{
    COMPRESS_THREADS_MAX, COPY_PIECE_BYTES, EXTENT_QUERY_BYTES_MAX, SPARSE_BLOCK_BYTES,
};
use crate::model::Comparison;
use crate::repository::image_error;

/// Writes the first `size_bytes` of `source` to `target`, which reads as zero so far. Blocks of zeroes are left out.
/// Returns how many bytes were written.
pub(crate) fn copy_data(
    source: &dyn Device,
    target: &dyn Device,
    size_bytes: u64,
) -> Result<u64, Error> {
    let mut written_bytes = 0;
    let mut piece = vec![0; COPY_PIECE_BYTES];
    let mut at = 0;
    while at < size_bytes {
        let run = run_at(source, at, size_bytes)?;
        let end = at + run.len_bytes;
        while at < end {
            if run.reads_zero {
                at = end;
                break;
            }
            let data = prefix(&mut piece, end - at);
            read(source, at, data)?;
            for block in data.chunks(SPARSE_BLOCK_BYTES) {
                if !is_zero(block) {
                    target
                        .write(at, block)
                        .map_err(|error| failed("failed to write", at, &error))?;
                    written_bytes += block.len() as u64;
                }
                at += block.len() as u64;
            }
        }
    }
    Ok(written_bytes)
}

/// As [`copy_data`], into a new image and compressed, by as many threads as the machine runs at once: each takes the
/// next piece of whole clusters.
pub(crate) fn copy_compressed(
    source: &dyn Device,
    target: &Image,
    size_bytes: u64,
    cluster_bytes: u64,
) -> Result<u64, Error> {
    let piece_bytes = (COPY_PIECE_BYTES as u64).next_multiple_of(cluster_bytes);
    let pieces = size_bytes.div_ceil(piece_bytes);
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return Ok(());
            }
            let at = piece * piece_bytes;
            let len_bytes = piece_bytes.min(size_bytes - at);
            copy_piece(source, target, at, len_bytes).inspect_err(|_| {
                // Nobody needs the rest.
                next.store(pieces, Ordering::Relaxed);
            })?;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(COMPRESS_THREADS_MAX))
            .map(|_| scope.spawn(work))
            .collect();
        let mut result = Ok(());
        for worker in workers {
            // Each is waited for: one that nobody waited for would take this thread with it in a panic.
            let panicked = |_| Err(Error::internal("a thread panicked", "while compressing"));
            result = result.and(worker.join().unwrap_or_else(panicked));
        }
        result
    })?;
    Ok(target.counters().stored_bytes)
}

/// Compresses one piece of whole clusters, unless all of it is known to be zero.
fn copy_piece(source: &dyn Device, target: &Image, at: u64, len_bytes: u64) -> Result<(), Error> {
    let run = run_at(source, at, at + len_bytes)?;
    if run.reads_zero && run.len_bytes == len_bytes {
        return Ok(());
    }
    // The image counts in sectors: what is beyond the end of the source is zero.
    let sectors_bytes = len_bytes.next_multiple_of(512);
    let mut data = vec![0; usize::try_from(sectors_bytes).unwrap_or(usize::MAX)];
    read(source, at, prefix(&mut data, len_bytes))?;
    target
        .write_compressed(at, &data)
        .map_err(|error| image_error("failed to write", format!("offset={at}"), error))
}

/// Compares two devices of the given sizes. Where one is longer, its tail must read as zero.
pub(crate) fn compare_devices(
    left: (&dyn Device, u64),
    right: (&dyn Device, u64),
) -> Result<Comparison, Error> {
    let everything = 0..left.1.min(right.1);
    compare_ranges(left, right, std::iter::once(Ok(everything)))
}

/// As [`compare_devices`], where only `ranges` may differ: in order, and each begins where both devices are.
pub(crate) fn compare_ranges(
    (left, left_bytes): (&dyn Device, u64),
    (right, right_bytes): (&dyn Device, u64),
    ranges: impl Iterator<Item = Result<Range<u64>, Error>>,
) -> Result<Comparison, Error> {
    let common_bytes = left_bytes.min(right_bytes);
    for range in ranges {
        let range = range?;
        let range = range.start..range.end.min(common_bytes);
        if let Some(offset) = first_difference(left, right, range)? {
            return Ok(Comparison::Differs { offset });
        }
    }
    let (longer, longer_bytes) = if left_bytes > right_bytes {
        (left, left_bytes)
    } else {
        (right, right_bytes)
    };
    if let Some(offset) = first_non_zero(longer, common_bytes, longer_bytes)? {
        return Ok(Comparison::Differs { offset });
    }
    Ok(Comparison::Equal {
        compared_bytes: longer_bytes,
    })
}

/// Offset of the first byte of a range, inside both devices, that differs.
fn first_difference(
    left: &dyn Device,
    right: &dyn Device,
    range: Range<u64>,
) -> Result<Option<u64>, Error> {
    let (mut left_piece, mut right_piece) = (vec![0; COPY_PIECE_BYTES], vec![0; COPY_PIECE_BYTES]);
    let mut at = range.start;
    while at < range.end {
        let (left_run, right_run) = (run_at(left, at, range.end)?, run_at(right, at, range.end)?);
        let len_bytes = left_run.len_bytes.min(right_run.len_bytes);
        if left_run.reads_zero && right_run.reads_zero {
            at += len_bytes;
            continue;
        }
        let left_data = prefix(&mut left_piece, len_bytes);
        let right_data = prefix(&mut right_piece, len_bytes);
        read(left, at, left_data)?;
        read(right, at, right_data)?;
        if left_data != right_data {
            let same = left_data
                .iter()
                .zip(right_data.iter())
                .take_while(|(a, b)| a == b)
                .count();
            return Ok(Some(at + same as u64));
        }
        at += left_data.len() as u64;
    }
    Ok(None)
}

/// Offset of the first byte from `at` to `end` that is not zero.
fn first_non_zero(device: &dyn Device, mut at: u64, end: u64) -> Result<Option<u64>, Error> {
    let mut piece = vec![0; COPY_PIECE_BYTES];
    while at < end {
        let run = run_at(device, at, end)?;
        if run.reads_zero {
            at += run.len_bytes;
            continue;
        }
        let data = prefix(&mut piece, run.len_bytes);
        read(device, at, data)?;
        if let Some(index) = data.iter().position(|byte| *byte != 0) {
            return Ok(Some(at + index as u64));
        }
        at += data.len() as u64;
    }
    Ok(None)
}

/// The run of equal state at `at`; ends at `end` at the latest, and is never empty.
fn run_at(device: &dyn Device, at: u64, end: u64) -> Result<Extent, Error> {
    let len_bytes = (end - at).min(EXTENT_QUERY_BYTES_MAX);
    let runs = device
        .extents(at, len_bytes)
        .map_err(|error| failed("failed to look up extents", at, &error))?;
    let first = runs.into_iter().find(|run| run.len_bytes > 0);
    let run = first.ok_or_else(|| Error::internal("no extent was told", format!("offset={at}")))?;
    Ok(Extent {
        len_bytes: run.len_bytes.min(end - at),
        ..run
    })
}

fn read(device: &dyn Device, at: u64, into: &mut [u8]) -> Result<(), Error> {
    device
        .read(at, into)
        .map_err(|error| failed("failed to read", at, &error))
}

/// As much of `piece` as `len_bytes` needs.
fn prefix(piece: &mut [u8], len_bytes: u64) -> &mut [u8] {
    let len = usize::try_from(len_bytes)
        .unwrap_or(usize::MAX)
        .min(piece.len());
    &mut piece[..len]
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

fn failed(message: &str, at: u64, error: &DeviceError) -> Error {
    let kind = match error.code {
        nbd_server::ErrorCode::NOSPC => ErrorKind::NoSpace,
        nbd_server::ErrorCode::IO => ErrorKind::Corrupt,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, message, format!("offset={at} error={error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standalone::files::{NewFile, RawFile};

    fn raw(folder: &std::path::Path, name: &str, len_bytes: u64) -> RawFile {
        let new = NewFile::create(&folder.join(name)).unwrap();
        let raw = RawFile::of(new.file().unwrap(), len_bytes).unwrap();
        new.finish().unwrap();
        raw
    }

    #[test]
    fn copies_are_equal_and_thin() {
        let folder = tempfile::tempdir().unwrap();
        let size = (5 << 20) + 123;
        let source = raw(folder.path(), "a", size);
        source.write(0, b"begin").unwrap();
        source.write((2 << 20) - 7, &[9; 100]).unwrap();
        source.write(size - 3, b"end").unwrap();
        let target = raw(folder.path(), "b", size);
        let written = copy_data(&source, &target, size).unwrap();
        assert!(written < 5 * SPARSE_BLOCK_BYTES as u64, "written={written}");
        let equal = compare_devices((&source, size), (&target, size)).unwrap();
        assert_eq!(
            equal,
            Comparison::Equal {
                compared_bytes: size
            }
        );
        target.write(3 << 20, &[1]).unwrap();
        let differs = compare_devices((&source, size), (&target, size)).unwrap();
        assert_eq!(differs, Comparison::Differs { offset: 3 << 20 });
    }

    #[test]
    fn a_longer_tail_must_be_zero() {
        let folder = tempfile::tempdir().unwrap();
        let short = raw(folder.path(), "short", 1000);
        let long = raw(folder.path(), "long", 3000);
        let compare = |a: &RawFile, b: &RawFile| {
            compare_devices((a, a.len_bytes()), (b, b.len_bytes())).unwrap()
        };
        assert_eq!(
            compare(&short, &long),
            Comparison::Equal {
                compared_bytes: 3000
            }
        );
        long.write(2999, &[1]).unwrap();
        assert_eq!(compare(&short, &long), Comparison::Differs { offset: 2999 });
        assert_eq!(compare(&long, &short), Comparison::Differs { offset: 2999 });
    }
}
