//! Is a buffer all zero? A fold that the compiler turns into vector instructions.

/// Bytes folded at a time: long enough for wide registers, short enough to stop early on data.
const BLOCK_BYTES: usize = 256;

/// Whether every byte is zero.
pub fn is_zero(data: &[u8]) -> bool {
    let (blocks, rest) = data.as_chunks::<BLOCK_BYTES>();
    blocks.iter().all(|block| fold(block) == 0) && fold(rest) == 0
}

fn fold(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |seen, byte| seen | byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_bit_anywhere_is_seen() {
        for len in [0, 1, 255, 256, 257, 700] {
            let mut data = vec![0; len];
            assert!(is_zero(&data));
            for at in 0..len {
                data[at] = 0x80;
                assert!(!is_zero(&data), "len={len} at={at}");
                data[at] = 0;
            }
        }
    }
}
