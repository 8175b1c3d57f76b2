//! From the verdict on each block of a window to as few requests as possible. Pure.

/// What happens to a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The hub has it.
    Unchanged,
    /// It is all zero.
    Zero,
    /// Its bytes must be sent.
    Data,
}

/// Blocks of one verdict that lie next to each other; `start..start + len` in bytes of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) verdict: Verdict,
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// Joins neighbours of equal verdict. The stretches cover `0..window_len` in order without a gap; one of data is at
/// most `max_data` long. `verdicts` holds one entry per block of `block_len`, the last block may be shorter.
pub(crate) fn coalesce(
    verdicts: &[Verdict],
    window_len: usize,
    block_len: usize,
    max_data: usize,
) -> Vec<Stretch> {
    debug_assert_eq!(verdicts.len(), window_len.div_ceil(block_len));
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut start = 0;
    for same in verdicts.chunk_by(|a, b| a == b) {
        let end = (start + same.len() * block_len).min(window_len);
        let step = match same[0] {
            Verdict::Data => max_data,
            Verdict::Unchanged | Verdict::Zero => window_len,
        };
        while start < end {
            let len = step.min(end - start);
            stretches.push(Stretch {
                verdict: same[0],
                start,
                len,
            });
            start += len;
        }
    }
    stretches
}
