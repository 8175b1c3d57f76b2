//! Header extensions: typed blobs behind the header (qcow2 spec, "Header extensions").

use crate::error::{Error, corrupt};
use crate::format::geometry::to_usize;
use crate::format::wire;

/// End of the list.
pub const END: u32 = 0;
/// The format of the backing file, as text.
pub const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Names of feature bits.
pub const FEATURE_NAMES: u32 = 0x6803_f857;
/// The name of an external data file, as text.
pub const DATA_FILE: u32 = 0x4441_5441;
/// Where the header of a full disk encryption is.
pub const ENCRYPTION: u32 = 0x0537_be77;
/// Persistent bitmaps.
pub const BITMAPS: u32 = 0x2385_2875;
/// The hub's seal: unknown to everyone else and kept by QEMU's tools.
pub const SEAL: u32 = 0x5348_5331;

/// One extension; `data` is shown without its padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// What it is; unknown ones are kept as they are.
    pub kind: u32,
    /// Its content.
    pub data: Vec<u8>,
}

/// The list, and where it ends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extensions {
    /// In the order of the file.
    pub list: Vec<Extension>,
    /// Offset in cluster 0 of the end marker, or of the first byte after the list without one.
    pub end: usize,
}

impl Extensions {
    /// Reads the list from `cluster[start..limit]`.
    ///
    /// # Errors
    /// `Corrupt` for an extension that does not end before `limit`.
    pub fn parse(cluster: &[u8], start: usize, limit: usize) -> Result<Self, Error> {
        let mut list = Vec::new();
        let mut at = start;
        while at + 8 <= limit {
            let kind = wire::u32_at(cluster, at);
            let len = to_usize(u64::from(wire::u32_at(cluster, at + 4)));
            if kind == END {
                break;
            }
            let end = at + 8 + len;
            if end > limit {
                return Err(corrupt(format!(
                    "header extension does not end before its limit: kind={kind:#x} offset={at} \
                     len={len} limit={limit}"
                )));
            }
            list.push(Extension {
                kind,
                data: cluster[at + 8..end].to_vec(),
            });
            at = end.next_multiple_of(8);
        }
        Ok(Self {
            list,
            end: at.min(limit),
        })
    }

    /// The content of the first extension of a kind.
    pub fn find(&self, kind: u32) -> Option<&[u8]> {
        self.list
            .iter()
            .find(|extension| extension.kind == kind)
            .map(|found| &found.data[..])
    }
}

/// An extension as it is stored, padded to 8 bytes, without an end marker.
pub fn encode(kind: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).expect("an extension fits into a cluster");
    let mut bytes = Vec::with_capacity(data.len() + 16);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_survives_a_round_trip() {
        let mut bytes = encode(BACKING_FORMAT, b"qcow2");
        bytes.extend(encode(0x1234, b""));
        bytes.extend(encode(SEAL, &[7; 13]));
        let end = bytes.len();
        bytes.resize(512, 0);
        let parsed = Extensions::parse(&bytes, 0, 512).unwrap();
        assert_eq!(parsed.end, end);
        assert_eq!(parsed.list.len(), 3);
        assert_eq!(parsed.find(SEAL), Some(&[7; 13][..]));
        assert_eq!(parsed.find(0x1234), Some(&[][..]));
    }

    #[test]
    fn an_extension_past_its_limit_is_refused() {
        let bytes = [
            0x12, 0x34, 0x56, 0x78, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert!(Extensions::parse(&bytes, 0, 16).is_err());
    }
}
