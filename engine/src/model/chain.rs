//! Which image each disk of a new backup stands on: declared once, when the backup starts.

use super::{BackupType, RequestedType, words};
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind};
use crate::id::{BackupDiskId, BackupId, ChangeId, DeviceKey, DiskIndex};
use crate::limits::CHAIN_DEPTH_MAX;

/// Why a backup, or one of its disks, holds more than was asked for. Stable words: on the row, in the API, the log and
/// the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FullReason {
    /// This VM has no completed backup in this repository.
    NoPreviousBackup,
    /// The disk is in no completed backup of this VM in this repository.
    DiskAdded,
    /// The disk is smaller than its newest image; an overlay must not be smaller than what it stands on.
    DiskShrunk,
    /// The disk's completed images carry no change id to start from.
    NoChangeId,
    /// The chain has as many layers as a chain may have.
    ChainTooLong,
    /// Several of the above, disk by disk.
    NoDiskHasParent,
}
words!(
    FullReason, "reason",
    NoPreviousBackup => "no_previous_backup", DiskAdded => "disk_added", DiskShrunk => "disk_shrunk",
    NoChangeId => "no_change_id", ChainTooLong => "chain_too_long", NoDiskHasParent => "no_disk_has_parent",
);

/// A disk that a backup is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedDisk {
    /// Position among the VM's disks.
    pub disk_index: DiskIndex,
    /// The hypervisor's key of the disk: what it is recognised by. The position changes when another disk is removed.
    pub device_key: DeviceKey,
    /// Its size in bytes.
    pub capacity_bytes: u64,
}

/// A disk of an earlier backup in the same context. The catalog offers only completed disks of completed backups whose
/// image is known; rows that a legacy hub made per disk are not among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentCandidate {
    /// The disk's id.
    pub disk_id: BackupDiskId,
    /// The backup it belongs to.
    pub backup_id: BackupId,
    /// Position among the VM's disks at that time.
    pub disk_index: DiskIndex,
    /// The hypervisor's key of the disk.
    pub device_key: DeviceKey,
    /// Its size in bytes.
    pub capacity_bytes: u64,
    /// The position to ask changes from.
    pub change_id: Option<ChangeId>,
    /// The image.
    pub image_path: String,
    /// Layers of its chain, itself included.
    pub chain_depth: u32,
    /// When the backup was completed.
    pub completed_at: Timestamp,
}

/// What a disk of a new backup stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredParent {
    /// The disk below.
    pub disk_id: BackupDiskId,
    /// The backup it belongs to.
    pub backup_id: BackupId,
    /// Its change id: what the node asks changes from.
    pub base_change_id: ChangeId,
    /// Its image.
    pub image_path: String,
    /// Its size in bytes; at most the size of the new disk.
    pub capacity_bytes: u64,
    /// Layers of the new disk's chain, the new image included; at least 2.
    pub chain_depth: u32,
}

/// One disk of a backup that was decided on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedDisk {
    /// The disk.
    pub disk: WantedDisk,
    /// What it stands on; `None` makes an image that stands alone.
    pub parent: Option<DeclaredParent>,
    /// Why it stands alone in an increment.
    pub reason: Option<FullReason>,
}

/// What a backup was decided to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupPlan {
    /// What it holds.
    pub backup_type: BackupType,
    /// Why it is a full although an increment was asked for, or would have been taken.
    pub reason: Option<FullReason>,
    /// Every disk, in the order given.
    pub disks: Vec<PlannedDisk>,
}

/// Decides what a backup is and what each of its disks stands on.
///
/// An increment takes, per disk, the newest candidate with the same device key. A disk without one stands alone, with a
/// reason; so does the whole backup if no disk has one: that is a full for [`RequestedType::Auto`], and for
/// [`RequestedType::Incremental`] only where a limit of ours is the cause.
///
/// # Errors
/// [`NoParent`](ErrorKind::NoParent) if an increment is asked for and no disk has a parent.
pub fn plan_backup(
    requested: RequestedType,
    disks: &[WantedDisk],
    candidates: &[ParentCandidate],
) -> Result<BackupPlan, Error> {
    if requested == RequestedType::Full {
        return Ok(alone(disks, None));
    }
    let planned: Vec<PlannedDisk> = disks
        .iter()
        .map(|disk| plan_disk(*disk, candidates))
        .collect();
    if planned.iter().any(|disk| disk.parent.is_some()) {
        return Ok(BackupPlan {
            backup_type: BackupType::Incremental,
            reason: None,
            disks: planned,
        });
    }
    let reason = common_reason(&planned, candidates);
    if requested == RequestedType::Incremental && reason != FullReason::ChainTooLong {
        return Err(Error::new(
            ErrorKind::NoParent,
            "no previous backup found",
            format!("full backup required before incremental reason={reason}"),
        ));
    }
    Ok(alone(disks, Some(reason)))
}

/// A backup whose disks all stand alone.
fn alone(disks: &[WantedDisk], reason: Option<FullReason>) -> BackupPlan {
    let disks = disks.iter().map(|disk| PlannedDisk {
        disk: *disk,
        parent: None,
        reason: None,
    });
    BackupPlan {
        backup_type: BackupType::Full,
        reason,
        disks: disks.collect(),
    }
}

fn plan_disk(disk: WantedDisk, candidates: &[ParentCandidate]) -> PlannedDisk {
    let parent = find_parent(disk, candidates);
    let reason = parent.as_ref().err().copied();
    PlannedDisk {
        disk,
        parent: parent.ok(),
        reason,
    }
}

fn find_parent(
    disk: WantedDisk,
    candidates: &[ParentCandidate],
) -> Result<DeclaredParent, FullReason> {
    let newest_first = |a: &&ParentCandidate, b: &&ParentCandidate| {
        (b.completed_at, b.disk_id).cmp(&(a.completed_at, a.disk_id))
    };
    let mut same_disk: Vec<_> = candidates
        .iter()
        .filter(|c| c.device_key == disk.device_key)
        .collect();
    same_disk.sort_by(newest_first);
    if same_disk.is_empty() {
        let none_at_all = candidates.is_empty();
        return Err(if none_at_all {
            FullReason::NoPreviousBackup
        } else {
            FullReason::DiskAdded
        });
    }
    let usable = same_disk
        .into_iter()
        .find_map(|c| c.change_id.as_ref().map(|change_id| (c, change_id)));
    let Some((parent, change_id)) = usable else {
        return Err(FullReason::NoChangeId);
    };
    if parent.capacity_bytes > disk.capacity_bytes {
        return Err(FullReason::DiskShrunk);
    }
    let chain_depth = parent.chain_depth.saturating_add(1);
    if chain_depth > CHAIN_DEPTH_MAX {
        return Err(FullReason::ChainTooLong);
    }
    Ok(DeclaredParent {
        disk_id: parent.disk_id,
        backup_id: parent.backup_id.clone(),
        base_change_id: change_id.clone(),
        image_path: parent.image_path.clone(),
        capacity_bytes: parent.capacity_bytes,
        chain_depth,
    })
}

/// The reason of a backup without any parent: the one that all its disks share.
fn common_reason(disks: &[PlannedDisk], candidates: &[ParentCandidate]) -> FullReason {
    if candidates.is_empty() {
        return FullReason::NoPreviousBackup;
    }
    let mut reasons = disks.iter().filter_map(|disk| disk.reason);
    let first = reasons.next();
    match first {
        Some(reason) if reasons.all(|other| other == reason) => reason,
        _ => FullReason::NoDiskHasParent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(index: u32, key: u32, capacity_bytes: u64) -> WantedDisk {
        WantedDisk {
            disk_index: DiskIndex::new(index),
            device_key: DeviceKey::new(key).expect("a key"),
            capacity_bytes,
        }
    }

    /// A candidate of device `key` with row id and second `id`.
    fn candidate(id: i64, key: u32, change_id: Option<&str>) -> ParentCandidate {
        ParentCandidate {
            disk_id: BackupDiskId::new(id),
            backup_id: BackupId::parse(&format!("backup-web-{id}")).expect("an id"),
            disk_index: DiskIndex::new(key - 2000),
            device_key: DeviceKey::new(key).expect("a key"),
            capacity_bytes: 100,
            change_id: change_id.map(|text| ChangeId::parse(text).expect("a change id")),
            image_path: format!("/r/{id}.qcow2"),
            chain_depth: 1,
            completed_at: Timestamp::from_unix_timestamp(id).expect("a second"),
        }
    }

    /// `disk id -> parent's row id or reason`, in the order of the plan.
    fn summary(plan: &BackupPlan) -> Vec<String> {
        let one = |disk: &PlannedDisk| match (&disk.parent, disk.reason) {
            (Some(parent), None) => parent.disk_id.to_string(),
            (None, Some(reason)) => reason.to_string(),
            (None, None) => "alone".to_owned(),
            (Some(_), Some(_)) => "both".to_owned(),
        };
        plan.disks.iter().map(one).collect()
    }

    #[test]
    fn a_full_stands_alone_whatever_is_there() {
        let disks = [wanted(0, 2000, 100), wanted(1, 2001, 100)];
        let plan = plan_backup(
            RequestedType::Full,
            &disks,
            &[candidate(1, 2000, Some("a/1"))],
        )
        .expect("a plan");
        assert_eq!((plan.backup_type, plan.reason), (BackupType::Full, None));
        assert_eq!(summary(&plan), ["alone", "alone"]);
    }

    #[test]
    fn without_a_backup_incremental_is_refused_and_auto_is_full() {
        let disks = [wanted(0, 2000, 100)];
        let error = plan_backup(RequestedType::Incremental, &disks, &[]).expect_err("no parent");
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::NoParent, "no previous backup found")
        );
        let plan = plan_backup(RequestedType::Auto, &disks, &[]).expect("a plan");
        assert_eq!(
            (plan.backup_type, plan.reason),
            (BackupType::Full, Some(FullReason::NoPreviousBackup))
        );
    }

    #[test]
    fn the_newest_candidate_of_the_same_device_is_the_parent() {
        // Positions moved: device 2001 is gone, so device 2002 has become disk 1.
        let disks = [wanted(0, 2000, 100), wanted(1, 2002, 100)];
        let candidates = [
            candidate(2, 2000, Some("a/2")),
            candidate(5, 2002, Some("c/5")),
            candidate(4, 2001, Some("b/4")),
            candidate(3, 2000, Some("a/3")),
        ];
        for requested in [RequestedType::Incremental, RequestedType::Auto] {
            let plan = plan_backup(requested, &disks, &candidates).expect("a plan");
            assert_eq!(
                (plan.backup_type, plan.reason),
                (BackupType::Incremental, None)
            );
            assert_eq!(summary(&plan), ["3", "5"]);
            let parent = plan.disks[0].parent.as_ref().expect("a parent");
            assert_eq!(
                (parent.base_change_id.as_str(), parent.chain_depth),
                ("a/3", 2)
            );
        }
    }

    #[test]
    fn candidates_of_the_same_moment_are_told_apart_by_their_row() {
        let mut later = candidate(9, 2000, Some("a/9"));
        later.completed_at = Timestamp::from_unix_timestamp(1).expect("a second");
        let earlier = ParentCandidate {
            completed_at: later.completed_at,
            ..candidate(8, 2000, Some("a/8"))
        };
        let plan = plan_backup(
            RequestedType::Auto,
            &[wanted(0, 2000, 100)],
            &[later, earlier],
        )
        .expect("a plan");
        assert_eq!(summary(&plan), ["9"]);
    }

    #[test]
    fn a_disk_with_a_problem_stands_alone_in_an_increment() {
        let mut deep = candidate(3, 2003, Some("d/1"));
        deep.chain_depth = CHAIN_DEPTH_MAX;
        let candidates = [
            candidate(1, 2000, Some("a/1")),
            candidate(2, 2002, None),
            deep,
            candidate(4, 2004, Some("e/1")),
        ];
        let disks = [
            wanted(0, 2000, 150), // grown
            wanted(1, 2001, 100), // added
            wanted(2, 2002, 100), // no change id
            wanted(3, 2003, 100), // chain at its limit
            wanted(4, 2004, 99),  // shrunk
        ];
        let plan = plan_backup(RequestedType::Incremental, &disks, &candidates).expect("a plan");
        assert_eq!(plan.backup_type, BackupType::Incremental);
        assert_eq!(
            summary(&plan),
            [
                "1",
                "disk_added",
                "no_change_id",
                "chain_too_long",
                "disk_shrunk"
            ]
        );
    }

    #[test]
    fn a_point_without_change_id_is_passed_over_for_an_older_one() {
        let candidates = [candidate(1, 2000, Some("a/1")), candidate(2, 2000, None)];
        let plan = plan_backup(
            RequestedType::Incremental,
            &[wanted(0, 2000, 100)],
            &candidates,
        )
        .expect("a plan");
        assert_eq!(summary(&plan), ["1"]);
    }

    #[test]
    fn the_reason_of_a_full_is_the_one_its_disks_share() {
        let shrunk = [candidate(1, 2000, Some("a/1")), candidate(2, 2001, None)];
        let cases: [(&[WantedDisk], FullReason); 3] = [
            (&[wanted(0, 2000, 50)], FullReason::DiskShrunk),
            (
                &[wanted(0, 2000, 50), wanted(1, 2001, 100)],
                FullReason::NoDiskHasParent,
            ),
            (&[wanted(0, 2007, 50)], FullReason::DiskAdded),
        ];
        for (disks, reason) in cases {
            let plan = plan_backup(RequestedType::Auto, disks, &shrunk).expect("a plan");
            assert_eq!(
                (plan.backup_type, plan.reason),
                (BackupType::Full, Some(reason))
            );
            assert!(plan_backup(RequestedType::Incremental, disks, &shrunk).is_err());
        }
    }

    #[test]
    fn a_chain_at_its_limit_makes_even_a_demanded_increment_a_full() {
        let deep = ParentCandidate {
            chain_depth: CHAIN_DEPTH_MAX,
            ..candidate(1, 2000, Some("a/1"))
        };
        let plan = plan_backup(RequestedType::Incremental, &[wanted(0, 2000, 100)], &[deep])
            .expect("a plan");
        assert_eq!(
            (plan.backup_type, plan.reason),
            (BackupType::Full, Some(FullReason::ChainTooLong))
        );
    }
}
