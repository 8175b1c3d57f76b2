//! The fixed header (qcow2 spec, "Header").

use crate::error::{Error, corrupt, unsupported};
use crate::format::compression::CompressionType;
use crate::format::extension::{DATA_FILE, Extensions, FEATURE_NAMES};
use crate::format::feature;
use crate::format::geometry::{Geometry, HostOffset, to_usize};
use crate::format::limits::{
    HEADER_READ_BYTES, MAX_BACKING_NAME_BYTES, MAX_HOST_OFFSET, MAX_L1_BYTES,
    MAX_REFCOUNT_TABLE_BYTES, MAX_SNAPSHOTS,
};
use crate::format::wire;

/// `QFI\xfb`.
pub const MAGIC: u32 = 0x5146_49fb;
/// Bytes to read before the cluster size is known: the longest header this crate interprets.
pub const PREFIX_BYTES: usize = 112;
/// Where the incompatible feature bits are.
pub const INCOMPATIBLE_AT: u64 = 72;
/// Where the autoclear bits are: cleared alone, in one aligned write.
pub const AUTOCLEAR_AT: u64 = 88;
/// Where offset and size of the refcount table are: changed together, within one sector.
pub const REFCOUNT_TABLE_AT: u64 = 48;
/// Where offset and length of the backing name are: changed together, within one sector.
pub const BACKING_NAME_AT: u64 = 8;

const V2_BYTES: u32 = 72;
const V3_MIN_BYTES: u32 = 104;
const V3_BYTES: u32 = 112;

/// Where this crate puts a backing name: behind everything else that other readers look at, so that extensions can
/// grow in front. imago and qcow2-rs refuse a name that reaches the end of the cluster; one byte is left free.
pub fn backing_name_place(geometry: &Geometry, name_len: usize) -> usize {
    let area = to_usize(geometry.cluster_size().min(HEADER_READ_BYTES));
    area.saturating_sub((name_len + 1).next_multiple_of(8))
}

/// The fixed fields, checked against each other; offsets are not yet compared with the file's length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// All sizes of the image.
    pub geometry: Geometry,
    /// Position and length of the backing name in cluster 0.
    pub backing_name: Option<(usize, usize)>,
    /// Entries of the active L1 table; at least what the disk needs.
    pub l1_entries: u32,
    /// Where the active L1 table begins.
    pub l1_offset: HostOffset,
    /// Where the refcount table begins.
    pub refcount_table_offset: HostOffset,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Internal snapshots.
    pub snapshot_count: u32,
    /// Where the snapshot table begins.
    pub snapshots_offset: HostOffset,
    /// Features without which the image cannot be read.
    pub incompatible: u64,
    /// Features that may be ignored.
    pub compatible: u64,
    /// Features that a writer clears if it does not keep them.
    pub autoclear: u64,
    /// Bytes of the header; extensions follow.
    pub header_len: u32,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
}

impl Header {
    /// Reads the header from the first [`PREFIX_BYTES`] of a file (zero-padded where it is shorter).
    ///
    /// # Errors
    /// `Corrupt` for fields that contradict each other or break a limit, `Unsupported` for another version and for
    /// encryption. Unknown features are refused by [`Header::parse_cluster`], which can name them.
    pub fn parse(prefix: &[u8; PREFIX_BYTES]) -> Result<Self, Error> {
        let magic = wire::u32_at(prefix, 0);
        if magic != MAGIC {
            return Err(corrupt(format!("not a qcow2 image: magic={magic:#010x}")));
        }
        let version = wire::u32_at(prefix, 4);
        if version != 2 && version != 3 {
            return Err(unsupported(format!(
                "unknown qcow2 version: version={version}"
            )));
        }
        let crypt_method = wire::u32_at(prefix, 32);
        if crypt_method != 0 {
            let name = match crypt_method {
                1 => "AES",
                2 => "LUKS",
                _ => "unknown",
            };
            return Err(unsupported(format!(
                "image is encrypted ({name}): crypt_method={crypt_method}"
            )));
        }
        let refcount_order = if version == 2 {
            4
        } else {
            wire::u32_at(prefix, 96)
        };
        let geometry = Geometry::new(
            wire::u32_at(prefix, 20),
            refcount_order,
            wire::u64_at(prefix, 24),
        )
        .map_err(|error| corrupt(format!("header is out of bounds: {error}")))?;
        let mut header = Self {
            version,
            geometry,
            backing_name: None,
            l1_entries: wire::u32_at(prefix, 36),
            l1_offset: HostOffset(wire::u64_at(prefix, 40)),
            refcount_table_offset: HostOffset(wire::u64_at(prefix, 48)),
            refcount_table_clusters: wire::u32_at(prefix, 56),
            snapshot_count: wire::u32_at(prefix, 60),
            snapshots_offset: HostOffset(wire::u64_at(prefix, 64)),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            header_len: V2_BYTES,
            compression: CompressionType::Zlib,
        };
        if version == 3 {
            header.parse_version_3(prefix)?;
        }
        header.backing_name =
            header.parse_backing_name(wire::u64_at(prefix, 8), wire::u32_at(prefix, 16))?;
        header.check_tables()?;
        Ok(header)
    }

    fn parse_version_3(&mut self, prefix: &[u8; PREFIX_BYTES]) -> Result<(), Error> {
        self.incompatible = wire::u64_at(prefix, 72);
        self.compatible = wire::u64_at(prefix, 80);
        self.autoclear = wire::u64_at(prefix, 88);
        self.header_len = wire::u32_at(prefix, 100);
        let len = self.header_len;
        if len < V3_MIN_BYTES
            || !len.is_multiple_of(8)
            || u64::from(len) > self.geometry.cluster_size()
        {
            return Err(corrupt(format!(
                "header length is out of bounds: header_length={len}"
            )));
        }
        if len > V3_MIN_BYTES {
            self.compression = CompressionType::parse(prefix[104])?;
        }
        if self.has_extended_l2() {
            self.geometry = self
                .geometry
                .with_subclusters()
                .map_err(|error| corrupt(format!("header is out of bounds: {error}")))?;
        }
        let bits = self.incompatible;
        let declared = bits & feature::INCOMPATIBLE_COMPRESSION_TYPE != 0;
        if declared != (self.compression != CompressionType::Zlib) {
            return Err(corrupt(format!(
                "compression type and its feature bit differ: compression_type={}",
                self.compression.as_str()
            )));
        }
        Ok(())
    }

    /// L2 entries are 128 bits wide and describe subclusters.
    pub fn has_extended_l2(&self) -> bool {
        self.incompatible & feature::INCOMPATIBLE_EXTENDED_L2 != 0
    }

    /// Refuses what this crate does not know, by the names that the image gives.
    fn check_features(&self, extensions: &Extensions) -> Result<(), Error> {
        if self.incompatible & feature::INCOMPATIBLE_EXTERNAL_DATA != 0 {
            let name = extensions.find(DATA_FILE).unwrap_or_default();
            return Err(unsupported(format!(
                "image keeps its data in an external data file: data_file=\"{}\"",
                name.escape_ascii()
            )));
        }
        let unknown = self.incompatible & !feature::INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            return Err(unsupported(format!(
                "image uses unknown incompatible features: {}",
                feature::name_incompatible(unknown, extensions.find(FEATURE_NAMES))
            )));
        }
        Ok(())
    }

    fn parse_backing_name(&self, offset: u64, len: u32) -> Result<Option<(usize, usize)>, Error> {
        // QEMU takes a name without length for none.
        if offset == 0 || len == 0 {
            return Ok(None);
        }
        let cluster_size = self.geometry.cluster_size();
        let fits = offset >= u64::from(self.header_len)
            && offset
                .checked_add(u64::from(len))
                .is_some_and(|end| end <= cluster_size);
        if len > MAX_BACKING_NAME_BYTES || !fits {
            return Err(corrupt(format!(
                "backing name is out of bounds: offset={offset} len={len}"
            )));
        }
        Ok(Some((to_usize(offset), to_usize(u64::from(len)))))
    }

    fn check_tables(&self) -> Result<(), Error> {
        let geometry = &self.geometry;
        let l1_bytes = u64::from(self.l1_entries) * 8;
        if l1_bytes > MAX_L1_BYTES || u64::from(self.l1_entries) < geometry.l1_entries() {
            return Err(corrupt(format!(
                "L1 table does not fit the disk: l1_size={} needed={}",
                self.l1_entries,
                geometry.l1_entries()
            )));
        }
        let table_bytes = u64::from(self.refcount_table_clusters) * geometry.cluster_size();
        if table_bytes == 0 || table_bytes > MAX_REFCOUNT_TABLE_BYTES {
            return Err(corrupt(format!(
                "refcount table is out of bounds: clusters={}",
                self.refcount_table_clusters
            )));
        }
        self.check_place("L1 table", self.l1_offset, l1_bytes)?;
        self.check_place("refcount table", self.refcount_table_offset, table_bytes)?;
        if self.snapshot_count > MAX_SNAPSHOTS {
            return Err(corrupt(format!(
                "too many snapshots: count={}",
                self.snapshot_count
            )));
        }
        if self.snapshot_count > 0 {
            self.check_place("snapshot table", self.snapshots_offset, 1)?;
        }
        Ok(())
    }

    fn check_place(&self, what: &str, offset: HostOffset, len_bytes: u64) -> Result<(), Error> {
        // An empty table may name no place at all.
        if len_bytes == 0 {
            return Ok(());
        }
        let inside = offset.0 != 0 && offset.0 < MAX_HOST_OFFSET - len_bytes;
        if !inside || !self.geometry.is_aligned(offset) {
            return Err(corrupt(format!(
                "{what} is misplaced: offset={:#x}",
                offset.0
            )));
        }
        Ok(())
    }

    /// The last byte plus one where header extensions may be.
    pub fn extension_limit(&self) -> usize {
        match self.backing_name {
            Some((offset, _)) => offset,
            None => to_usize(self.geometry.cluster_size()),
        }
    }

    /// Reads extensions and the backing name from cluster 0.
    ///
    /// # Errors
    /// `Unsupported` by name for features this crate does not do, `Corrupt` for an extension out of bounds or a name
    /// that is not UTF-8.
    pub fn parse_cluster(&self, cluster: &[u8]) -> Result<(Extensions, Option<String>), Error> {
        let start = to_usize(u64::from(self.header_len));
        let extensions = Extensions::parse(cluster, start, self.extension_limit());
        // What is unknown is said first: it may be why the rest cannot be read.
        self.check_features(extensions.as_ref().unwrap_or(&Extensions::default()))?;
        let extensions = extensions?;
        let name = match self.backing_name {
            None => None,
            Some((offset, len)) => {
                let bytes = cluster[offset..offset + len].to_vec();
                let name = String::from_utf8(bytes)
                    .map_err(|_| corrupt(format!("backing name is not UTF-8: offset={offset}")))?;
                Some(name)
            }
        };
        Ok((extensions, name))
    }

    /// Bytes of a new header of a version.
    pub fn new_len(version: u32) -> u32 {
        if version == 2 { V2_BYTES } else { V3_BYTES }
    }

    /// The fixed part: 72 bytes of version 2, 112 of version 3.
    pub fn encode(&self) -> Vec<u8> {
        let (name_offset, name_len) = self.backing_name.unwrap_or((0, 0));
        let name_len = u32::try_from(name_len).expect("a backing name has at most 1023 bytes");
        let mut bytes = Vec::with_capacity(PREFIX_BYTES);
        bytes.extend_from_slice(&MAGIC.to_be_bytes());
        bytes.extend_from_slice(&self.version.to_be_bytes());
        bytes.extend_from_slice(&(name_offset as u64).to_be_bytes());
        bytes.extend_from_slice(&name_len.to_be_bytes());
        bytes.extend_from_slice(&self.geometry.cluster_bits().to_be_bytes());
        bytes.extend_from_slice(&self.geometry.virtual_size().to_be_bytes());
        bytes.extend_from_slice(&0_u32.to_be_bytes());
        bytes.extend_from_slice(&self.l1_entries.to_be_bytes());
        bytes.extend_from_slice(&self.l1_offset.0.to_be_bytes());
        bytes.extend_from_slice(&self.refcount_table_offset.0.to_be_bytes());
        bytes.extend_from_slice(&self.refcount_table_clusters.to_be_bytes());
        bytes.extend_from_slice(&self.snapshot_count.to_be_bytes());
        bytes.extend_from_slice(&self.snapshots_offset.0.to_be_bytes());
        if self.version == 2 {
            return bytes;
        }
        bytes.extend_from_slice(&self.incompatible.to_be_bytes());
        bytes.extend_from_slice(&self.compatible.to_be_bytes());
        bytes.extend_from_slice(&self.autoclear.to_be_bytes());
        bytes.extend_from_slice(&self.geometry.refcount_order().to_be_bytes());
        bytes.extend_from_slice(&V3_BYTES.to_be_bytes());
        bytes.push(self.compression.raw());
        bytes.resize(PREFIX_BYTES, 0);
        bytes
    }
}

/// The fields at [`REFCOUNT_TABLE_AT`]: they change together when the table moves.
pub fn refcount_table_fields(at: HostOffset, clusters: u32) -> Vec<u8> {
    let mut fields = at.0.to_be_bytes().to_vec();
    fields.extend_from_slice(&clusters.to_be_bytes());
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::extension;

    #[test]
    fn a_backing_name_ends_before_the_cluster_and_where_readers_look() {
        for bits in 9..=21 {
            let geometry = Geometry::new(bits, 4, 1 << 20).unwrap();
            for len in [1, 7, 8, 9, 15, 16, 300] {
                let end = backing_name_place(&geometry, len) + len;
                let area = 65_536.min(1 << bits);
                assert!(end < area && end + 9 > area, "bits={bits} len={len}");
            }
            assert!(bits > 9 || backing_name_place(&geometry, 600) == 0);
        }
    }

    fn header() -> Header {
        Header {
            version: 3,
            geometry: Geometry::new(16, 4, 1 << 30).unwrap(),
            backing_name: Some((65_000, 12)),
            l1_entries: 2,
            l1_offset: HostOffset(3 << 16),
            refcount_table_offset: HostOffset(1 << 16),
            refcount_table_clusters: 1,
            snapshot_count: 0,
            snapshots_offset: HostOffset(0),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            header_len: 112,
            compression: CompressionType::Zlib,
        }
    }

    fn parse(bytes: &[u8]) -> Result<Header, Error> {
        Header::parse(bytes.try_into().unwrap())
    }

    #[test]
    fn a_header_survives_a_round_trip() {
        assert_eq!(parse(&header().encode()).unwrap(), header());
        let old = Header {
            version: 2,
            header_len: 72,
            ..header()
        };
        let mut bytes = old.encode();
        assert_eq!(bytes.len(), 72);
        // What follows the header is not read as a part of it.
        bytes.resize(PREFIX_BYTES, 0xff);
        assert_eq!(parse(&bytes).unwrap(), old);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let cases: [(usize, u8, &str); 6] = [
            (79, 1 << 2, "external data file"),
            (79, 1 << 5, "\"bigger on the inside\""),
            (79, 3 << 5, "bit 6"),
            (35, 1, "AES"),
            (35, 2, "LUKS"),
            (7, 4, "version=4"),
        ];
        let mut names = vec![0, 5];
        names.extend_from_slice(b"bigger on the inside");
        names.resize(48, 0);
        let names = extension::encode(FEATURE_NAMES, &names);
        for (at, value, text) in cases {
            let mut bytes = header().encode();
            bytes[at] = value;
            let error = parse(&bytes)
                .and_then(|header| {
                    bytes.extend_from_slice(&names);
                    bytes.resize(65_536, 0);
                    header.parse_cluster(&bytes).map(drop)
                })
                .unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn an_extension_that_cannot_be_does_not_hide_an_unknown_feature() {
        let mut bytes = header().encode();
        bytes[79] = 1 << 5;
        let header = parse(&bytes).unwrap();
        bytes.resize(65_536, 0xff);
        let error = header.parse_cluster(&bytes).unwrap_err();
        assert!(error.to_string().contains("bit 5"), "{error}");
    }

    #[test]
    fn fields_out_of_bounds_are_corrupt() {
        // (first byte, bytes): magic, cluster_bits, L1 size, L1 offset, table clusters, name, length
        let cases: [(usize, &[u8]); 7] = [
            (0, b"QFIx"),
            (20, &[0, 0, 0, 63]),
            (36, &[0xff; 4]),
            (40, &[0, 0, 0, 0, 0, 0, 2, 0]),
            (56, &[0xff; 4]),
            (16, &[0, 0, 4, 0]),
            (100, &[0, 0, 0, 1]),
        ];
        for (at, value) in cases {
            let mut bytes = header().encode();
            bytes[at..at + value.len()].copy_from_slice(value);
            assert_eq!(
                parse(&bytes).unwrap_err().kind(),
                crate::ErrorKind::Corrupt,
                "at={at}"
            );
        }
    }
}
