//! Random histories, and what holds after each of their steps.

use proptest::prelude::*;

use super::*;

/// One step; which backup it concerns is always the newest of the VM.
#[derive(Debug, Clone)]
enum Step {
    Start(usize, RequestedType),
    Whole(usize, RequestedType),
    Complete(usize, u32),
    Finish(usize),
    Fail(usize, Ending),
    Undo(usize),
    Delete(usize),
    Disks(usize, usize),
}

const VMS: [&str; 2] = ["web", "x-disk1-y"];
const DISK_SETS: [&[u32]; 4] = [&[2000], &[2000, 2001], &[2001, 2016], &[1000, 2000]];

fn step() -> impl Strategy<Value = Step> {
    let vm = 0..VMS.len();
    let requested = prop_oneof![
        Just(RequestedType::Full),
        Just(RequestedType::Incremental),
        Just(RequestedType::Auto),
        Just(RequestedType::Auto)
    ];
    prop_oneof![
        4 => (vm.clone(), requested.clone()).prop_map(|(vm, requested)| Step::Start(vm, requested)),
        6 => (vm.clone(), requested).prop_map(|(vm, requested)| Step::Whole(vm, requested)),
        8 => (vm.clone(), 0..2u32).prop_map(|(vm, disk)| Step::Complete(vm, disk)),
        5 => vm.clone().prop_map(Step::Finish),
        1 => (vm.clone(), prop_oneof![Just(Ending::Failed), Just(Ending::Cancelled)]).prop_map(|(vm, ending)| Step::Fail(vm, ending)),
        1 => vm.clone().prop_map(Step::Undo),
        3 => vm.clone().prop_map(Step::Delete),
        1 => (vm, 0..DISK_SETS.len()).prop_map(|(vm, set)| Step::Disks(vm, set)),
    ]
}

/// The backups that were deleted: their VM, and how they had ended.
type Deleted = Vec<(String, JobStatus)>;

async fn take(catalog: &Catalog, step: &Step, n: i64, deleted: &mut Deleted) -> Result<(), Error> {
    let (Step::Start(vm, _)
    | Step::Whole(vm, _)
    | Step::Complete(vm, _)
    | Step::Finish(vm)
    | Step::Fail(vm, _)
    | Step::Undo(vm)
    | Step::Delete(vm)
    | Step::Disks(vm, _)) = step;
    let vm = catalog.vm_by_name_or_id(VMS[*vm]).await?;
    let filter = BackupFilter {
        vm_name: Some(vm.vm_name.clone()),
        limit: Some(1),
        ..BackupFilter::default()
    };
    let newest = catalog
        .backups(&filter)
        .await?
        .pop()
        .ok_or_else(|| Error::not_found("no backup yet", ""));
    match step {
        Step::Start(_, requested) => {
            let begin = planned(catalog, &vm, *requested, at(n)).await?;
            catalog.begin_backup(&begin, at(n)).await?;
            catalog.backup_ready(&begin.id).await?;
        }
        Step::Whole(_, requested) => {
            let begin = planned(catalog, &vm, *requested, at(n)).await?;
            catalog.begin_backup(&begin, at(n)).await?;
            catalog.backup_ready(&begin.id).await?;
            for disk in begin.disks {
                let index = disk.disk_index.get();
                let request = completion(&begin.id, index, &format!("{}/{index}", begin.id));
                catalog.complete_disk(&request, counters(8), at(n)).await?;
            }
            catalog.finish_backup(&begin.id, at(n)).await?;
        }
        Step::Complete(_, disk) => {
            let id = newest?.id;
            catalog
                .complete_disk(
                    &completion(&id, *disk, &format!("{id}/{disk}")),
                    counters(8),
                    at(n),
                )
                .await?;
        }
        Step::Finish(_) => drop(catalog.finish_backup(&newest?.id, at(n)).await?),
        Step::Fail(_, ending) => drop(
            catalog
                .fail_backup(&newest?.id, *ending, "asked", at(n))
                .await?,
        ),
        Step::Undo(_) => catalog.delete_backup_rows(&newest?.id).await?,
        Step::Delete(_) => {
            let backup = newest?;
            catalog.begin_deletion(&backup.id, at(n)).await?;
            catalog.finish_deletion(&backup.id, at(n)).await?;
            deleted.push((backup.vm_name, backup.status));
        }
        Step::Disks(_, set) => drop(
            catalog
                .register_vm(&new_vm(&vm.vm_name, DISK_SETS[*set]), at(n))
                .await?,
        ),
    }
    Ok(())
}

/// What must hold at any time.
async fn check(catalog: &Catalog, deleted: &Deleted) -> Result<(), TestCaseError> {
    let backups = catalog
        .backups(&BackupFilter::default())
        .await
        .expect("a list");
    for name in VMS {
        let of_vm: Vec<_> = backups
            .iter()
            .filter(|backup| backup.vm_name == name)
            .collect();
        let running = of_vm
            .iter()
            .filter(|backup| !backup.status.has_ended())
            .count();
        prop_assert!(running <= 1, "{name} has {running} running backups");
        if let Some(backup) = of_vm.first() {
            // How many ran is history: a deletion does not change it.
            let gone = deleted.iter().filter(|(vm_name, _)| vm_name == name);
            let statuses: Vec<JobStatus> = of_vm
                .iter()
                .map(|backup| backup.status)
                .chain(gone.map(|(_, status)| *status))
                .collect();
            let count = |status: JobStatus| {
                statuses.iter().filter(|other| **other == status).count() as i64
            };
            let (total, successful, failed, last) = context_counts(catalog, backup).await;
            prop_assert_eq!(total, statuses.len() as i64);
            let newest = of_vm
                .iter()
                .find(|backup| backup.status == JobStatus::Completed);
            prop_assert_eq!(last, newest.map(|backup| backup.id.to_string()));
            prop_assert_eq!(successful, count(JobStatus::Completed));
            prop_assert_eq!(
                failed,
                count(JobStatus::Failed) + count(JobStatus::Cancelled)
            );
        }
    }
    for backup in &backups {
        let disks = catalog.backup_disks(&backup.id).await.expect("disks");
        let all_done = disks
            .iter()
            .all(|disk| disk.status == DiskStatus::Completed);
        prop_assert!(backup.status != JobStatus::Completed || all_done);
        prop_assert_eq!(
            backup.backup_type == BackupType::Incremental,
            disks
                .iter()
                .any(|disk| disk.parent_disk_id.is_some() || is_orphan(disk))
        );
        for disk in disks {
            let layers = catalog
                .layers(&backup.id, disk.disk_index)
                .await
                .expect("layers");
            let depth = u32::try_from(layers.len()).expect("few");
            prop_assert_eq!((!is_orphan(&disk)).then_some(depth), disk.chain_depth);
            prop_assert!(!is_orphan(&disk) || backup.status != JobStatus::Completed);
            for pair in layers.windows(2) {
                let (child, parent) = (&pair[0], &pair[1]);
                prop_assert_eq!(
                    child.disk.base_change_id.as_ref(),
                    parent.disk.change_id.as_ref()
                );
                prop_assert_eq!(child.disk.device_key, parent.disk.device_key);
                prop_assert_eq!(parent.backup.status, JobStatus::Completed);
                prop_assert_eq!(&child.backup.vm_context_id, &parent.backup.vm_context_id);
                prop_assert!(child.disk.capacity_bytes >= parent.disk.capacity_bytes);
            }
        }
    }
    Ok(())
}

/// A disk of an attempt that failed and whose parent was deleted since.
fn is_orphan(disk: &BackupDisk) -> bool {
    disk.parent_reason.as_deref() == Some("parent_deleted")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_history_is_consistent(steps in proptest::collection::vec(step(), 1..40)) {
        let mut result = Ok(());
        on_fresh_sqlite(|catalog| {
            let result = &mut result;
            async move {
                with_repository(&catalog, "local").await;
                for name in VMS {
                    catalog.register_vm(&new_vm(name, DISK_SETS[1]), at(0)).await.expect("a VM");
                }
                let mut deleted = Deleted::new();
                for (n, step) in (1..).zip(&steps) {
                    if let Err(error) = take(&catalog, step, n, &mut deleted).await {
                        let expected = [ErrorKind::Conflict, ErrorKind::NotFound, ErrorKind::NoParent];
                        assert!(expected.contains(&error.kind), "step={step:?} error={error}");
                    }
                }
                *result = check(&catalog, &deleted).await;
            }
        });
        result?;
    }
}
