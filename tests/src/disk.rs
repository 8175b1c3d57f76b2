//! A disk as it must read, and random traces that change it.

use std::ops::Range;

use qcow2::Image;

/// A sector: the unit that sizes of disks are a multiple of.
pub const SECTOR: usize = 512;

/// One request of a trace.
#[derive(Debug, Clone)]
pub enum Op {
    /// Data from `offset`: runs of one value each, one after the other.
    Write {
        /// First byte.
        offset: usize,
        /// Value and length.
        runs: Vec<(u8, usize)>,
    },
    /// Zeroes.
    Zero {
        /// What becomes zero.
        range: Range<usize>,
        /// Whether the storage behind it may be given back.
        unmap: bool,
    },
    /// What came before is durable.
    Flush,
}

/// The bytes that a disk must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk(Vec<u8>);

impl Disk {
    /// A disk of this length on top of another one: what is longer is cut, what is missing is zero.
    #[must_use]
    pub fn new(len: usize, below: Option<&Self>) -> Self {
        let mut bytes = below.map_or_else(Vec::new, |below| below.0.clone());
        bytes.resize(len, 0);
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Applies a request.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Write { offset, runs } => {
                let mut at = *offset;
                for (value, len) in runs {
                    self.0[at..at + len].fill(*value);
                    at += len;
                }
            }
            Op::Zero { range, .. } => self.0[range.clone()].fill(0),
            Op::Flush => {}
        }
    }

    /// A random request: borders anywhere, at sectors or at clusters; data that is new, zero in parts, or what the disk
    /// has already.
    #[must_use]
    pub fn random_op(&self, rng: &mut fastrand::Rng, cluster: usize) -> Op {
        let unit = [1, SECTOR, cluster][rng.usize(0..3)];
        let offset = rng.usize(0..self.0.len()) / unit * unit;
        let rest = self.0.len() - offset;
        let len = rng.usize(1..=40_000.max(cluster * 5 / 2));
        let range = offset..offset + len.next_multiple_of(unit).min(rest);
        match rng.u8(0..10) {
            0..4 => Op::Write {
                offset,
                runs: random_runs(rng, range.len()),
            },
            4 => Op::Write {
                offset,
                runs: self.runs(range),
            },
            5..9 => Op::Zero {
                range,
                unmap: rng.bool(),
            },
            _ => Op::Flush,
        }
    }

    /// Values and lengths of a range.
    #[must_use]
    pub fn runs(&self, range: Range<usize>) -> Vec<(u8, usize)> {
        self.0[range]
            .chunk_by(|a, b| a == b)
            .map(|run| (run[0], run.len()))
            .collect()
    }

    /// Requires that `read` is this disk.
    ///
    /// # Panics
    /// With the first difference.
    pub fn assert_is(&self, read: &[u8], reader: &str, context: &str) {
        assert_eq!(read.len(), self.0.len(), "{reader}: length: {context}");
        if let Some(at) = self
            .0
            .iter()
            .zip(read)
            .position(|(ours, read)| ours != read)
        {
            panic!(
                "{reader} reads {:#x} and not {:#x} at {at}: {context}",
                read[at], self.0[at]
            );
        }
    }
}

/// Runs of random values and lengths, some of zeroes.
fn random_runs(rng: &mut fastrand::Rng, len: usize) -> Vec<(u8, usize)> {
    let mut runs = Vec::new();
    let mut rest = len;
    while rest > 0 {
        let run = rng.usize(1..=len.div_ceil(2)).min(rest);
        let value = if rng.u8(0..4) == 0 { 0 } else { rng.u8(..) };
        runs.push((value, run));
        rest -= run;
    }
    runs
}

impl Op {
    /// Sends the request to an image.
    ///
    /// # Panics
    /// When the image refuses it.
    pub fn send(&self, image: &Image) {
        match self {
            Self::Write { offset, runs } => {
                let data: Vec<u8> = runs
                    .iter()
                    .flat_map(|(value, len)| std::iter::repeat_n(*value, *len))
                    .collect();
                image.write(*offset as u64, &data).expect("a write");
            }
            Self::Zero { range, unmap } => image
                .write_zeroes(range.start as u64, range.len() as u64, !unmap)
                .expect("zeroes"),
            Self::Flush => image.flush().expect("a flush"),
        }
    }

    /// The request in qemu-io's words.
    #[must_use]
    pub fn qemu_io(&self) -> Vec<String> {
        match self {
            Self::Write { offset, runs } => {
                let mut at = *offset;
                let command = |(value, len): &(u8, usize)| {
                    let command = format!("write -P {value} {at} {len}");
                    at += len;
                    command
                };
                runs.iter().map(command).collect()
            }
            Self::Zero { range, unmap } => {
                let unmap = if *unmap { "-u " } else { "" };
                vec![format!("write -z {unmap}{} {}", range.start, range.len())]
            }
            Self::Flush => vec!["flush".to_owned()],
        }
    }
}
