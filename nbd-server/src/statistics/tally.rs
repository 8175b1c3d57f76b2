//! Numbers by kind: counted by many at once, told as one.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use super::kinds::Kind;

/// A number for each case of a kind.
#[derive(Clone, PartialEq, Eq)]
pub struct Counts<K> {
    numbers: Box<[u64]>,
    kind: PhantomData<K>,
}

impl<K: Kind> Counts<K> {
    /// The number of one case.
    #[must_use]
    pub fn get(&self, kind: K) -> u64 {
        self.numbers[kind.index()]
    }

    /// Every case with its number.
    pub fn iter(&self) -> impl Iterator<Item = (K, u64)> {
        K::ALL.iter().copied().zip(self.numbers.iter().copied())
    }

    /// The sum over all cases.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.numbers.iter().sum()
    }
}

impl<K: Kind> fmt::Debug for Counts<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = self.iter().filter(|(_, number)| *number > 0);
        f.debug_map()
            .entries(counted.map(|(kind, number)| (kind.name(), number)))
            .finish()
    }
}

/// The same while it is counted. Relaxed: no number says anything about other memory.
pub(super) struct Tally<K> {
    numbers: Box<[AtomicU64]>,
    kind: PhantomData<K>,
}

impl<K: Kind> Tally<K> {
    pub(super) fn add(&self, kind: K, number: u64) {
        self.numbers[kind.index()].fetch_add(number, Ordering::Relaxed);
    }

    pub(super) fn subtract(&self, kind: K, number: u64) {
        self.numbers[kind.index()].fetch_sub(number, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> Counts<K> {
        let numbers = self.numbers.iter();
        Counts {
            numbers: numbers.map(|n| n.load(Ordering::Relaxed)).collect(),
            kind: PhantomData,
        }
    }
}

impl<K: Kind> Default for Tally<K> {
    fn default() -> Self {
        Self {
            numbers: K::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            kind: PhantomData,
        }
    }
}

impl<K: Kind> fmt::Debug for Tally<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kinds::{CommandKind, ErrorKind, ExportRefusal, HandshakeEnd, SessionEnd};
    use super::*;

    fn check<K: Kind + PartialEq + fmt::Debug>() {
        let tally = Tally::<K>::default();
        for (place, &kind) in K::ALL.iter().enumerate() {
            assert_eq!(kind.index(), place, "{kind:?}");
            tally.add(kind, u64::try_from(place).unwrap() + 1);
        }
        let counts = tally.counts();
        for (kind, number) in counts.iter() {
            assert_eq!(number, u64::try_from(kind.index()).unwrap() + 1);
            assert_eq!(counts.get(kind), number);
            tally.subtract(kind, number);
        }
        assert_eq!(tally.counts().total(), 0);
        let mut names: Vec<_> = K::ALL.iter().map(|kind| kind.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), K::ALL.len(), "each has a name of its own");
    }

    #[test]
    fn every_case_has_its_own_number_and_name() {
        check::<HandshakeEnd>();
        check::<ExportRefusal>();
        check::<SessionEnd>();
        check::<CommandKind>();
        check::<ErrorKind>();
    }
}
