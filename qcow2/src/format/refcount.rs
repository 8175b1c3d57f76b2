//! Refcount table entries and blocks of any width (qcow2 spec, "Host cluster management").

use std::ops::Range;

use crate::error::{Error, corrupt};
use crate::format::geometry::{Geometry, HostOffset};

const TABLE_RESERVED: u64 = 0x1ff;

/// Decodes a refcount table entry; `None` is a block that does not exist: all its refcounts are 0.
///
/// # Errors
/// `Corrupt` for reserved bits or a block that does not begin at a cluster.
pub fn parse_table_entry(raw: u64, geometry: &Geometry) -> Result<Option<HostOffset>, Error> {
    if raw == 0 {
        return Ok(None);
    }
    if raw & TABLE_RESERVED != 0 || !geometry.is_aligned(HostOffset(raw)) {
        return Err(corrupt(format!(
            "refcount block is not at a cluster's start: entry={raw:#x}"
        )));
    }
    Ok(Some(HostOffset(raw)))
}

/// The largest refcount of a width of `1 << order` bits.
pub fn max_refcount(order: u32) -> u64 {
    u64::MAX >> (64 - (1 << order))
}

/// Reads the refcount in slot `index` of a block.
pub fn get(block: &[u8], order: u32, index: usize) -> u64 {
    match order {
        0..=2 => {
            let (byte, shift, mask) = sub_byte(order, index);
            u64::from((block[byte] >> shift) & mask)
        }
        _ => {
            let width = 1 << (order - 3);
            let bytes = &block[index * width..(index + 1) * width];
            bytes
                .iter()
                .fold(0, |value, byte| value << 8 | u64::from(*byte))
        }
    }
}

/// Writes the refcount in slot `index` of a block; `value` is at most [`max_refcount`].
pub fn set(block: &mut [u8], order: u32, index: usize, value: u64) {
    debug_assert!(value <= max_refcount(order), "refcount fits its width");
    let bytes = value.to_be_bytes();
    match order {
        0..=2 => {
            let (byte, shift, mask) = sub_byte(order, index);
            block[byte] = block[byte] & !(mask << shift) | (bytes[7] & mask) << shift;
        }
        _ => {
            let width = 1 << (order - 3);
            block[index * width..(index + 1) * width].copy_from_slice(&bytes[8 - width..]);
        }
    }
}

/// The bytes of a block that hold these slots.
pub fn bytes_of(order: u32, slots: Range<usize>) -> Range<usize> {
    let bits = 1_usize << order;
    slots.start * bits / 8..(slots.end * bits).div_ceil(8)
}

/// Byte, shift and mask of a refcount narrower than a byte: the first lies in the lowest bits.
fn sub_byte(order: u32, index: usize) -> (usize, usize, u8) {
    let bits = 1_usize << order;
    let per_byte = 8 / bits;
    (
        index / per_byte,
        index % per_byte * bits,
        0xff >> (8 - bits),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_keeps_neighbours() {
        for order in 0..=6 {
            let mut block = vec![0; 512];
            let max = max_refcount(order);
            for index in [0, 1, 2, 7, 8, 9, 60] {
                set(&mut block, order, index, max);
            }
            for index in 0..64 {
                let expected = if [0, 1, 2, 7, 8, 9, 60].contains(&index) {
                    max
                } else {
                    0
                };
                assert_eq!(
                    get(&block, order, index),
                    expected,
                    "order={order} index={index}"
                );
            }
            set(&mut block, order, 8, 0);
            assert_eq!((get(&block, order, 7), get(&block, order, 9)), (max, max));
        }
    }
}
