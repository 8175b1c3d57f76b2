//! The life of backups.

use super::*;

suite!(
    a_full_then_an_increment,
    a_second_start_is_refused,
    a_refused_start_leaves_nothing,
    completing_is_idempotent,
    unknown_ids_are_not_found,
    a_failure_ends_a_backup_once,
    a_failed_backup_is_never_a_parent,
    parents_stay_in_their_repository,
    a_new_full_starts_a_new_chain,
    an_added_disk_stands_alone,
    a_parent_that_goes_away_is_noticed,
    contradictions_are_refused,
    lists_are_filtered_by_all_conditions,
    progress_never_goes_back,
    intents_are_found_again,
    change_ids_follow_the_declared_parent,
    two_vms_of_one_name_do_not_share_a_context,
    odd_names_work,
);

async fn a_full_then_an_increment(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let begin = planned(&catalog, &vm, RequestedType::Auto, at(1))
        .await
        .expect("a plan");
    let backup = catalog.begin_backup(&begin, at(1)).await.expect("a backup");
    assert_eq!(
        (backup.backup_type, backup.type_reason.as_deref()),
        (BackupType::Full, Some("no_previous_backup"))
    );
    assert_eq!(
        (backup.status, backup.intent),
        (JobStatus::Running, Some(Intent::Creating))
    );
    assert_eq!(
        (backup.total_bytes, backup.disks_count, backup.is_point()),
        (2 << 30, 2, true)
    );
    assert_eq!(
        (backup.created_at, backup.started_at, backup.completed_at),
        (at(1), Some(at(1)), None)
    );
    let statuses = async || {
        let disks = catalog.backup_disks(&backup.id).await.expect("disks");
        disks.iter().map(|disk| disk.status).collect::<Vec<_>>()
    };
    assert_eq!(statuses().await, [DiskStatus::Pending; 2]);
    assert_eq!(
        kind(
            catalog
                .complete_disk(&completion(&backup.id, 0, "a/1"), counters(1), at(2))
                .await
        ),
        ErrorKind::Conflict
    );
    catalog.backup_ready(&backup.id).await.expect("ready");
    assert_eq!(statuses().await, [DiskStatus::Running; 2]);
    assert_eq!(catalog.backup(&backup.id).await.expect("it").intent, None);

    let first = catalog
        .complete_disk(&completion(&backup.id, 0, "a/1"), counters(700), at(3))
        .await
        .expect("done");
    assert_eq!(
        first,
        DiskCompletion {
            repeated: false,
            remaining: 1
        }
    );
    assert_eq!(
        kind(catalog.finish_backup(&backup.id, at(3)).await),
        ErrorKind::Conflict
    );
    let last = catalog
        .complete_disk(&completion(&backup.id, 1, "b/1"), counters(300), at(4))
        .await
        .expect("done");
    assert_eq!(
        last,
        DiskCompletion {
            repeated: false,
            remaining: 0
        }
    );
    catalog
        .set_intent(&backup.id, Some(Intent::Publishing))
        .await
        .expect("intended");
    assert!(
        catalog
            .finish_backup(&backup.id, at(5))
            .await
            .expect("finished")
    );
    assert!(
        !catalog
            .finish_backup(&backup.id, at(6))
            .await
            .expect("finished before")
    );

    let full = catalog.backup(&backup.id).await.expect("it");
    assert_eq!(
        (full.status, full.intent, full.completed_at),
        (JobStatus::Completed, None, Some(at(5)))
    );
    assert_eq!(
        (
            full.bytes_transferred,
            full.progress_percent,
            full.current_phase.as_str()
        ),
        (1000, 100.0, "completed")
    );
    assert_eq!(
        context_counts(&catalog, &full).await,
        (1, 1, 0, Some(full.id.to_string()))
    );

    let increment = done(&catalog, &vm, RequestedType::Incremental, "c", at(10)).await;
    assert_eq!(
        (increment.backup_type, increment.type_reason),
        (BackupType::Incremental, None)
    );
    let disks = catalog.backup_disks(&increment.id).await.expect("disks");
    let bases: Vec<_> = disks
        .iter()
        .map(|disk| disk.base_change_id.as_ref().expect("a base").as_str())
        .collect();
    assert_eq!(bases, ["a/1", "b/1"]);
    for disk in &disks {
        assert_eq!(disk.parent_backup_id.as_ref(), Some(&full.id));
        assert_eq!(disk.chain_depth, Some(2));
        assert_eq!(
            (
                disk.received_bytes,
                disk.zero_bytes,
                disk.equal_bytes,
                disk.stored_bytes
            ),
            (1000, 10, 20, 500)
        );
    }
    let points = catalog
        .chain(&vm.context_id, DiskIndex::new(1), None)
        .await
        .expect("a chain");
    let ids: Vec<_> = points.iter().map(|point| &point.backup.id).collect();
    assert_eq!(ids, [&full.id, &increment.id]);
    let layers = catalog
        .layers(&increment.id, DiskIndex::new(1))
        .await
        .expect("layers");
    assert_eq!(layers.iter().rev().cloned().collect::<Vec<_>>(), points);
    assert_eq!(
        chain_row(&catalog, 1).await,
        (full.id.to_string(), increment.id.to_string(), 2, 650)
    );
}

/// `full, latest, backups, bytes` of the chain row of a disk.
async fn chain_row(catalog: &Catalog, disk: i64) -> (String, String, i64, i64) {
    sqlx::query_as("SELECT full_backup_id, latest_backup_id, total_backups, total_size_bytes FROM backup_chains WHERE disk_id = ?")
        .bind(disk)
        .fetch_one(catalog.reader())
        .await
        .expect("a chain")
}

async fn a_second_start_is_refused(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    with_repository(&catalog, "second").await;
    let running = started(&catalog, &vm, RequestedType::Full, at(1)).await;
    for repository in ["local", "second"] {
        let begin = planned_into(&catalog, &vm, RequestedType::Full, repository, at(1))
            .await
            .expect("a plan");
        assert_ne!(begin.id, running.id, "an id is free even within one second");
        let error = catalog
            .begin_backup(&begin, at(1))
            .await
            .expect_err("refused");
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(error.details.contains(running.id.as_str()), "{error}");
    }
    assert_eq!(
        (
            count(&catalog, "backup_jobs").await,
            count(&catalog, "vm_backup_contexts").await
        ),
        (1, 1)
    );
    catalog
        .fail_backup(&running.id, Ending::Cancelled, "enough", at(2))
        .await
        .expect("cancelled");
    started(&catalog, &vm, RequestedType::Full, at(2)).await;
}

async fn a_refused_start_leaves_nothing(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let kept = done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    let undone = started(&catalog, &vm, RequestedType::Incremental, at(2)).await;
    catalog
        .delete_backup_rows(&undone.id)
        .await
        .expect("undone");
    catalog
        .delete_backup_rows(&undone.id)
        .await
        .expect("undone before");
    assert_eq!(kind(catalog.backup(&undone.id).await), ErrorKind::NotFound);
    assert_eq!(
        (
            count(&catalog, "backup_jobs").await,
            count(&catalog, "backup_disks").await
        ),
        (1, 2)
    );
    assert_eq!(
        context_counts(&catalog, &kept).await,
        (1, 1, 0, Some(kept.id.to_string()))
    );

    let failed = started(&catalog, &vm, RequestedType::Incremental, at(3)).await;
    catalog
        .fail_backup(&failed.id, Ending::Failed, "node refused", at(3))
        .await
        .expect("failed");
    catalog
        .delete_backup_rows(&failed.id)
        .await
        .expect("undone");
    assert_eq!(
        context_counts(&catalog, &kept).await,
        (1, 1, 0, Some(kept.id.to_string()))
    );
    assert_eq!(
        kind(catalog.delete_backup_rows(&kept.id).await),
        ErrorKind::Conflict
    );
}

async fn completing_is_idempotent(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let backup = started(&catalog, &vm, RequestedType::Full, at(1)).await;
    let request = completion(&backup.id, 0, "a/1");
    catalog
        .complete_disk(&request, counters(700), at(2))
        .await
        .expect("done");
    let before = catalog.backup_disks(&backup.id).await.expect("disks");
    let again = catalog
        .complete_disk(&request, counters(0), at(3))
        .await
        .expect("done before");
    assert_eq!(
        again,
        DiskCompletion {
            repeated: true,
            remaining: 1
        }
    );
    assert_eq!(
        catalog.backup_disks(&backup.id).await.expect("disks"),
        before
    );
    assert_eq!(
        kind(
            catalog
                .complete_disk(&completion(&backup.id, 0, "a/2"), counters(1), at(3))
                .await
        ),
        ErrorKind::Conflict
    );
    catalog
        .complete_disk(&completion(&backup.id, 1, "b/1"), counters(300), at(4))
        .await
        .expect("done");
    catalog
        .finish_backup(&backup.id, at(5))
        .await
        .expect("finished");
    let late = catalog
        .complete_disk(&request, counters(0), at(6))
        .await
        .expect("done before");
    assert_eq!(
        late,
        DiskCompletion {
            repeated: true,
            remaining: 0
        }
    );
}

async fn unknown_ids_are_not_found(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let backup = started(&catalog, &vm, RequestedType::Full, at(1)).await;
    let nobody = BackupId::parse("backup-nobody-1").expect("an id");
    for request in [
        completion(&nobody, 0, "a/1"),
        completion(&backup.id, 7, "a/1"),
    ] {
        let error = catalog
            .complete_disk(&request, counters(1), at(2))
            .await
            .expect_err("unknown");
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::NotFound, "backup job not found")
        );
        assert!(
            error.details.starts_with("backup disk not found: job_id="),
            "{error}"
        );
    }
    assert_eq!(kind(catalog.backup(&nobody).await), ErrorKind::NotFound);
    assert_eq!(
        kind(catalog.backup_disks(&nobody).await),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(catalog.backup_ready(&nobody).await),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(catalog.set_intent(&nobody, None).await),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(catalog.finish_backup(&nobody, at(2)).await),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(
            catalog
                .fail_backup(&nobody, Ending::Failed, "x", at(2))
                .await
        ),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(catalog.layers(&backup.id, DiskIndex::new(7)).await),
        ErrorKind::NotFound
    );
    assert!(
        catalog
            .chain(&vm.context_id, DiskIndex::new(0), None)
            .await
            .expect("no chain")
            .is_empty()
    );
}

async fn a_failure_ends_a_backup_once(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let backup = started(&catalog, &vm, RequestedType::Full, at(1)).await;
    catalog
        .complete_disk(&completion(&backup.id, 0, "a/1"), counters(700), at(2))
        .await
        .expect("done");
    let reason = "ü".repeat(5000);
    assert!(
        catalog
            .fail_backup(&backup.id, Ending::Failed, &reason, at(3))
            .await
            .expect("failed")
    );
    assert!(
        !catalog
            .fail_backup(&backup.id, Ending::Cancelled, "late", at(4))
            .await
            .expect("failed before")
    );
    let failed = catalog.backup(&backup.id).await.expect("it");
    assert_eq!(
        (failed.status, failed.completed_at),
        (JobStatus::Failed, Some(at(3)))
    );
    assert_eq!(failed.error_message.map(|text| text.len()), Some(4096));
    let disks = catalog.backup_disks(&backup.id).await.expect("disks");
    assert_eq!(
        [disks[0].status, disks[1].status],
        [DiskStatus::Completed, DiskStatus::Failed]
    );
    assert!(disks[0].error_message.is_none() && disks[1].error_message.is_some());
    assert_eq!(context_counts(&catalog, &backup).await, (1, 0, 1, None));
    for late in [
        completion(&backup.id, 0, "a/1"),
        completion(&backup.id, 1, "b/1"),
    ] {
        assert_eq!(
            kind(catalog.complete_disk(&late, counters(1), at(5)).await),
            ErrorKind::Conflict
        );
    }
    assert_eq!(
        kind(catalog.finish_backup(&backup.id, at(5)).await),
        ErrorKind::Conflict
    );
    assert_eq!(
        kind(catalog.backup_ready(&backup.id).await),
        ErrorKind::Conflict
    );

    let good = done(&catalog, &vm, RequestedType::Full, "a", at(6)).await;
    assert!(
        !catalog
            .fail_backup(&good.id, Ending::Failed, "late", at(7))
            .await
            .expect("has ended")
    );
    assert_eq!(catalog.backup(&good.id).await.expect("it"), good);
}

async fn a_failed_backup_is_never_a_parent(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let failed = started(&catalog, &vm, RequestedType::Full, at(1)).await;
    for n in 0..2 {
        catalog
            .complete_disk(&completion(&failed.id, n, "x/1"), counters(1), at(1))
            .await
            .expect("done");
    }
    catalog
        .fail_backup(&failed.id, Ending::Failed, "could not publish", at(1))
        .await
        .expect("failed");
    assert_eq!(
        kind(planned(&catalog, &vm, RequestedType::Incremental, at(2)).await),
        ErrorKind::NoParent
    );

    let full = done(&catalog, &vm, RequestedType::Full, "a", at(3)).await;
    let cancelled = started(&catalog, &vm, RequestedType::Incremental, at(4)).await;
    catalog
        .complete_disk(&completion(&cancelled.id, 0, "x/2"), counters(1), at(4))
        .await
        .expect("done");
    catalog
        .fail_backup(&cancelled.id, Ending::Cancelled, "asked", at(5))
        .await
        .expect("cancelled");
    let begin = planned(&catalog, &vm, RequestedType::Incremental, at(6))
        .await
        .expect("a plan");
    for disk in begin.disks {
        assert_eq!(disk.parent.expect("a parent").backup_id, full.id);
    }
    // A point that is being removed is no parent either.
    catalog
        .set_intent(&full.id, Some(Intent::Deleting))
        .await
        .expect("intended");
    assert_eq!(
        kind(planned(&catalog, &vm, RequestedType::Incremental, at(7)).await),
        ErrorKind::NoParent
    );
}

async fn parents_stay_in_their_repository(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    with_repository(&catalog, "second").await;
    done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    assert_eq!(
        kind(planned_into(&catalog, &vm, RequestedType::Incremental, "second", at(2)).await),
        ErrorKind::NoParent
    );
    let unknown = planned_into(&catalog, &vm, RequestedType::Full, "nowhere", at(2))
        .await
        .expect("a plan");
    assert_eq!(
        kind(catalog.begin_backup(&unknown, at(2)).await),
        ErrorKind::NotFound
    );
    execute(
        &catalog,
        "UPDATE backup_repositories SET enabled = 0 WHERE id = 'second'",
    )
    .await
    .expect("disabled");
    let disabled = planned_into(&catalog, &vm, RequestedType::Full, "second", at(2))
        .await
        .expect("a plan");
    assert_eq!(
        kind(catalog.begin_backup(&disabled, at(2)).await),
        ErrorKind::Conflict
    );
}

async fn a_new_full_starts_a_new_chain(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    // All within one second, as a quick test run has it.
    for (n, requested) in [
        RequestedType::Full,
        RequestedType::Incremental,
        RequestedType::Full,
    ]
    .into_iter()
    .enumerate()
    {
        done(&catalog, &vm, requested, &format!("p{n}"), at(1)).await;
    }
    let tip = done(&catalog, &vm, RequestedType::Incremental, "p3", at(1)).await;
    let points = catalog
        .chain(&vm.context_id, DiskIndex::new(0), Some(&repo("local")))
        .await
        .expect("a chain");
    assert_eq!(points.len(), 2);
    assert_eq!(points[1].backup.id, tip.id);
    assert_eq!(points[1].disk.base_change_id, Some(change("p2-0")));
    let (full, latest, backups, bytes) = chain_row(&catalog, 0).await;
    assert_eq!(
        (full, latest, backups, bytes),
        (points[0].backup.id.to_string(), tip.id.to_string(), 2, 1000)
    );
    assert_eq!(count(&catalog, "backup_chains").await, 2);
}

async fn an_added_disk_stands_alone(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    catalog
        .register_vm(&new_vm("web", &[1999, 2001]), at(2))
        .await
        .expect("a VM");
    let backup = done(&catalog, &vm, RequestedType::Incremental, "b", at(3)).await;
    let disks = catalog.backup_disks(&backup.id).await.expect("disks");
    assert_eq!(
        (disks[0].parent_disk_id, disks[0].parent_reason.as_deref()),
        (None, Some("disk_added"))
    );
    assert_eq!(
        (disks[0].chain_depth, disks[1].chain_depth),
        (Some(1), Some(2))
    );
    assert_eq!(disks[1].base_change_id, Some(change("a-1")));
}

async fn a_parent_that_goes_away_is_noticed(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let full = done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    let begin = planned(&catalog, &vm, RequestedType::Incremental, at(2))
        .await
        .expect("a plan");
    catalog
        .set_intent(&full.id, Some(Intent::Deleting))
        .await
        .expect("intended");
    assert_eq!(
        kind(catalog.begin_backup(&begin, at(2)).await),
        ErrorKind::Conflict
    );
    catalog.set_intent(&full.id, None).await.expect("withdrawn");
    let mut forged = begin.clone();
    forged.disks[0]
        .parent
        .as_mut()
        .expect("a parent")
        .base_change_id = change("x/9");
    assert_eq!(
        kind(catalog.begin_backup(&forged, at(2)).await),
        ErrorKind::Conflict
    );
    let mut swapped = begin.clone();
    swapped.disks[0].parent = begin.disks[1].parent.clone();
    assert_eq!(
        kind(catalog.begin_backup(&swapped, at(2)).await),
        ErrorKind::Conflict
    );
    catalog.begin_backup(&begin, at(2)).await.expect("a backup");
}

async fn contradictions_are_refused(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    let good = planned(&catalog, &vm, RequestedType::Incremental, at(2))
        .await
        .expect("a plan");
    let with = |change: &dyn Fn(&mut BeginBackup)| {
        let mut changed = good.clone();
        change(&mut changed);
        changed
    };
    let bad = [
        with(&|backup| backup.disks.clear()),
        with(&|backup| backup.backup_type = BackupType::Full),
        with(&|backup| backup.disks[1].disk_index = DiskIndex::new(0)),
        with(&|backup| backup.disks[1].device_key = backup.disks[0].device_key),
        with(&|backup| backup.disks[0].capacity_bytes -= 1),
        with(&|backup| backup.disks[0].image_path.clear()),
        with(&|backup| backup.disks[0].image_path = "p".repeat(513)),
    ];
    for backup in bad {
        assert_eq!(
            kind(catalog.begin_backup(&backup, at(2)).await),
            ErrorKind::Invalid,
            "{backup:?}"
        );
    }
    let elsewhere = PolicyId::parse("policy-of-elsewhere").expect("an id");
    let unknown_policy = with(&|backup| backup.policy_id = Some(elsewhere.clone()));
    let before = count(&catalog, "backup_jobs").await;
    let refused = catalog.begin_backup(&unknown_policy, at(2)).await;
    assert_eq!(kind(refused), ErrorKind::NotFound);
    assert_eq!(count(&catalog, "backup_jobs").await, before);
}

async fn lists_are_filtered_by_all_conditions(catalog: Catalog) {
    let web = with_web(&catalog).await;
    let (db, _) = catalog
        .register_vm(&new_vm("db-disk7-x", &[2000]), at(0))
        .await
        .expect("a VM");
    let first = done(&catalog, &web, RequestedType::Full, "a", at(1)).await;
    let second = done(&catalog, &web, RequestedType::Incremental, "b", at(2)).await;
    let third = started(&catalog, &db, RequestedType::Full, at(3)).await;
    let list = async |filter: BackupFilter| {
        let found = catalog.backups(&filter).await.expect("a list");
        found
            .into_iter()
            .map(|backup| backup.id)
            .collect::<Vec<_>>()
    };
    let text = |text: &str| Some(text.to_owned());
    let all = BackupFilter::default();
    assert_eq!(
        list(all.clone()).await,
        [third.id.clone(), second.id.clone(), first.id.clone()]
    );
    assert_eq!(
        list(BackupFilter {
            limit: Some(1),
            offset: 1,
            ..all.clone()
        })
        .await,
        std::slice::from_ref(&second.id)
    );
    assert_eq!(
        list(BackupFilter {
            vm_name: text("db-disk7-x"),
            ..all.clone()
        })
        .await,
        std::slice::from_ref(&third.id)
    );
    assert_eq!(
        list(BackupFilter {
            vm_context_id: text(web.context_id.as_str()),
            status: text("completed"),
            backup_type: text("full"),
            ..all.clone()
        })
        .await,
        std::slice::from_ref(&first.id)
    );
    assert_eq!(
        list(BackupFilter {
            vm_name: text("web"),
            repository_id: text("elsewhere"),
            ..all.clone()
        })
        .await,
        []
    );
    assert_eq!(
        list(BackupFilter {
            status: text("nonsense"),
            ..all
        })
        .await,
        []
    );
    assert_eq!(catalog.running_jobs().await.expect("a list").len(), 1);
}

async fn progress_never_goes_back(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let backup = started(&catalog, &vm, RequestedType::Full, at(1)).await;
    let report = async |percent: f64, received_bytes: u64, heard: Option<Timestamp>| {
        let progress = Progress {
            phase: "transferring".to_owned(),
            bytes_transferred: received_bytes,
            transfer_speed_bps: 5,
            eta_seconds: 6,
            percent,
            last_telemetry_at: heard,
        };
        let disk = DiskProgress {
            disk_index: DiskIndex::new(0),
            counters: counters(received_bytes),
        };
        catalog
            .update_progress(&backup.id, &progress, &[disk])
            .await
            .expect("progress");
    };
    let shown = async || {
        let backup = catalog.backup(&backup.id).await.expect("it");
        (
            backup.progress_percent,
            backup.bytes_transferred,
            backup.current_phase,
        )
    };
    report(40.0, 500, None).await;
    assert_eq!(shown().await, (40.0, 500, "transferring".to_owned()));
    for (percent, received) in [(f64::NAN, 400), (-5.0, 300), (f64::NEG_INFINITY, 0)] {
        report(percent, received, None).await;
        assert_eq!(shown().await, (40.0, 500, "transferring".to_owned()));
    }
    let heard = async || {
        let backup = catalog.backup(&backup.id).await.expect("it");
        backup.last_telemetry_at
    };
    assert_eq!(heard().await, None, "only the client's reports count");
    report(4000.0, 600, Some(at(4))).await;
    assert_eq!(shown().await, (100.0, 600, "transferring".to_owned()));
    assert_eq!(heard().await, Some(at(4)));
    report(1.0, 600, None).await;
    assert_eq!(heard().await, Some(at(4)));
    let speed = catalog.backup(&backup.id).await.expect("it");
    assert_eq!((speed.transfer_speed_bps, speed.eta_seconds), (5, 6));

    catalog
        .complete_disk(&completion(&backup.id, 0, "a/1"), counters(700), at(5))
        .await
        .expect("done");
    report(50.0, 1, None).await;
    assert_eq!(
        catalog.backup_disks(&backup.id).await.expect("disks")[0].received_bytes,
        700,
        "a completed disk is settled"
    );
    catalog
        .fail_backup(&backup.id, Ending::Failed, "x", at(7))
        .await
        .expect("failed");
    let ended = catalog.backup(&backup.id).await.expect("it");
    report(60.0, 9000, None).await;
    assert_eq!(catalog.backup(&backup.id).await.expect("it"), ended);
}

async fn intents_are_found_again(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let full = done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    assert!(catalog.unfinished_jobs().await.expect("a list").is_empty());
    let running = started(&catalog, &vm, RequestedType::Incremental, at(2)).await;
    catalog
        .set_intent(&full.id, Some(Intent::Deleting))
        .await
        .expect("intended");
    let found = catalog.unfinished_jobs().await.expect("a list");
    let shown: Vec<_> = found
        .iter()
        .map(|job| {
            (
                &job.backup.id,
                job.backup.status,
                job.backup.intent,
                job.disks.len(),
            )
        })
        .collect();
    let expected = [
        (&full.id, JobStatus::Completed, Some(Intent::Deleting), 2),
        (&running.id, JobStatus::Running, None, 2),
    ];
    assert_eq!(shown, expected);
    catalog
        .set_intent(&running.id, Some(Intent::Publishing))
        .await
        .expect("intended");
    catalog
        .fail_backup(&running.id, Ending::Failed, "x", at(3))
        .await
        .expect("failed");
    let failed = catalog.backup(&running.id).await.expect("it");
    assert_eq!(
        (failed.status, failed.intent),
        (JobStatus::Failed, Some(Intent::Publishing)),
        "the files are still to be removed"
    );
}

async fn change_ids_follow_the_declared_parent(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    with_repository(&catalog, "second").await;
    let answer = async |disk: u32| {
        let disk = DiskIndex::new(disk);
        let facts = catalog.change_id_facts("web", disk).await.expect("facts");
        answer_change_id(&facts, disk)
            .change_id
            .map(String::from)
            .unwrap_or_default()
    };
    assert_eq!([answer(0).await, answer(1).await], ["", ""]);
    let full = started(&catalog, &vm, RequestedType::Full, at(1)).await;
    assert_eq!(
        [answer(0).await, answer(1).await],
        ["", ""],
        "a full copies everything"
    );
    for n in 0..2 {
        catalog
            .complete_disk(
                &completion(&full.id, n, &format!("a-{n}")),
                counters(1),
                at(1),
            )
            .await
            .expect("done");
    }
    catalog
        .finish_backup(&full.id, at(2))
        .await
        .expect("finished");
    assert_eq!(
        [answer(0).await, answer(1).await, answer(2).await],
        ["a-0", "a-1", ""]
    );

    // A newer point elsewhere does not change the base of an increment here.
    let elsewhere = planned_into(&catalog, &vm, RequestedType::Full, "second", at(3))
        .await
        .expect("a plan");
    catalog
        .begin_backup(&elsewhere, at(3))
        .await
        .expect("a backup");
    assert_eq!(
        answer(0).await,
        "",
        "a full copies everything, also where an older point could serve"
    );
    catalog.backup_ready(&elsewhere.id).await.expect("ready");
    for n in 0..2 {
        catalog
            .complete_disk(
                &completion(&elsewhere.id, n, &format!("z-{n}")),
                counters(1),
                at(3),
            )
            .await
            .expect("done");
    }
    catalog
        .finish_backup(&elsewhere.id, at(4))
        .await
        .expect("finished");
    assert_eq!(
        answer(0).await,
        "z-0",
        "without a running backup the latest counts"
    );

    let increment = started(&catalog, &vm, RequestedType::Incremental, at(5)).await;
    assert_eq!([answer(0).await, answer(1).await], ["a-0", "a-1"]);
    catalog
        .complete_disk(&completion(&increment.id, 0, "b-0"), counters(1), at(6))
        .await
        .expect("done");
    assert_eq!(
        [answer(0).await, answer(1).await],
        ["a-1", "a-1"],
        "the client decides for disk 1 by asking for disk 0"
    );
}

async fn two_vms_of_one_name_do_not_share_a_context(catalog: Catalog) {
    let first = with_web(&catalog).await;
    let (second, _) = catalog
        .register_vm(
            &NewVm {
                vcenter_host: "vc2".to_owned(),
                ..new_vm("web", &[2000])
            },
            at(0),
        )
        .await
        .expect("a VM");
    done(&catalog, &first, RequestedType::Full, "a", at(1)).await;
    assert_eq!(
        kind(planned(&catalog, &second, RequestedType::Incremental, at(2)).await),
        ErrorKind::NoParent
    );
    let begin = planned(&catalog, &second, RequestedType::Full, at(2))
        .await
        .expect("a plan");
    assert_eq!(
        kind(catalog.begin_backup(&begin, at(2)).await),
        ErrorKind::Conflict
    );
    let facts = catalog
        .change_id_facts("web", DiskIndex::new(0))
        .await
        .expect("facts");
    assert_eq!(
        answer_change_id(&facts, DiskIndex::new(0)),
        ChangeIdAnswer::default()
    );
}

async fn odd_names_work(catalog: Catalog) {
    with_repository(&catalog, "local").await;
    let long = "ü".repeat(255);
    for name in [
        "x-disk3-y",
        "büro server",
        "'; DROP TABLE backup_jobs; --",
        "a/b",
        long.as_str(),
    ] {
        let (vm, _) = catalog
            .register_vm(
                &NewVm {
                    vm_path: String::new(),
                    ..new_vm(name, &[2000])
                },
                at(0),
            )
            .await
            .expect("a VM");
        done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
        let increment = done(&catalog, &vm, RequestedType::Incremental, "b", at(2)).await;
        assert_eq!(increment.vm_name, name);
        assert!(BackupId::parse(increment.id.as_str()).is_ok());
    }
    assert_eq!(
        catalog
            .backups(&BackupFilter::default())
            .await
            .expect("a list")
            .len(),
        10
    );
}
