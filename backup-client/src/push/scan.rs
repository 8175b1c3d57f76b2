//! Reads a source from begin to end and says what must be sent. Blocking; one thread per disk.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::plan::{Verdict, coalesce};
use super::zero::is_zero;
use crate::limits::{BLOCK_BYTES, RUN_BYTES, WINDOW_BYTES};
use crate::source::Source;
use crate::tracker::{BlockHash, HashReader, StateWriter, block_hash};
use crate::{Error, ErrorKind};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A part of the disk and what to do with it. Pieces come in ascending order and never overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// The hub has it already.
    Unchanged { len_bytes: u64 },
    /// It reads as zero.
    Zero { offset: u64, len_bytes: u64 },
    /// It holds these bytes.
    Data { offset: u64, data: Bytes },
}

/// How the receiving side wants its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Size of the export; at least the size of the source.
    pub(crate) export_bytes: u64,
    /// Offsets and lengths are multiples of it.
    pub(crate) alignment: usize,
    /// The longest payload of a request; a multiple of the alignment.
    pub(crate) max_data: usize,
}

/// Where pieces go; an error says that nobody takes them any more.
pub(crate) type Sink<'a> = dyn FnMut(Piece) -> Result<(), Gone> + 'a;

/// The receiver of pieces has ended; it knows why.
#[derive(Debug)]
pub(crate) struct Gone;

/// Why a scan ended early.
#[derive(Debug)]
pub(crate) enum ScanError {
    Gone,
    Failed(Error),
}

/// One pass over a source.
pub(crate) struct Scan {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) shape: Shape,
    /// Hashes of the point under this backup; blocks equal to them are left out.
    pub(crate) previous: Option<HashReader>,
    /// The state of the point that is being made.
    pub(crate) next: Option<StateWriter>,
}

/// What a finished scan hands back.
#[derive(Debug)]
pub(crate) struct Scanned {
    /// Bytes read from the source; holes are not read.
    pub(crate) read_bytes: u64,
    /// Complete but not sealed.
    pub(crate) next: Option<StateWriter>,
    /// Why tracking was given up on the way. The data sent is right all the same.
    pub(crate) tracking_lost: Option<String>,
}

impl Scan {
    /// Reads everything and hands the pieces to `sink`.
    pub(crate) fn run(self, sink: &mut Sink<'_>) -> Result<Scanned, ScanError> {
        let size = self.source.size_bytes();
        let shape = self.shape;
        let mut pass = Pass {
            scan: self,
            size,
            zero_hash: block_hash(&[0; BLOCK_BYTES]),
            pending: None,
            read_bytes: 0,
            tracking_lost: None,
            sink,
        };
        let mut offset = 0;
        while offset < size {
            offset = pass.step(offset)?;
        }
        // The export may be a little larger than the disk; its tail reads as zero.
        let covered = pass.aligned_end(size);
        if covered < shape.export_bytes {
            pass.put(Verdict::Zero, covered, shape.export_bytes - covered)?;
        }
        pass.flush()?;
        Ok(Scanned {
            read_bytes: pass.read_bytes,
            next: pass.scan.next,
            tracking_lost: pass.tracking_lost,
        })
    }
}

/// The state of a running scan.
struct Pass<'a, 'b> {
    scan: Scan,
    size: u64,
    zero_hash: BlockHash,
    /// A run of zero or unchanged blocks that may still grow: verdict, offset, length.
    pending: Option<(Verdict, u64, u64)>,
    read_bytes: u64,
    tracking_lost: Option<String>,
    sink: &'a mut Sink<'b>,
}

impl Pass<'_, '_> {
    /// Handles the run of the source at `offset`, a multiple of the block size; returns where the next one begins.
    fn step(&mut self, offset: u64) -> Result<u64, ScanError> {
        let run = self
            .scan
            .source
            .run_at(offset)
            .map_err(|error| self.failed("cannot map the source", offset, error))?;
        let end = offset
            .checked_add(run.len_bytes)
            .filter(|end| *end > offset && *end <= self.size)
            .ok_or_else(|| {
                let error = io::Error::other(format!("impossible run len={}", run.len_bytes));
                self.failed("cannot map the source", offset, error)
            })?;
        if run.reads_zero {
            let end = if end == self.size {
                end
            } else {
                end - end % BLOCK
            };
            if end > offset {
                self.hole(offset, end)?;
                return Ok(end);
            }
        }
        // Data, or a hole too short to cover a block. Whole blocks are read, so a hole may lose its first part here.
        let end = end.next_multiple_of(BLOCK).min(self.size);
        let mut at = offset;
        while at < end {
            // Windows end at multiples of their length, so that the requests of all runs do, too.
            let window_end = (at - at % WINDOW_BYTES as u64 + WINDOW_BYTES as u64).min(end);
            self.window(at, window_end)?;
            at = window_end;
        }
        Ok(end)
    }

    /// Blocks known to be zero without reading them.
    fn hole(&mut self, offset: u64, end: u64) -> Result<(), ScanError> {
        let step = if self.tracks() { BLOCK } else { RUN_BYTES };
        let mut at = offset;
        while at < end {
            let len = step.min(end - at);
            let hash = match (self.tracks(), len) {
                (false, _) => None,
                (true, BLOCK) => Some(self.zero_hash),
                (true, _) => Some(block_hash(&vec![0; usize_of(len)])),
            };
            let verdict = self.judge(hash, || true);
            self.put(verdict, at, len)?;
            at += len;
        }
        Ok(())
    }

    /// Reads `offset..end`, at most one window, and emits what must be sent of it.
    fn window(&mut self, offset: u64, end: u64) -> Result<(), ScanError> {
        let len = usize_of(end - offset);
        // Past the end of the disk the buffer stays zero, for an export that wants aligned requests.
        let padded = usize_of(self.aligned_end(end) - offset).max(len);
        let mut buffer = BytesMut::zeroed(padded);
        self.scan
            .source
            .read_at(offset, &mut buffer[..len])
            .map_err(|error| self.failed("cannot read the source", offset, error))?;
        self.read_bytes += len as u64;

        let mut verdicts = Vec::with_capacity(len.div_ceil(BLOCK_BYTES));
        for block in buffer[..len].chunks(BLOCK_BYTES) {
            let hash = self.tracks().then(|| block_hash(block));
            verdicts.push(self.judge(hash, || is_zero(block)));
        }

        let data = buffer.freeze();
        for stretch in coalesce(&verdicts, padded, BLOCK_BYTES, self.scan.shape.max_data) {
            let at = offset + stretch.start as u64;
            if stretch.verdict == Verdict::Data {
                self.flush()?;
                self.emit(Piece::Data {
                    offset: at,
                    data: data.slice(stretch.start..stretch.start + stretch.len),
                })?;
            } else {
                self.put_raw(stretch.verdict, at, stretch.len as u64)?;
            }
        }
        Ok(())
    }

    fn tracks(&self) -> bool {
        self.scan.previous.is_some() || self.scan.next.is_some()
    }

    /// Compares a block with its previous hash and records the new one. A state that fails on the way is given up:
    /// the rest is sent without it, which costs time and nothing else.
    fn judge(&mut self, hash: Option<BlockHash>, zero: impl FnOnce() -> bool) -> Verdict {
        if let (Some(next), Some(hash)) = (&mut self.scan.next, &hash)
            && let Err(error) = next.push(hash)
        {
            self.scan.next = None;
            self.tracking_lost = Some(format!("cannot write the tracking state: {error}"));
        }
        if let (Some(previous), Some(hash)) = (&mut self.scan.previous, &hash) {
            match previous.next_hash() {
                Ok(before) if before == *hash => return Verdict::Unchanged,
                Ok(_) => {}
                Err(error) => {
                    self.scan.previous = None;
                    self.tracking_lost = Some(format!("cannot read the tracking state: {error}"));
                }
            }
        }
        if zero() { Verdict::Zero } else { Verdict::Data }
    }

    /// As [`Self::put_raw`], with the end of the disk moved to the export's alignment.
    fn put(&mut self, verdict: Verdict, offset: u64, len: u64) -> Result<(), ScanError> {
        let end = self.aligned_end(offset + len);
        self.put_raw(verdict, offset, end - offset)
    }

    /// Lets a run of zero or unchanged blocks grow, and emits it when it cannot.
    fn put_raw(&mut self, verdict: Verdict, offset: u64, len: u64) -> Result<(), ScanError> {
        match &mut self.pending {
            Some((pending, start, pending_len))
                if *pending == verdict
                    && *start + *pending_len == offset
                    && *pending_len + len <= RUN_BYTES =>
            {
                *pending_len += len;
            }
            _ => {
                self.flush()?;
                self.pending = Some((verdict, offset, len));
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ScanError> {
        match self.pending.take() {
            Some((Verdict::Unchanged, _, len_bytes)) => self.emit(Piece::Unchanged { len_bytes }),
            Some((_, offset, len_bytes)) => self.emit(Piece::Zero { offset, len_bytes }),
            None => Ok(()),
        }
    }

    fn emit(&mut self, piece: Piece) -> Result<(), ScanError> {
        (self.sink)(piece).map_err(|Gone| ScanError::Gone)
    }

    /// `end`, or the next multiple of the alignment when it is the end of the disk.
    fn aligned_end(&self, end: u64) -> u64 {
        if end == self.size {
            end.next_multiple_of(self.scan.shape.alignment as u64)
                .min(self.scan.shape.export_bytes)
        } else {
            end
        }
    }

    fn failed(&self, what: &str, offset: u64, error: io::Error) -> ScanError {
        let text = format!("{what} source={} offset={offset}", self.scan.source.label());
        ScanError::Failed(Error::because(ErrorKind::Source, text, error))
    }
}

/// Lengths of at most a window.
fn usize_of(len: u64) -> usize {
    usize::try_from(len).expect("a window fits in memory")
}
