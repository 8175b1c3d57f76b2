//! Many tasks at once.

use tokio::task::JoinSet;

use super::*;

suite!(
    exactly_one_start_wins,
    disks_complete_side_by_side,
    a_backup_ends_one_way,
    one_name_is_one_vm,
    readers_see_whole_backups,
    a_dropped_call_changes_nothing
);

async fn exactly_one_start_wins(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let (catalog, vm) = (catalog.clone(), vm.clone());
        tasks.spawn(async move {
            let begin = planned(&catalog, &vm, RequestedType::Full, at(1)).await?;
            catalog.begin_backup(&begin, at(1)).await
        });
    }
    let (won, lost): (Vec<_>, Vec<_>) = tasks.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 7));
    for refused in lost {
        assert_eq!(kind(refused), ErrorKind::Conflict);
    }
    assert_eq!(
        (
            count(&catalog, "backup_jobs").await,
            count(&catalog, "backup_disks").await
        ),
        (1, 2)
    );
}

async fn disks_complete_side_by_side(catalog: Catalog) {
    with_repository(&catalog, "local").await;
    let keys: Vec<u32> = (2000..2012).collect();
    let (vm, _) = catalog
        .register_vm(&new_vm("wide", &keys), at(0))
        .await
        .expect("a VM");
    let backup = started(&catalog, &vm, RequestedType::Full, at(1)).await;
    let mut tasks = JoinSet::new();
    for n in 0..12 {
        for _ in 0..2 {
            let (catalog, id) = (catalog.clone(), backup.id.clone());
            tasks.spawn(async move {
                catalog
                    .complete_disk(&completion(&id, n, &format!("c/{n}")), counters(5), at(2))
                    .await
            });
        }
    }
    let completions: Vec<DiskCompletion> = tasks
        .join_all()
        .await
        .into_iter()
        .map(|result| result.expect("a completion"))
        .collect();
    let mut remaining: Vec<u32> = completions
        .iter()
        .filter(|done| !done.repeated)
        .map(|done| done.remaining)
        .collect();
    remaining.sort_unstable();
    assert_eq!(
        remaining,
        (0..12).collect::<Vec<_>>(),
        "each completion is counted once, and exactly one is the last"
    );
    assert_eq!(completions.iter().filter(|done| done.repeated).count(), 12);

    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let (catalog, id) = (catalog.clone(), backup.id.clone());
        tasks.spawn(async move { catalog.finish_backup(&id, at(3)).await.expect("finished") });
    }
    assert_eq!(
        tasks
            .join_all()
            .await
            .into_iter()
            .filter(|first| *first)
            .count(),
        1
    );
    assert_eq!(context_counts(&catalog, &backup).await.1, 1);
    assert_eq!(
        catalog
            .backup(&backup.id)
            .await
            .expect("it")
            .bytes_transferred,
        60
    );
}

async fn a_backup_ends_one_way(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    for round in 1..=10 {
        let backup = started(&catalog, &vm, RequestedType::Full, at(round)).await;
        for n in 0..2 {
            catalog
                .complete_disk(&completion(&backup.id, n, "c/1"), counters(5), at(round))
                .await
                .expect("done");
        }
        let finish = tokio::spawn({
            let (catalog, id) = (catalog.clone(), backup.id.clone());
            async move { catalog.finish_backup(&id, at(round)).await.unwrap_or(false) }
        });
        let fail = tokio::spawn({
            let (catalog, id) = (catalog.clone(), backup.id.clone());
            async move {
                catalog
                    .fail_backup(&id, Ending::Cancelled, "asked", at(round))
                    .await
                    .expect("an answer")
            }
        });
        let (finished, failed) = (finish.await.expect("a task"), fail.await.expect("a task"));
        assert_ne!(finished, failed);
        let expected = if finished {
            JobStatus::Completed
        } else {
            JobStatus::Cancelled
        };
        assert_eq!(
            catalog.backup(&backup.id).await.expect("it").status,
            expected
        );
    }
    let last = &catalog
        .backups(&BackupFilter::default())
        .await
        .expect("a list")[0];
    let (total, successful, failed, _) = context_counts(&catalog, last).await;
    assert_eq!((total, successful + failed), (10, 10));
}

async fn one_name_is_one_vm(catalog: Catalog) {
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let catalog = catalog.clone();
        tasks.spawn(async move {
            catalog
                .register_vm(&new_vm("web", &[2000, 2001]), at(0))
                .await
                .expect("a VM")
        });
    }
    let registered = tasks.join_all().await;
    assert_eq!(registered.iter().filter(|(_, created)| *created).count(), 1);
    assert!(
        registered
            .iter()
            .all(|(vm, _)| vm.context_id == registered[0].0.context_id)
    );
}

async fn readers_see_whole_backups(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    let writer = tokio::spawn({
        let catalog = catalog.clone();
        async move {
            for round in 1..=20 {
                done(
                    &catalog,
                    &vm,
                    RequestedType::Auto,
                    &format!("p{round}"),
                    at(round),
                )
                .await;
            }
        }
    });
    while !writer.is_finished() {
        for backup in catalog
            .backups(&BackupFilter::default())
            .await
            .expect("a list")
        {
            assert_eq!(backup.disks_count, 2, "{backup:?}");
        }
        tokio::task::yield_now().await;
    }
    writer.await.expect("the writer");
}

async fn a_dropped_call_changes_nothing(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    for polls in 0..40 {
        let begin = planned(&catalog, &vm, RequestedType::Full, at(1))
            .await
            .expect("a plan");
        let mut call = Box::pin(catalog.begin_backup(&begin, at(1)));
        let mut ended = false;
        for _ in 0..polls {
            // Each turn lets the call get one step further; then it is dropped wherever it is.
            let turn = tokio::select! {
                biased;
                result = &mut call => Some(result),
                () = tokio::task::yield_now() => None,
            };
            if let Some(result) = turn {
                result.expect("a backup");
                ended = true;
                break;
            }
        }
        drop(call);
        // One statement: a commit that was under way may land between two.
        let (jobs, disks): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT COUNT(*) FROM backup_jobs), (SELECT COUNT(*) FROM backup_disks)",
        )
        .fetch_one(catalog.reader())
        .await
        .expect("counts");
        assert!(
            jobs == 0 && disks == 0 || jobs == 1 && disks == 2,
            "jobs={jobs} disks={disks}"
        );
        assert!(!ended || jobs == 1);
        // The writer is usable, and the rows are whole.
        catalog.delete_backup_rows(&begin.id).await.expect("undone");
    }
}
