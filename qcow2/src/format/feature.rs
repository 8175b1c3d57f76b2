//! Feature bits of version 3 and their names (qcow2 spec, "Header", "Feature name table").

/// Refcounts may be wrong: an image that was not closed by a writer with lazy refcounts.
pub const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
/// A writer saw that the image is corrupt.
pub const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
/// Guest data lives in another file.
pub const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;
/// Compressed clusters are not zlib; the header names the type.
pub const INCOMPATIBLE_COMPRESSION_TYPE: u64 = 1 << 3;
/// L2 entries are 128 bits wide and describe subclusters.
pub const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// Bits that this crate understands; images with any other are refused.
pub const INCOMPATIBLE_KNOWN: u64 = INCOMPATIBLE_DIRTY
    | INCOMPATIBLE_CORRUPT
    | INCOMPATIBLE_COMPRESSION_TYPE
    | INCOMPATIBLE_EXTENDED_L2;

/// Persistent bitmaps are consistent with the data. Cleared by every writer that does not keep them.
pub const AUTOCLEAR_BITMAPS: u64 = 1 << 0;

/// The names of all bits that the format defines, as QEMU writes them: which set of bits, which bit, its name.
const NAMES: [(u8, u8, &str); 8] = [
    (INCOMPATIBLE, 0, "dirty bit"),
    (INCOMPATIBLE, 1, "corrupt bit"),
    (INCOMPATIBLE, 2, "external data file"),
    (INCOMPATIBLE, 3, "compression type"),
    (INCOMPATIBLE, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

/// The set of incompatible features in the table.
const INCOMPATIBLE: u8 = 0;
/// Set, bit, and a name of at most 46 bytes.
const ENTRY_BYTES: usize = 48;

/// The table that a new image gets, so that older programs can say what they do not know.
pub fn name_table() -> Vec<u8> {
    let mut table = Vec::with_capacity(NAMES.len() * ENTRY_BYTES);
    for (index, (set, bit, name)) in NAMES.iter().enumerate() {
        table.extend_from_slice(&[*set, *bit]);
        table.extend_from_slice(name.as_bytes());
        table.resize((index + 1) * ENTRY_BYTES, 0);
    }
    table
}

/// Names incompatible features for the reader of an error, by the image's own table; those without a name by their bit.
pub fn name_incompatible(bits: u64, table: Option<&[u8]>) -> String {
    let table = table.unwrap_or_default();
    let named = |bit: u8| {
        table
            .chunks_exact(ENTRY_BYTES)
            .find(|entry| entry[..2] == [INCOMPATIBLE, bit])
            .map(|entry| entry[2..].split(|byte| *byte == 0).next().unwrap_or(&[]))
            .filter(|name| !name.is_empty())
    };
    let names: Vec<String> = (0..64)
        .filter(|bit| bits >> bit & 1 == 1)
        .map(|bit| match named(bit) {
            // Whoever made the image chose the text.
            Some(name) => format!("\"{}\"", name.escape_ascii()),
            None => format!("bit {bit}"),
        })
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_named_by_the_table() {
        let mut table = name_table();
        assert_eq!(table.len(), 8 * 48);
        table.extend_from_slice(&[1, 6]);
        table.extend_from_slice(b"compatible, not meant");
        table.resize(9 * 48, 0);
        table.extend_from_slice(&[0, 6]);
        table.extend_from_slice(&[b'n'; 46]);
        table.extend_from_slice(&[0, 7]);
        table.extend_from_slice(b"a\nb\0rest");
        table.resize(11 * 48, 0);
        // A torn entry at the end is nobody's name.
        table.extend_from_slice(&[0, 63, b'x']);
        let bits = 1 << 2 | 1 << 6 | 1 << 7 | 1 << 63;
        let expected = format!(
            "\"external data file\", \"{}\", \"a\\nb\", bit 63",
            "n".repeat(46)
        );
        assert_eq!(name_incompatible(bits, Some(&table)), expected);
        assert_eq!(name_incompatible(1 << 5, None), "bit 5");
    }
}
