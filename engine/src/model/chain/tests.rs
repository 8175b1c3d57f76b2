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
    let plan =
        plan_backup(RequestedType::Incremental, &[wanted(0, 2000, 100)], &[deep]).expect("a plan");
    assert_eq!(
        (plan.backup_type, plan.reason),
        (BackupType::Full, Some(FullReason::ChainTooLong))
    );
}
