//! 128 bits that stand for bytes.

use std::fmt;

use crate::error::{Error, corrupt};

/// The first 128 bits of a BLAKE3 hash. Shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Digest(pub [u8; Digest::BYTES]);

impl Digest {
    /// Bytes of a digest.
    pub const BYTES: usize = 16;

    /// Reads hexadecimal digits.
    ///
    /// # Errors
    /// `Corrupt` for anything but 32 of them.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = || {
            corrupt(format!(
                "not a digest of 32 hexadecimal digits: text={text:?}"
            ))
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != Self::BYTES || !rest.is_empty() {
            return Err(wrong());
        }
        let mut bytes = [0; Self::BYTES];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            let (high, low) = (digit(*high), digit(*low));
            *byte = high.ok_or_else(wrong)? << 4 | low.ok_or_else(wrong)?;
        }
        Ok(Self(bytes))
    }
}

fn digit(character: u8) -> Option<u8> {
    let value = char::from(character).to_digit(16)?;
    u8::try_from(value).ok()
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_read_as_they_are_shown() {
        let mut bytes = [0; Digest::BYTES];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::try_from(at * 17).unwrap();
        }
        let text = Digest(bytes).to_string();
        assert_eq!(text, "00112233445566778899aabbccddeeff");
        assert_eq!(Digest::parse(&text).unwrap(), Digest(bytes));
        for wrong in [
            "",
            &text[1..],
            "0x112233445566778899aabbccddeeff",
            "+0112233445566778899aabbccddeeff",
            "é0112233445566778899aabbccddeef",
        ] {
            assert!(Digest::parse(wrong).is_err(), "text={wrong:?}");
        }
    }
}
