//! Tokens.

use super::*;

suite!(
    a_token_is_found_by_its_hash_until_it_is_revoked,
    a_name_has_one_token,
    a_node_token_needs_a_job_that_exists_and_goes_with_it,
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
