//! What a write does to one cluster, from its entry and what lies below.

use crate::format::geometry::HostOffset;
use crate::format::l2::{CompressedCell, HostCell, L2Entry};

/// What is written into a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Bytes, not all zero.
    Data,
    /// Zeroes.
    Zero {
        /// The cluster stays, or becomes, allocated (NBD `NO_HOLE`).
        keep_allocation: bool,
    },
}

/// The question: one cluster of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// What the tables say now.
    pub entry: L2Entry,
    /// All bytes of the cluster that belong to the disk are written.
    pub whole: bool,
    /// What is written.
    pub content: Content,
    /// Something else than zeroes may lie below.
    pub data_below: bool,
    /// The image can say "this cluster is zero" (version 3).
    pub has_zero_flag: bool,
}

/// Where the bytes of a new cluster come from that the request does not bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Zeroes.
    Zero,
    /// What lies below.
    Below,
    /// Another host cluster.
    Host(HostOffset),
    /// A compressed cluster.
    Compressed(CompressedCell),
}

/// The cluster a zero entry keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// None.
    Nothing,
    /// The one it has.
    Own(HostOffset),
    /// A new one.
    New,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The cluster reads so already.
    Nothing,
    /// Write the piece into the cluster as it is; the tables do not change.
    InPlace(HostOffset),
    /// Write the whole cluster (the rest zero) where it is kept, then make it data.
    Fill(HostOffset),
    /// Allocate a cluster, write all of it, then make it data.
    Allocate(Rest),
    /// Store it compressed in a new place. Never decided here: nobody knows before it is compressed.
    Compress,
    /// Make it a zero cluster.
    Zero(Keep),
    /// Make it unallocated.
    Drop,
}

/// Decides.
pub fn decide(question: &Question) -> Action {
    match question.content {
        Content::Data => decide_data(question),
        Content::Zero { keep_allocation } if question.whole => {
            decide_whole_zero(question, keep_allocation)
        }
        Content::Zero { keep_allocation } => decide_part_zero(question, keep_allocation),
    }
}

fn decide_data(question: &Question) -> Action {
    match question.entry {
        L2Entry::Data(cell) if cell.copied => Action::InPlace(cell.offset),
        L2Entry::Zero { kept: Some(cell) } if cell.copied => Action::Fill(cell.offset),
        _ if question.whole => Action::Allocate(Rest::Zero),
        L2Entry::Data(cell) => Action::Allocate(Rest::Host(cell.offset)),
        L2Entry::Unallocated if question.data_below => Action::Allocate(Rest::Below),
        L2Entry::Unallocated | L2Entry::Zero { .. } => Action::Allocate(Rest::Zero),
        L2Entry::Compressed(cell) => Action::Allocate(Rest::Compressed(cell)),
    }
}

fn decide_part_zero(question: &Question, keep_allocation: bool) -> Action {
    match question.entry {
        L2Entry::Data(cell) if cell.copied => Action::InPlace(cell.offset),
        L2Entry::Data(cell) => Action::Allocate(Rest::Host(cell.offset)),
        L2Entry::Unallocated if question.data_below => Action::Allocate(Rest::Below),
        // The whole cluster reads as zero already, so that a part of it is a question of allocation only.
        L2Entry::Unallocated | L2Entry::Zero { kept: None } if keep_allocation => {
            allocate_zero(question)
        }
        L2Entry::Unallocated | L2Entry::Zero { .. } => Action::Nothing,
        L2Entry::Compressed(cell) => Action::Allocate(Rest::Compressed(cell)),
    }
}

fn decide_whole_zero(question: &Question, keep_allocation: bool) -> Action {
    if keep_allocation {
        return match question.entry {
            L2Entry::Zero { kept: Some(_) } => Action::Nothing,
            L2Entry::Data(cell) if cell.copied && question.has_zero_flag => {
                Action::Zero(Keep::Own(cell.offset))
            }
            L2Entry::Data(cell) if cell.copied => Action::InPlace(cell.offset),
            _ => allocate_zero(question),
        };
    }
    match question.entry {
        L2Entry::Unallocated if !question.data_below => Action::Nothing,
        L2Entry::Zero { kept: None } => Action::Nothing,
        _ if !question.data_below => Action::Drop,
        _ if question.has_zero_flag => Action::Zero(Keep::Nothing),
        L2Entry::Data(cell) if cell.copied => Action::InPlace(cell.offset),
        _ => Action::Allocate(Rest::Zero),
    }
}

/// An allocated cluster that reads as zero: by its flag, or by real zeroes where there is no flag.
fn allocate_zero(question: &Question) -> Action {
    if question.has_zero_flag {
        Action::Zero(Keep::New)
    } else {
        Action::Allocate(Rest::Zero)
    }
}

/// The host cluster of `old` that an entry changed by `action` no longer refers to.
pub fn released(old: &L2Entry, action: &Action) -> Option<HostCell> {
    let cell = match *old {
        L2Entry::Data(cell) | L2Entry::Zero { kept: Some(cell) } => cell,
        L2Entry::Unallocated | L2Entry::Zero { kept: None } | L2Entry::Compressed(_) => {
            return None;
        }
    };
    match *action {
        Action::Nothing | Action::InPlace(_) | Action::Fill(_) | Action::Zero(Keep::Own(_)) => None,
        Action::Allocate(_)
        | Action::Compress
        | Action::Drop
        | Action::Zero(Keep::Nothing | Keep::New) => Some(cell),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: HostOffset = HostOffset(1 << 16);

    fn entries() -> [L2Entry; 7] {
        let own = HostCell {
            offset: HERE,
            copied: true,
        };
        let shared = HostCell {
            offset: HERE,
            copied: false,
        };
        [
            L2Entry::Unallocated,
            L2Entry::Zero { kept: None },
            L2Entry::Zero { kept: Some(own) },
            L2Entry::Zero { kept: Some(shared) },
            L2Entry::Data(own),
            L2Entry::Data(shared),
            L2Entry::Compressed(CompressedCell {
                offset: HERE,
                len_bytes: 512,
            }),
        ]
    }

    /// Over the whole table of questions: the answer reads as it must and never touches a shared cluster.
    #[test]
    fn every_answer_keeps_the_meaning() {
        for entry in entries() {
            for (whole, data_below, has_zero_flag, keep_allocation, data) in bools() {
                let content = if data {
                    Content::Data
                } else {
                    Content::Zero { keep_allocation }
                };
                let question = Question {
                    entry,
                    whole,
                    content,
                    data_below,
                    has_zero_flag,
                };
                check(&question, &decide(&question));
            }
        }
    }

    fn bools() -> impl Iterator<Item = (bool, bool, bool, bool, bool)> {
        (0..32).map(|bits| {
            (
                bits & 1 != 0,
                bits & 2 != 0,
                bits & 4 != 0,
                bits & 8 != 0,
                bits & 16 != 0,
            )
        })
    }

    fn check(question: &Question, action: &Action) {
        let context = format!("{question:?} {action:?}");
        let shared = match question.entry {
            L2Entry::Data(cell) | L2Entry::Zero { kept: Some(cell) } => !cell.copied,
            _ => false,
        };
        let reads_zero = match question.entry {
            L2Entry::Unallocated => !question.data_below,
            L2Entry::Zero { .. } => true,
            _ => false,
        };
        match action {
            Action::Nothing => {
                assert!(reads_zero && question.content != Content::Data, "{context}");
            }
            Action::InPlace(_) => {
                assert!(
                    matches!(question.entry, L2Entry::Data(_)) && !shared,
                    "{context}"
                );
            }
            Action::Fill(_) => assert!(reads_zero && !shared, "{context}"),
            Action::Allocate(rest) => {
                let expected = match question.entry {
                    _ if question.whole => Rest::Zero,
                    L2Entry::Data(cell) => Rest::Host(cell.offset),
                    L2Entry::Compressed(cell) => Rest::Compressed(cell),
                    L2Entry::Unallocated if question.data_below => Rest::Below,
                    _ => Rest::Zero,
                };
                assert_eq!(*rest, expected, "{context}");
            }
            Action::Zero(keep) => {
                assert!(
                    question.has_zero_flag && question.content != Content::Data,
                    "{context}"
                );
                assert!(question.whole || reads_zero, "{context}");
                assert!(!matches!(keep, Keep::Own(_)) || !shared, "{context}");
            }
            Action::Compress => panic!("{context}"),
            Action::Drop => assert!(question.whole && !question.data_below, "{context}"),
        }
    }
}
