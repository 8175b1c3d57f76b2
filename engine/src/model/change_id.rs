//! What a client that asks for the change id of a disk is told: the seam where a wrong answer silently corrupts a backup.
//!
//! A legacy client is never told the type of its backup. It copies everything if the answer is empty, and otherwise only what
//! changed since the answer. So an empty answer is always safe, and any other must be the base of the image being written.

use super::{BackupType, DiskStatus, Transfer};
use crate::id::{BackupId, ChangeId, DiskIndex};

/// The answer; empty means: copy everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeIdAnswer {
    /// The position to ask changes from.
    pub change_id: Option<ChangeId>,
    /// The backup that was taken at that position.
    pub backup_id: Option<BackupId>,
}

/// A disk of a running backup, as far as the answer depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningDisk {
    /// Position among the VM's disks.
    pub disk_index: DiskIndex,
    /// Where the disk stands.
    pub status: DiskStatus,
    /// Backup and change id of the declared parent.
    pub base: Option<(BackupId, ChangeId)>,
}

/// A backup that is pending or running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningBackup {
    /// What it holds.
    pub backup_type: BackupType,
    /// Who moves the data.
    pub transfer: Transfer,
    /// Its disks, in any order.
    pub disks: Vec<RunningDisk>,
}

/// What is known about the VMs that a query names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeIdFacts {
    /// How many VMs of the inventory it can mean.
    pub vms: usize,
    /// The pending or running backups of those VMs.
    pub running: Vec<RunningBackup>,
    /// The newest completed backup of the asked disk of those VMs, with its change id.
    pub latest: Option<(BackupId, ChangeId)>,
}

/// Answers a query for `disk`.
#[must_use]
pub fn answer_change_id(facts: &ChangeIdFacts, disk: DiskIndex) -> ChangeIdAnswer {
    let base = match facts.running.as_slice() {
        [] if facts.vms > 1 => None, // two VMs of one name: either could be meant
        [] => facts.latest.clone(),
        [running] => base_of(running, disk),
        [_, _, ..] => None,
    };
    match base {
        Some((backup_id, change_id)) => ChangeIdAnswer {
            change_id: Some(change_id),
            backup_id: Some(backup_id),
        },
        None => ChangeIdAnswer::default(),
    }
}

fn base_of(running: &RunningBackup, disk: DiskIndex) -> Option<(BackupId, ChangeId)> {
    if running.backup_type == BackupType::Full {
        return None;
    }
    let exact = running
        .disks
        .iter()
        .find(|candidate| candidate.disk_index == disk);
    // A legacy client decides on full or increment for every disk by asking for disk 0, and only then asks for the right
    // one. It copies disk after disk, so the first that is not completed is the one it decides on; should it be another,
    // the identity inside the change id differs and the client copies everything.
    let asked_for_decision = running.transfer == Transfer::Node && disk.get() == 0;
    let open = running
        .disks
        .iter()
        .filter(|candidate| candidate.status != DiskStatus::Completed);
    let meant = match open.min_by_key(|candidate| candidate.disk_index) {
        Some(first_open) if asked_for_decision => Some(first_open),
        _ => exact,
    };
    meant?.base.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(n: u32) -> (BackupId, ChangeId) {
        let backup = BackupId::parse(&format!("backup-web-{n}")).expect("an id");
        (
            backup,
            ChangeId::parse(&format!("disk{n}/1")).expect("a change id"),
        )
    }

    /// A running backup with one disk per status; disk n has base n.
    fn running(backup_type: BackupType, transfer: Transfer, disks: &[DiskStatus]) -> RunningBackup {
        let disks = (0..).zip(disks).map(|(n, status)| RunningDisk {
            disk_index: DiskIndex::new(n),
            status: *status,
            base: Some(base(n)),
        });
        RunningBackup {
            backup_type,
            transfer,
            disks: disks.collect(),
        }
    }

    fn ask(facts: &ChangeIdFacts, disk: u32) -> String {
        let answer = answer_change_id(facts, DiskIndex::new(disk));
        assert_eq!(answer.change_id.is_some(), answer.backup_id.is_some());
        answer.change_id.map(String::from).unwrap_or_default()
    }

    fn one(running: RunningBackup) -> ChangeIdFacts {
        ChangeIdFacts {
            vms: 1,
            running: vec![running],
            latest: Some(base(77)),
        }
    }

    use BackupType::{Full, Incremental};
    use DiskStatus::{Completed, Failed, Pending, Running};
    use Transfer::{Direct, Node};

    #[test]
    fn a_running_full_is_told_to_copy_everything() {
        for transfer in [Node, Direct] {
            let facts = one(running(Full, transfer, &[Running, Running]));
            assert_eq!(
                [ask(&facts, 0), ask(&facts, 1), ask(&facts, 2)],
                ["", "", ""]
            );
        }
    }

    #[test]
    fn a_running_increment_answers_its_declared_base_never_the_latest() {
        let facts = one(running(Incremental, Direct, &[Completed, Running, Running]));
        assert_eq!(
            [
                ask(&facts, 0),
                ask(&facts, 1),
                ask(&facts, 2),
                ask(&facts, 3)
            ],
            ["disk0/1", "disk1/1", "disk2/1", ""]
        );
    }

    #[test]
    fn disk_0_of_a_node_transfer_means_the_first_open_disk() {
        let cases: [(&[DiskStatus], &str); 5] = [
            (&[Running, Running, Running], "disk0/1"),
            (&[Completed, Running, Running], "disk1/1"),
            (&[Completed, Completed, Pending], "disk2/1"),
            (&[Completed, Failed, Running], "disk1/1"),
            (&[Completed, Completed, Completed], "disk0/1"),
        ];
        for (disks, expected) in cases {
            let facts = one(running(Incremental, Node, disks));
            assert_eq!(ask(&facts, 0), expected, "{disks:?}");
            assert_eq!(ask(&facts, 2), "disk2/1", "other disks are exact");
        }
    }

    #[test]
    fn a_disk_that_stands_alone_is_copied_whole() {
        let mut backup = running(Incremental, Node, &[Completed, Running]);
        backup.disks[1].base = None;
        let facts = one(backup);
        assert_eq!([ask(&facts, 0), ask(&facts, 1)], ["", ""]);
    }

    #[test]
    fn without_a_running_backup_the_latest_counts() {
        let facts = ChangeIdFacts {
            vms: 1,
            running: Vec::new(),
            latest: Some(base(4)),
        };
        assert_eq!(ask(&facts, 0), "disk4/1");
        assert_eq!(ask(&ChangeIdFacts::default(), 0), "");
    }

    #[test]
    fn an_ambiguous_name_is_told_to_copy_everything() {
        let two = running(Incremental, Node, &[Running]);
        let facts = ChangeIdFacts {
            vms: 2,
            running: vec![two.clone(), two.clone()],
            latest: Some(base(4)),
        };
        assert_eq!(ask(&facts, 0), "");
        let facts = ChangeIdFacts {
            vms: 2,
            running: Vec::new(),
            latest: Some(base(4)),
        };
        assert_eq!(ask(&facts, 0), "");
        let facts = ChangeIdFacts {
            vms: 2,
            running: vec![two],
            latest: Some(base(4)),
        };
        assert_eq!(ask(&facts, 0), "disk0/1", "the one that runs is meant");
    }
}
