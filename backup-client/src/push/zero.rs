//! Is a buffer all zero? Exact, and quick to say no.

/// Bytes that are folded before looking at the result: longer would waste work on ordinary data.
const STRIDE_BYTES: usize = 1024;

/// True when every byte is zero.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    data.chunks(STRIDE_BYTES).all(|stride| {
        let (words, rest) = stride.as_chunks::<16>();
        let fold = words
            .iter()
            .fold(0, |fold, word| fold | u128::from_ne_bytes(*word));
        fold == 0 && rest.iter().all(|byte| *byte == 0)
    })
}
