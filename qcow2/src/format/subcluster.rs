//! Extended L2 entries: an entry and the state of its 32 subclusters (qcow2 spec, "Extended L2 Entries").

use crate::error::{Error, corrupt};
use crate::format::geometry::Geometry;
use crate::format::l2::L2Entry;

/// Where the bytes of a subcluster are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subcluster {
    /// In the cluster, at its place.
    Data,
    /// Nowhere: they are zero.
    Zero,
    /// What lies below has them.
    Below,
}

/// The second word of an extended L2 entry: which subclusters are in the cluster, and which are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Subclusters {
    allocated: u32,
    zero: u32,
}

impl Subclusters {
    /// The state of a subcluster, 0 to 31.
    pub fn state(self, index: u32) -> Subcluster {
        if self.zero >> index & 1 == 1 {
            Subcluster::Zero
        } else if self.allocated >> index & 1 == 1 {
            Subcluster::Data
        } else {
            Subcluster::Below
        }
    }
}

/// Decodes an entry of an image with extended L2 entries, always of version 3. The entry says which cluster it has:
/// [`L2Entry::Data`], [`L2Entry::Unallocated`], or compressed, where the subclusters mean nothing.
///
/// # Errors
/// `Corrupt` for reserved bits, a cluster that is not aligned, and subclusters that cannot be: zero and data at once,
/// or data without a cluster.
pub fn parse(words: [u64; 2], geometry: &Geometry) -> Result<(L2Entry, Subclusters), Error> {
    let [raw, bitmap] = words;
    let wrong = |what: &str| {
        corrupt(format!(
            "extended L2 entry {what}: entry={raw:#x} subclusters={bitmap:#x}"
        ))
    };
    let entry = L2Entry::parse(raw, 3, geometry)?;
    let states = Subclusters {
        allocated: low(bitmap),
        zero: low(bitmap >> 32),
    };
    match entry {
        // The bit that says so elsewhere is reserved here.
        L2Entry::Zero { .. } => return Err(wrong("has reserved bits set")),
        L2Entry::Compressed(_) => return Ok((entry, Subclusters::default())),
        L2Entry::Unallocated if states.allocated != 0 => {
            return Err(wrong("has data without a cluster"));
        }
        L2Entry::Data(_) if states.allocated & states.zero != 0 => {
            return Err(wrong("has subclusters that are data and zero at once"));
        }
        L2Entry::Unallocated | L2Entry::Data(_) => {}
    }
    Ok((entry, states))
}

fn low(bitmap: u64) -> u32 {
    u32::try_from(bitmap & u64::from(u32::MAX)).expect("32 bits were masked")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::geometry::HostOffset;
    use crate::format::l2::HostCell;

    #[test]
    fn every_state_is_told_and_what_cannot_be_is_corrupt() {
        let geometry = Geometry::new(16, 4, 1 << 30).unwrap();
        let at = 5 << 16;
        let (entry, states) = parse([at, 0b001 | 0b010 << 32], &geometry).unwrap();
        let cell = HostCell {
            offset: HostOffset(at),
            copied: false,
        };
        assert_eq!(entry, L2Entry::Data(cell));
        let told: Vec<_> = (0..3).map(|index| states.state(index)).collect();
        assert_eq!(
            told,
            [Subcluster::Data, Subcluster::Zero, Subcluster::Below]
        );
        let (entry, states) = parse([0, 1 << 63], &geometry).unwrap();
        assert_eq!(entry, L2Entry::Unallocated);
        assert_eq!(states.state(31), Subcluster::Zero);
        assert_eq!(states.state(30), Subcluster::Below);
        assert!(parse([1 << 62 | 512, u64::MAX], &geometry).is_ok());
        for (words, value) in [
            ([at, 1 | 1 << 32], "0x100000001"),
            ([0, 1 << 7], "0x80"),
            ([at | 1, 1], "entry=0x50001"),
            ([at + 512, 1], "entry=0x50200"),
            ([at | 1 << 60, 1], "entry=0x1000000000050000"),
        ] {
            let error = parse(words, &geometry).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Corrupt);
            assert!(error.to_string().contains(value), "{error}");
        }
    }
}
