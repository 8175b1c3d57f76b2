//! Big-endian integers in byte slices: the only byte order of the format.

/// Reads a `u16` at `at`.
///
/// # Panics
/// If the slice ends before; callers check lengths where bytes come in.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array_at(bytes, at))
}

/// Reads a `u32` at `at`.
///
/// # Panics
/// If the slice ends before; callers check lengths where bytes come in.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array_at(bytes, at))
}

/// Reads a `u64` at `at`.
///
/// # Panics
/// If the slice ends before; callers check lengths where bytes come in.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array_at(bytes, at))
}

/// Decodes a table of 64-bit entries (L1, L2, refcount table, bitmap table).
pub fn table(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks_exact(8)
        .map(|entry| u64_at(entry, 0))
        .collect()
}

/// Encodes a table of 64-bit entries.
pub fn table_bytes(entries: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * 8);
    for entry in entries {
        bytes.extend_from_slice(&entry.to_be_bytes());
    }
    bytes
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}
