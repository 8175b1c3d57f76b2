//! Metadata contexts: which there are, what they are called, and what they say of a run.

/// The server's number for a metadata context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContextId(pub u32);

/// The metadata context of the specification: holes and zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// How far down in a chain of images a run is decided (QEMU, docs/interop/nbd.txt).
pub const ALLOCATION_DEPTH: &str = "qemu:allocation-depth";

/// Before the name of a bitmap (QEMU, docs/interop/nbd.txt).
const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";

/// Queries of a listing that mean every context whose name begins so.
const WILDCARDS: [&str; 3] = ["base:", "qemu:", DIRTY_BITMAP];

/// Something that block status can be asked about (NBD proto, "Metadata querying").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaContext {
    /// `base:allocation`: holes and zeroes.
    Allocation,
    /// `qemu:allocation-depth`: which layer decides.
    AllocationDepth,
    /// `qemu:dirty-bitmap:NAME`: what the topmost layers decide, that is, what changed since the
    /// layer below them was the top.
    Changes {
        /// NAME.
        bitmap: String,
        /// How many layers hold the changes, at least 1.
        layers: u32,
    },
}

impl MetaContext {
    /// The name as clients ask for it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Allocation => BASE_ALLOCATION.to_owned(),
            Self::AllocationDepth => ALLOCATION_DEPTH.to_owned(),
            Self::Changes { bitmap, .. } => format!("{DIRTY_BITMAP}{bitmap}"),
        }
    }

    /// What this context says of a run.
    #[must_use]
    pub fn status(&self, extent: &Extent) -> u32 {
        match self {
            Self::Allocation => u32::from(extent.hole) | (u32::from(extent.reads_zero) << 1),
            Self::AllocationDepth => extent.depth,
            Self::Changes { layers, .. } => u32::from((1..=*layers).contains(&extent.depth)),
        }
    }

    /// Whether a query means this context. Only a listing knows wildcards.
    pub(crate) fn is_meant_by(&self, query: &str, listing: bool) -> bool {
        let name = self.name();
        query == name || (listing && WILDCARDS.contains(&query) && name.starts_with(query))
    }
}

/// A context that a client has selected, and its number on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedContext {
    /// The number.
    pub id: ContextId,
    /// What it is about.
    pub context: MetaContext,
}

/// One run of equal state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length of the run, not 0.
    pub len_bytes: u64,
    /// Not allocated in the storage behind.
    pub hole: bool,
    /// Reads as zero.
    pub reads_zero: bool,
    /// Which layer of the storage decides: 1 the topmost, 2 the one below; 0 when none does.
    pub depth: u32,
}

impl Extent {
    /// A run of a device without layers.
    #[must_use]
    pub fn flat(len_bytes: u64, hole: bool, reads_zero: bool) -> Self {
        Self {
            len_bytes,
            hole,
            reads_zero,
            depth: u32::from(!hole),
        }
    }

    /// The run that a descriptor of `base:allocation` tells of; other bits mean nothing.
    #[must_use]
    pub fn from_descriptor(descriptor: BlockDescriptor) -> Self {
        let (hole, reads_zero) = (descriptor.status & 1 != 0, descriptor.status & 2 != 0);
        Self::flat(descriptor.len_bytes, hole, reads_zero)
    }

    /// Whether both runs are of the same state.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let state = |extent: &Self| (extent.hole, extent.reads_zero, extent.depth);
        state(self) == state(other)
    }
}

/// One run of a block status reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockDescriptor {
    /// Length of the run, not 0.
    pub len_bytes: u64,
    /// Meaning given by the metadata context.
    pub status: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(layers: u32) -> MetaContext {
        MetaContext::Changes {
            bitmap: "since".to_owned(),
            layers,
        }
    }

    #[test]
    fn queries_mean_exact_names_and_listings_know_wildcards() {
        let all = [
            MetaContext::Allocation,
            MetaContext::AllocationDepth,
            changes(1),
        ];
        let meant = |query: &str, listing: bool| -> Vec<usize> {
            let found = all.iter().enumerate();
            found
                .filter(|(_, context)| context.is_meant_by(query, listing))
                .map(|(place, _)| place)
                .collect()
        };
        for (query, listed, selected) in [
            ("base:", vec![0], vec![]),
            ("qemu:", vec![1, 2], vec![]),
            ("qemu:dirty-bitmap:", vec![2], vec![]),
            ("base:allocation", vec![0], vec![0]),
            ("qemu:allocation-depth", vec![1], vec![1]),
            ("qemu:dirty-bitmap:since", vec![2], vec![2]),
            ("qemu:dirty-bitmap:s", vec![], vec![]),
            ("base:alloc", vec![], vec![]),
            ("", vec![], vec![]),
            ("x-other:", vec![], vec![]),
        ] {
            assert_eq!(meant(query, true), listed, "list {query}");
            assert_eq!(meant(query, false), selected, "set {query}");
        }
    }

    #[test]
    fn each_context_sees_its_own_facts() {
        let at_depth = |depth| Extent {
            depth,
            ..Extent::flat(9, false, true)
        };
        assert_eq!(MetaContext::Allocation.status(&at_depth(2)), 2);
        assert_eq!(
            MetaContext::Allocation.status(&Extent::flat(1, true, true)),
            3
        );
        assert_eq!(MetaContext::AllocationDepth.status(&at_depth(7)), 7);
        let dirty = |layers| [0, 1, 2, 3].map(|depth| changes(layers).status(&at_depth(depth)));
        assert_eq!(dirty(1), [0, 1, 0, 0]);
        assert_eq!(dirty(2), [0, 1, 1, 0]);
    }
}
