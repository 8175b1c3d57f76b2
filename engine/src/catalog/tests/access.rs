//! Tokens and the audit log.

use super::*;

suite!(
    a_token_is_found_by_its_hash_until_it_is_revoked,
    a_name_has_one_token,
    a_node_token_needs_a_job_that_exists_and_goes_with_it,
    deeds_are_read_newest_first_by_what_is_asked,
    the_log_is_only_added_to,
    the_oldest_entries_go_and_no_others,
);

fn new_token(name: &str, role: Role, job: Option<&BackupId>) -> NewToken {
    NewToken {
        name: name.to_owned(),
        role,
        job: job.cloned(),
    }
}

fn hash(byte: u8) -> TokenHash {
    TokenHash([byte; 32])
}

async fn a_token_is_found_by_its_hash_until_it_is_revoked(catalog: Catalog) {
    let made = catalog
        .add_token(&new_token("ops", Role::Operator, None), hash(1), at(3))
        .await
        .expect("a token");
    assert_eq!(
        made,
        Token {
            name: "ops".to_owned(),
            role: Role::Operator,
            job: None,
            created_at: at(3),
        }
    );
    let found = catalog.token(hash(1)).await.expect("an answer");
    assert_eq!(found, Some(made.clone()));
    assert_eq!(catalog.token(hash(2)).await.expect("an answer"), None);
    assert_eq!(catalog.tokens().await.expect("a list"), [made]);
    catalog.revoke_token("ops").await.expect("revoked");
    assert_eq!(catalog.token(hash(1)).await.expect("an answer"), None);
    assert_eq!(kind(catalog.revoke_token("ops").await), ErrorKind::NotFound);
}

async fn a_name_has_one_token(catalog: Catalog) {
    for name in ["b", "a"] {
        let byte = name.as_bytes()[0];
        catalog
            .add_token(&new_token(name, Role::Admin, None), hash(byte), at(0))
            .await
            .expect("a token");
    }
    let again = catalog
        .add_token(&new_token("a", Role::ReadOnly, None), hash(3), at(0))
        .await;
    assert_eq!(kind(again), ErrorKind::Conflict);
    let names: Vec<String> = catalog
        .tokens()
        .await
        .expect("a list")
        .into_iter()
        .map(|token| token.name)
        .collect();
    assert_eq!(names, ["a", "b"]);
}

async fn a_node_token_needs_a_job_that_exists_and_goes_with_it(catalog: Catalog) {
    let unknown = BackupId::parse("backup-nothing-1").expect("an id");
    let refused = catalog
        .add_token(&new_token("n", Role::Node, Some(&unknown)), hash(1), at(0))
        .await;
    assert_eq!(kind(refused), ErrorKind::NotFound);
    let vm = with_web(&catalog).await;
    let backup = started(&catalog, &vm, RequestedType::Full, at(1)).await;
    catalog
        .add_token(
            &new_token("n", Role::Node, Some(&backup.id)),
            hash(1),
            at(2),
        )
        .await
        .expect("a token");
    let found = catalog.token(hash(1)).await.expect("an answer");
    assert_eq!(found.and_then(|token| token.job), Some(backup.id.clone()));
    catalog
        .delete_backup_rows(&backup.id)
        .await
        .expect("no rows");
    assert_eq!(catalog.token(hash(1)).await.expect("an answer"), None);
}

fn deed(actor: &str, verb: Verb, status: u16) -> Deed {
    Deed {
        actor: actor.to_owned(),
        role: Some(Role::Operator),
        peer: Some("192.0.2.7".to_owned()),
        verb,
        object: "backup_id=backup-web-1".to_owned(),
        status,
        request_id: "r-1".to_owned(),
    }
}

async fn deeds_are_read_newest_first_by_what_is_asked(catalog: Catalog) {
    let deeds = [
        deed("ops", Verb::StartBackup, 200),
        deed("ops", Verb::DeleteBackup, 403),
        deed("boss", Verb::DeleteBackup, 500),
        Deed {
            role: None,
            peer: None,
            ..deed("unknown", Verb::StartBackup, 401)
        },
    ];
    for (second, deed) in (0..).zip(&deeds) {
        catalog
            .record_deed(deed, at(second))
            .await
            .expect("recorded");
    }
    let all = catalog.audit(&AuditFilter::default()).await.expect("a log");
    let found: Vec<&Deed> = all.iter().rev().map(|entry| &entry.deed).collect();
    assert_eq!(found, deeds.iter().collect::<Vec<_>>());
    assert_eq!(all[3].at, at(0));
    assert_eq!(
        all.iter().map(|entry| entry.outcome).collect::<Vec<_>>(),
        [
            Outcome::Refused,
            Outcome::Failed,
            Outcome::Refused,
            Outcome::Done
        ]
    );
    let check = async |filter: AuditFilter, expected: &[i64]| {
        let found = catalog.audit(&filter).await.expect("a log");
        let ids: Vec<i64> = found.iter().map(|entry| entry.id).collect();
        assert_eq!(ids, expected, "{filter:?}");
    };
    let ops = || AuditFilter {
        actor: Some("ops".to_owned()),
        ..AuditFilter::default()
    };
    check(ops(), &[2, 1]).await;
    let page = AuditFilter {
        limit: Some(2),
        before: Some(4),
        ..AuditFilter::default()
    };
    check(page, &[3, 2]).await;
    let refused = AuditFilter {
        outcome: Some("refused".to_owned()),
        ..ops()
    };
    check(refused, &[2]).await;
    let deletes = AuditFilter {
        verb: Some("delete_backup".to_owned()),
        ..AuditFilter::default()
    };
    check(deletes, &[3, 2]).await;
}

async fn the_log_is_only_added_to(catalog: Catalog) {
    let entry = deed("ops", Verb::StartBackup, 200);
    catalog.record_deed(&entry, at(0)).await.expect("recorded");
    for statement in ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log"] {
        assert!(execute(&catalog, statement).await.is_err(), "{statement}");
    }
    let kept = catalog.audit(&AuditFilter::default()).await.expect("a log");
    assert_eq!(kept.len(), 1);
}

async fn the_oldest_entries_go_and_no_others(catalog: Catalog) {
    let entry = deed("ops", Verb::StartBackup, 200);
    catalog.record_deed(&entry, at(0)).await.expect("recorded");
    catalog.record_deed(&entry, at(1)).await.expect("recorded");
    // As if as many entries as are kept had come since the first.
    let later = "INSERT INTO audit_log (id, at, actor, verb, object, outcome, status, request_id) \
                 VALUES (100000, '2025-10-10 00:00:00', 'x', 'start_backup', '', 'done', 200, '')";
    execute(&catalog, later).await.expect("an entry");
    assert_eq!(count(&catalog, "audit_log").await, 3);
    catalog.record_deed(&entry, at(2)).await.expect("recorded");
    let kept = catalog.audit(&AuditFilter::default()).await.expect("a log");
    let ids: Vec<i64> = kept.iter().map(|entry| entry.id).collect();
    assert_eq!(ids, [crate::limits::AUDIT_ROWS_MAX + 1, 100_000, 2]);
}
