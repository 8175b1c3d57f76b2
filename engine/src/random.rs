//! The one place that asks the system for random bytes that nobody can guess.

use aes_gcm::aead::Generate;
use aes_gcm::{Aes256Gcm, Key};

/// 256 random bits.
///
/// # Panics
/// When the system has no random numbers; then nothing secret can be made.
pub(crate) fn bytes() -> [u8; 32] {
    Key::<Aes256Gcm>::generate().into()
}

/// 128 random bits.
///
/// # Panics
/// As [`bytes()`].
pub(crate) fn half() -> [u8; 16] {
    let bytes = bytes();
    let (half, _) = bytes.split_first_chunk().expect("16 of 32 bytes");
    *half
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_two_are_the_same() {
        assert_ne!(super::bytes(), super::bytes());
    }
}
