//! From a source to pieces, without a network.

use std::io;
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::plan::{Verdict, coalesce};
use super::scan::{Gone, Piece, Scan, ScanError, Scanned, Shape};
use super::zero::is_zero;
use crate::limits::{BLOCK_BYTES, RUN_BYTES, WINDOW_BYTES};
use crate::source::{Run, Source, Unchanged};
use crate::tracker::{ChangeId, Loaded, StateHeader, VmStates, block_hash};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A disk in memory, with the stretches that it claims as holes.
#[derive(Debug, Clone)]
struct Memory {
    bytes: Vec<u8>,
    holes: Vec<std::ops::Range<u64>>,
    fails_at: Option<u64>,
}

impl Memory {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            holes: Vec::new(),
            fails_at: None,
        }
    }
}

impl Source for Memory {
    fn label(&self) -> &str {
        "memory"
    }

    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset + into.len() as u64;
        if self.fails_at.is_some_and(|at| (offset..end).contains(&at)) {
            return Err(io::Error::other("medium error"));
        }
        let start = usize::try_from(offset).unwrap();
        into.copy_from_slice(&self.bytes[start..start + into.len()]);
        Ok(())
    }

    fn run_at(&self, offset: u64) -> io::Result<Run> {
        let size = self.size_bytes();
        for hole in &self.holes {
            if hole.contains(&offset) {
                return Ok(Run {
                    len_bytes: hole.end.min(size) - offset,
                    reads_zero: true,
                });
            }
        }
        let next = self.holes.iter().map(|hole| hole.start);
        let end = next.filter(|start| *start > offset).min().unwrap_or(size);
        Ok(Run {
            len_bytes: end.min(size) - offset,
            reads_zero: false,
        })
    }

    fn check_unchanged(&self) -> io::Result<Unchanged> {
        Ok(Unchanged::Quiet)
    }
}

fn plain_shape(size: u64) -> Shape {
    Shape {
        export_bytes: size,
        alignment: 1,
        max_data: WINDOW_BYTES,
    }
}

/// Applies pieces to a device that held `parent` before; checks their form on the way.
fn apply(pieces: &[Piece], parent: &[u8], shape: Shape) -> Vec<u8> {
    let mut device = parent.to_vec();
    device.resize(usize::try_from(shape.export_bytes).unwrap(), 0);
    let mut at = 0;
    let mut before: Option<&Piece> = None;
    for piece in pieces {
        let len = match piece {
            Piece::Unchanged { len_bytes } => {
                assert!(*len_bytes <= RUN_BYTES);
                usize::try_from(*len_bytes).unwrap()
            }
            Piece::Zero { offset, len_bytes } => {
                assert_eq!(*offset, at as u64);
                assert_eq!(offset % shape.alignment as u64, 0);
                assert_eq!(len_bytes % shape.alignment as u64, 0);
                assert!(
                    !matches!(before, Some(Piece::Zero { .. })),
                    "zeroes not joined"
                );
                let len = usize::try_from(*len_bytes).unwrap();
                device[at..at + len].fill(0);
                len
            }
            Piece::Data { offset, data } => {
                assert_eq!(*offset, at as u64);
                assert!(!data.is_empty() && data.len() <= shape.max_data);
                assert_eq!(at % shape.alignment, 0);
                assert_eq!(data.len() % shape.alignment, 0);
                device[at..at + data.len()].copy_from_slice(data);
                data.len()
            }
        };
        at += len;
        before = Some(piece);
    }
    assert_eq!(
        at as u64, shape.export_bytes,
        "the pieces do not cover the export"
    );
    device
}

fn run(scan: Scan) -> (Vec<Piece>, Scanned) {
    let mut pieces = Vec::new();
    let scanned = scan
        .run(&mut |piece| {
            pieces.push(piece);
            Ok(())
        })
        .unwrap();
    (pieces, scanned)
}

fn untracked(source: Memory, shape: Shape) -> Vec<Piece> {
    run(Scan {
        source: Arc::new(source),
        shape,
        previous: None,
        next: None,
    })
    .0
}

/// What a block of a generated disk holds.
#[derive(Debug, Clone, Copy)]
enum Block {
    Zero,
    Hole,
    Data(u8),
    /// One byte that is not zero, so that sampling would miss it.
    Speck(u16),
}

fn block() -> impl Strategy<Value = Block> {
    prop_oneof![
        Just(Block::Zero),
        Just(Block::Hole),
        (1u8..).prop_map(Block::Data),
        any::<u16>().prop_map(Block::Speck),
    ]
}

fn disk(blocks: &[Block], short: usize) -> Memory {
    let mut bytes = Vec::new();
    let mut holes = Vec::new();
    for block in blocks {
        let start = bytes.len();
        let fill = match block {
            Block::Data(byte) => *byte,
            _ => 0,
        };
        bytes.resize(start + BLOCK_BYTES, fill);
        match block {
            Block::Hole => holes.push(start as u64..bytes.len() as u64),
            Block::Speck(at) => bytes[start + usize::from(*at)] = 1,
            _ => {}
        }
    }
    bytes.truncate(bytes.len() - short);
    Memory {
        bytes,
        holes,
        fails_at: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn zero_means_zero(len in 0usize..5000, at in proptest::option::of(any::<prop::sample::Index>())) {
        let mut data = vec![0; len];
        if let (Some(at), true) = (at, len > 0) {
            data[at.index(len)] = 1;
            prop_assert!(!is_zero(&data));
        } else {
            prop_assert!(is_zero(&data));
        }
    }

    #[test]
    fn stretches_cover_the_window_and_are_as_few_as_possible(
        verdicts in proptest::collection::vec(
            prop_oneof![Just(Verdict::Unchanged), Just(Verdict::Zero), Just(Verdict::Data)], 1..20),
        short in 0usize..16,
        max_data in 1usize..100,
    ) {
        let (block, window) = (16, verdicts.len() * 16 - short);
        let stretches = coalesce(&verdicts, window, block, max_data);
        let mut at = 0;
        for (index, stretch) in stretches.iter().enumerate() {
            prop_assert_eq!(stretch.start, at);
            prop_assert!(stretch.len > 0);
            at += stretch.len;
            for byte in stretch.start..at {
                prop_assert_eq!(verdicts[byte / block], stretch.verdict);
            }
            let next_is_same = stretches.get(index + 1).is_some_and(|next| next.verdict == stretch.verdict);
            if stretch.verdict == Verdict::Data {
                prop_assert!(stretch.len <= max_data);
                prop_assert!(!next_is_same || stretch.len == max_data);
            } else {
                prop_assert!(!next_is_same);
            }
        }
        prop_assert_eq!(at, window);
    }

    #[test]
    fn a_device_becomes_the_source_whatever_it_held(
        blocks in proptest::collection::vec(block(), 1..40),
        short in 0usize..BLOCK_BYTES,
        alignment in prop_oneof![Just(1usize), Just(512), Just(4096), Just(BLOCK_BYTES)],
        max_data in prop_oneof![Just(BLOCK_BYTES), Just(WINDOW_BYTES), Just(3 * BLOCK_BYTES)],
    ) {
        let source = disk(&blocks, short);
        let size = source.size_bytes();
        let shape = Shape { export_bytes: size.next_multiple_of(alignment as u64), alignment, max_data };
        let pieces = untracked(source.clone(), shape);
        let device = apply(&pieces, &vec![0xee; source.bytes.len()], shape);
        prop_assert_eq!(&device[..source.bytes.len()], &source.bytes[..]);
        prop_assert!(is_zero(&device[source.bytes.len()..]));
        for piece in &pieces {
            if let Piece::Data { data, .. } = piece {
                prop_assert!(data.chunks(BLOCK_BYTES).all(|block| !is_zero(block)), "zeroes sent as data");
            }
        }
    }

    #[test]
    fn an_increment_sends_changed_blocks_only(
        before in proptest::collection::vec(block(), 1..24),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), block()), 0..6),
        short in 0usize..BLOCK_BYTES,
    ) {
        let root = tempfile::tempdir().unwrap();
        let states = VmStates::open(root.path(), "vm").unwrap();
        let old = disk(&before, short);
        let mut after = before.clone();
        for (index, block) in &changes {
            after[index.index(before.len())] = *block;
        }
        let new = disk(&after, short);
        let shape = plain_shape(old.size_bytes());

        let (_, scanned) = tracked(&states, &old, shape, 1);
        scanned.next.unwrap().finish().unwrap().commit().unwrap();
        let (pieces, scanned) = tracked(&states, &new, shape, 2);

        let device = apply(&pieces, &old.bytes, shape);
        prop_assert_eq!(&device, &new.bytes);
        let unchanged: u64 = pieces.iter().map(|piece| match piece {
            Piece::Unchanged { len_bytes } => *len_bytes,
            _ => 0,
        }).sum();
        let equal: usize = old.bytes.chunks(BLOCK_BYTES).zip(new.bytes.chunks(BLOCK_BYTES))
            .filter(|(old, new)| old == new).map(|(old, _)| old.len()).sum();
        prop_assert_eq!(unchanged, equal as u64);

        // The state that was written on the way is the state of the new content.
        scanned.next.unwrap().finish().unwrap().commit().unwrap();
        let Loaded::Present(state) = states.load("disk-2000") else { panic!("no state") };
        let mut hashes = state.into_hashes().unwrap();
        for block in new.bytes.chunks(BLOCK_BYTES) {
            prop_assert_eq!(hashes.next_hash().unwrap(), block_hash(block));
        }
    }
}

/// Scans with the state in force as the base, if there is one, and a new state.
fn tracked(
    states: &VmStates,
    source: &Memory,
    shape: Shape,
    generation: u64,
) -> (Vec<Piece>, Scanned) {
    let previous = match states.load("disk-2000") {
        Loaded::Present(state) => Some(state.into_hashes().unwrap()),
        _ => None,
    };
    let header = StateHeader {
        identity: states.identity("disk-2000"),
        size_bytes: source.size_bytes(),
        block_bytes: u32::try_from(BLOCK_BYTES).unwrap(),
        change_id: ChangeId {
            epoch: Uuid::from_u128(1),
            generation,
        },
        backup_id: format!("backup-{generation}"),
    };
    run(Scan {
        source: Arc::new(source.clone()),
        shape,
        previous,
        next: Some(states.create(&header).unwrap()),
    })
}

#[test]
fn a_hole_is_never_read_and_told_in_long_pieces() {
    /// A disk of one huge hole that cannot be read.
    #[derive(Debug)]
    struct Void(u64);

    impl Source for Void {
        fn label(&self) -> &str {
            "void"
        }
        fn size_bytes(&self) -> u64 {
            self.0
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::Error::other("a hole was read"))
        }
        fn run_at(&self, offset: u64) -> io::Result<Run> {
            Ok(Run {
                len_bytes: self.0 - offset,
                reads_zero: true,
            })
        }
        fn check_unchanged(&self) -> io::Result<Unchanged> {
            Ok(Unchanged::Quiet)
        }
    }

    let size = (8 << 40) + 12345;
    let (pieces, scanned) = run(Scan {
        source: Arc::new(Void(size)),
        shape: plain_shape(size),
        previous: None,
        next: None,
    });
    assert_eq!(scanned.read_bytes, 0);
    assert_eq!(pieces.len() as u64, size.div_ceil(RUN_BYTES));
}

#[test]
fn adjacent_blocks_travel_together() {
    let source = Memory::new(vec![5; 5 * WINDOW_BYTES / 2]);
    let pieces = untracked(source.clone(), plain_shape(source.size_bytes()));
    let lengths: Vec<usize> = pieces
        .iter()
        .map(|piece| match piece {
            Piece::Data { data, .. } => data.len(),
            other => panic!("unexpected {other:?}"),
        })
        .collect();
    assert_eq!(lengths, [WINDOW_BYTES, WINDOW_BYTES, WINDOW_BYTES / 2]);
}

#[test]
fn the_tail_of_a_larger_export_is_zeroed() {
    let source = Memory::new(vec![5; 1000]);
    let shape = Shape {
        export_bytes: 1536,
        alignment: 1,
        max_data: WINDOW_BYTES,
    };
    let pieces = untracked(source, shape);
    let mut expected = vec![5; 1000];
    expected.resize(1536, 0);
    assert_eq!(apply(&pieces, &[0xee; 1536], shape), expected);
}

#[test]
fn a_medium_error_names_source_and_offset() {
    let mut source = Memory::new(vec![5; 4 * WINDOW_BYTES]);
    source.fails_at = Some(2 * WINDOW_BYTES as u64 + 7);
    let shape = plain_shape(source.size_bytes());
    let scan = Scan {
        source: Arc::new(source),
        shape,
        previous: None,
        next: None,
    };
    let Err(ScanError::Failed(error)) = scan.run(&mut |_| Ok(())) else {
        panic!("no error")
    };
    let text = error.full_text();
    assert!(
        text.contains("source=memory offset=2097152") && text.contains("medium error"),
        "{text}"
    );
}

#[test]
fn a_scan_ends_when_nobody_listens() {
    let source = Memory::new(vec![5; 64 * WINDOW_BYTES]);
    let shape = plain_shape(source.size_bytes());
    let mut taken = 0;
    let scan = Scan {
        source: Arc::new(source),
        shape,
        previous: None,
        next: None,
    };
    let result = scan.run(&mut |_| {
        taken += 1;
        if taken == 3 { Err(Gone) } else { Ok(()) }
    });
    assert!(matches!(result, Err(ScanError::Gone)));
    assert_eq!(taken, 3);
}

#[test]
fn a_short_hole_is_read_as_data_around_it() {
    let mut source = Memory::new(vec![5; 3 * BLOCK_BYTES]);
    source.bytes[1000..2000].fill(0);
    source.holes.push(1000..2000);
    let shape = plain_shape(source.size_bytes());
    let pieces = untracked(source.clone(), shape);
    assert_eq!(
        apply(&pieces, &vec![0xee; 3 * BLOCK_BYTES], shape),
        source.bytes
    );
    let mut source = Memory::new(vec![5; 3 * BLOCK_BYTES]);
    let hole = BLOCK + 100..3 * BLOCK - 5;
    source.bytes[BLOCK_BYTES + 100..3 * BLOCK_BYTES - 5].fill(0);
    source.holes.push(hole);
    let pieces = untracked(source.clone(), shape);
    assert_eq!(
        apply(&pieces, &vec![0xee; 3 * BLOCK_BYTES], shape),
        source.bytes
    );
}
