//! The only byte order in the crate: everything on the wire is big-endian.

use bytes::{BufMut, BytesMut};

use super::error::ProtocolError;

/// Takes fields off a slice, front to back; an error names the structure and the offset in it.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    structure: &'static str,
    whole_len: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(structure: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            structure,
            whole_len: bytes.len(),
            rest: bytes,
        }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], ProtocolError> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(self.truncated(count)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        match self.rest.split_first_chunk::<N>() {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(*taken)
            }
            None => Err(self.truncated(N)),
        }
    }

    fn truncated(&self, need: usize) -> ProtocolError {
        ProtocolError::Truncated {
            structure: self.structure,
            offset: self.whole_len - self.rest.len(),
            need,
            have: self.rest.len(),
        }
    }

    pub(crate) fn u16(&mut self) -> Result<u16, ProtocolError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ProtocolError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ProtocolError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(crate) fn magic_u32(&mut self, expected: u32) -> Result<(), ProtocolError> {
        let found = self.u32()?;
        self.same_magic(expected.into(), found.into())
    }

    pub(crate) fn magic_u64(&mut self, expected: u64) -> Result<(), ProtocolError> {
        let found = self.u64()?;
        self.same_magic(expected, found)
    }

    fn same_magic(&self, expected: u64, found: u64) -> Result<(), ProtocolError> {
        if expected == found {
            Ok(())
        } else {
            Err(ProtocolError::BadMagic {
                structure: self.structure,
                expected,
                found,
            })
        }
    }

    /// `count` bytes as a string without NUL.
    pub(crate) fn text(&mut self, count: usize) -> Result<&'a str, ProtocolError> {
        let structure = self.structure;
        match std::str::from_utf8(self.bytes(count)?) {
            Ok(text) if !text.contains('\0') => Ok(text),
            _ => Err(ProtocolError::NotText { structure }),
        }
    }

    /// A 32-bit length and that many bytes of text, at most `max` of them.
    pub(crate) fn counted_text(&mut self, max: usize) -> Result<&'a str, ProtocolError> {
        let len = self.u32()?;
        let len_bytes = usize::try_from(len).unwrap_or(usize::MAX);
        if len_bytes > max {
            return Err(ProtocolError::TooBig {
                structure: self.structure,
                value: len.into(),
                max: u64::try_from(max).unwrap_or(u64::MAX),
            });
        }
        self.text(len_bytes)
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Trailing bytes are an error: they would be read as something else by somebody else.
    pub(crate) fn finish(self) -> Result<(), ProtocolError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(ProtocolError::Trailing {
                structure: self.structure,
                count: self.rest.len(),
            })
        }
    }
}

/// Appends fields to a buffer.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    out: &'a mut BytesMut,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(out: &'a mut BytesMut) -> Self {
        Self { out }
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.put_slice(bytes);
        self
    }

    pub(crate) fn zeroes(&mut self, count: usize) -> &mut Self {
        self.out.put_bytes(0, count);
        self
    }

    /// A 32-bit length and the text.
    pub(crate) fn counted_text(&mut self, text: &str) -> &mut Self {
        self.u32(len_u32(text.len())).bytes(text.as_bytes())
    }
}

/// A length that a limit has bounded long before, as the wire wants it.
pub(crate) fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("limits keep every structure below 4 GiB")
}

/// Fills a fixed array front to back: for headers that never touch the heap.
#[derive(Debug)]
pub(crate) struct ArrayWriter<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> ArrayWriter<N> {
    pub(crate) fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.put(&value.to_be_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.put(&value.to_be_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.put(&value.to_be_bytes())
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        let end = self.len + bytes.len();
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
        self
    }

    pub(crate) fn finish(self) -> ([u8; N], usize) {
        (self.bytes, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_names_what_is_missing_and_what_is_too_much() {
        let mut reader = Reader::new("thing", &[0, 1, 2]);
        assert_eq!(reader.u16(), Ok(1));
        assert_eq!(
            reader.u32(),
            Err(ProtocolError::Truncated {
                structure: "thing",
                offset: 2,
                need: 4,
                have: 1
            })
        );
        assert_eq!(
            reader.finish(),
            Err(ProtocolError::Trailing {
                structure: "thing",
                count: 1
            })
        );
    }

    #[test]
    fn everything_is_big_endian() {
        let mut out = BytesMut::new();
        Writer::new(&mut out)
            .u16(1)
            .u32(2)
            .u64(3)
            .counted_text("a")
            .zeroes(1);
        assert_eq!(&out[..], b"\0\x01\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\x01a\0");
        let (bytes, len) = ArrayWriter::<8>::new().u16(1).u32(2).finish();
        assert_eq!(&bytes[..len], b"\0\x01\0\0\0\x02");
    }
}
