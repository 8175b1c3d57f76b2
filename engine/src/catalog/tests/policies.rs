//! Policies, their rules, and the copies that are asked for.

use super::*;
use crate::id::{CopyId, CopyRuleId};

suite!(
    a_policy_is_kept_with_its_rules_until_it_is_deleted,
    a_policy_is_stored_whole_or_not_at_all,
    a_deleted_policy_takes_its_rules_and_nothing_else,
    rows_of_a_legacy_hub_are_read,
    a_copy_is_asked_for_once_and_stays_pending,
    a_copy_needs_a_whole_backup_and_another_repository,
    copies_go_with_their_backup,
);

fn rule(id: &str, destination: &str, priority: i64) -> NewCopyRule {
    NewCopyRule {
        id: CopyRuleId::parse(id).ok(),
        destination_repository_id: repo(destination),
        copy_mode: CopyMode::Manual,
        priority,
        enabled: false,
        verify_after_copy: true,
    }
}

/// A policy into `local` whose id is its name.
fn policy(name: &str, copy_rules: Vec<NewCopyRule>) -> Policy {
    let new = NewPolicy {
        name: name.to_owned(),
        enabled: true,
        primary_repository_id: repo("local"),
        retention_days: 7,
        copy_rules,
    };
    let id = PolicyId::parse(name).expect("an id");
    new.into_policy(id, || unreachable!("every rule has an id"), at(3))
        .expect("a policy")
}

async fn with_repositories(catalog: &Catalog) {
    for id in ["local", "far", "off"] {
        with_repository(catalog, id).await;
    }
}

async fn a_policy_is_kept_with_its_rules_until_it_is_deleted(catalog: Catalog) {
    with_repositories(&catalog).await;
    let daily = policy("daily", vec![rule("r2", "off", 2), rule("r1", "far", 1)]);
    let bare = policy("bare", Vec::new());
    for policy in [&daily, &bare] {
        catalog.add_policy(policy).await.expect("stored");
    }
    assert_eq!(catalog.policy(&daily.id).await.expect("it"), daily);
    let all = catalog.policies().await.expect("a list");
    assert_eq!(all, [bare.clone(), daily.clone()], "by name");
    catalog.delete_policy(&daily.id).await.expect("deleted");
    assert_eq!(catalog.policies().await.expect("a list"), [bare]);
    for gone in [
        kind(catalog.policy(&daily.id).await),
        kind(catalog.delete_policy(&daily.id).await),
    ] {
        assert_eq!(gone, ErrorKind::NotFound);
    }
}

async fn a_policy_is_stored_whole_or_not_at_all(catalog: Catalog) {
    with_repositories(&catalog).await;
    let first = policy("first", vec![rule("taken", "far", 1)]);
    catalog.add_policy(&first).await.expect("stored");
    let mut nowhere = policy("nowhere", Vec::new());
    nowhere.primary_repository_id = repo("nowhere");
    let mut same_id = policy("other", Vec::new());
    same_id.id = first.id.clone();
    let unknown = vec![rule("a", "far", 1), rule("b", "nowhere", 2)];
    for (refused, expected) in [
        (policy("first", Vec::new()), ErrorKind::Conflict),
        (same_id, ErrorKind::Conflict),
        (
            policy("second", vec![rule("a", "far", 1), rule("taken", "off", 2)]),
            ErrorKind::Conflict,
        ),
        (policy("third", unknown), ErrorKind::NotFound),
        (nowhere, ErrorKind::NotFound),
    ] {
        let result = catalog.add_policy(&refused).await;
        assert_eq!(kind(result), expected, "{refused:?}");
    }
    assert_eq!(catalog.policies().await.expect("a list"), [first]);
    assert_eq!(count(&catalog, "backup_copy_rules").await, 1);
}

async fn a_deleted_policy_takes_its_rules_and_nothing_else(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    with_repositories(&catalog).await;
    let daily = policy("daily", vec![rule("r1", "far", 1)]);
    catalog.add_policy(&daily).await.expect("stored");
    let backup = done(&catalog, &vm, RequestedType::Full, "a", at(4)).await;
    let copy = asked(&catalog, &backup.id, "far", "c1").await;
    copy.expect("a copy");
    execute(&catalog, "UPDATE backup_copies SET copy_rule_id = 'r1'")
        .await
        .expect("the rule asked for it");
    catalog.delete_policy(&daily.id).await.expect("deleted");
    assert_eq!(count(&catalog, "backup_copy_rules").await, 0);
    let copies = catalog.copies(&backup.id).await.expect("a list");
    assert_eq!(copies.len(), 1);
    assert_eq!(copies[0].copy_rule_id, None);
}

async fn rows_of_a_legacy_hub_are_read(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    with_repositories(&catalog).await;
    let backup = done(&catalog, &vm, RequestedType::Full, "a", at(4)).await;
    execute(
        &catalog,
        "INSERT INTO backup_policies (id, name, primary_repository_id, retention_days, created_at, updated_at) \
         VALUES ('0f6c', 'odd', 'local', -1, '2025-10-08 10:15:00', '2025-10-08 10:15:00')",
    )
    .await
    .expect("a policy");
    execute(
        &catalog,
        "INSERT INTO backup_copies (id, source_backup_id, repository_id, file_path, error_message, created_at) \
         SELECT 'c1', id, 'far', '', NULL, '2025-10-08 10:15:00' FROM backup_jobs",
    )
    .await
    .expect("a copy");
    let policies = catalog.policies().await.expect("a list");
    assert_eq!(policies[0].retention_days, 0);
    let copies = catalog.copies(&backup.id).await.expect("a list");
    assert_eq!(
        (copies[0].status, copies[0].error_message.as_deref()),
        (CopyStatus::Pending, None)
    );
}

async fn asked(
    catalog: &Catalog,
    backup: &BackupId,
    repository: &str,
    id: &str,
) -> Result<BackupCopy, Error> {
    let id = CopyId::parse(id).expect("an id");
    let repository = repo(repository);
    catalog.ask_for_copy(backup, &repository, id, at(9)).await
}

async fn a_copy_is_asked_for_once_and_stays_pending(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    with_repositories(&catalog).await;
    let backup = done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    let copy = asked(&catalog, &backup.id, "far", "c1").await;
    let copy = copy.expect("a copy");
    assert_eq!(
        (copy.status, copy.verification, copy.created_at),
        (CopyStatus::Pending, Verification::Pending, at(9))
    );
    assert_eq!((copy.copy_started_at, copy.file_path.as_str()), (None, ""));
    assert_eq!(catalog.copies(&backup.id).await.expect("a list"), [copy]);
    let again = asked(&catalog, &backup.id, "far", "c2").await;
    assert_eq!(kind(again), ErrorKind::Conflict);
    let other = asked(&catalog, &backup.id, "off", "c2").await;
    other.expect("another repository, another copy");
    assert_eq!(catalog.copies(&backup.id).await.expect("a list").len(), 2);
}

async fn a_copy_needs_a_whole_backup_and_another_repository(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    with_repositories(&catalog).await;
    let whole = done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    let running = started(&catalog, &vm, RequestedType::Full, at(2)).await;
    execute(
        &catalog,
        "UPDATE backup_repositories SET enabled = 0 WHERE id = 'off'",
    )
    .await
    .expect("disabled");
    let unknown = BackupId::parse("backup-nothing-1").expect("an id");
    for (backup, repository, expected) in [
        (&unknown, "far", ErrorKind::NotFound),
        (&whole.id, "nowhere", ErrorKind::NotFound),
        (&whole.id, "local", ErrorKind::Invalid),
        (&whole.id, "off", ErrorKind::Conflict),
        (&running.id, "far", ErrorKind::Conflict),
    ] {
        let refused = asked(&catalog, backup, repository, "c").await;
        assert_eq!(kind(refused), expected, "{backup} {repository}");
    }
    catalog
        .set_intent(&whole.id, Some(Intent::Deleting))
        .await
        .expect("being removed");
    let refused = asked(&catalog, &whole.id, "far", "c").await;
    assert_eq!(kind(refused), ErrorKind::Conflict);
    assert_eq!(count(&catalog, "backup_copies").await, 0);
    assert_eq!(catalog.copies(&unknown).await.expect("a list"), []);
}

async fn copies_go_with_their_backup(catalog: Catalog) {
    let vm = with_web(&catalog).await;
    with_repositories(&catalog).await;
    let backup = done(&catalog, &vm, RequestedType::Full, "a", at(1)).await;
    asked(&catalog, &backup.id, "far", "c1")
        .await
        .expect("a copy");
    execute(&catalog, "DELETE FROM backup_chains")
        .await
        .expect("no chain");
    execute(&catalog, "DELETE FROM backup_jobs")
        .await
        .expect("no backup");
    assert_eq!(count(&catalog, "backup_copies").await, 0);
}
