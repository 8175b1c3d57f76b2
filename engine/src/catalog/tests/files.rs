//! Opening: which databases, with which mode, what is refused.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn open(url: &str) -> Result<Catalog, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let catalog = Catalog::open(url).await?;
        catalog.ping().await?;
        catalog.close().await;
        assert_eq!(kind(catalog.ping().await), ErrorKind::Unavailable);
        Ok(catalog)
    })
}

#[test]
fn only_files_of_sqlite_are_taken() {
    for url in [
        "mysql://user:secret@host/db",
        "mariadb://host/db",
        "postgres://user:secret@host/db",
    ] {
        let error = open(url).expect_err("refused");
        assert_eq!(error.kind, ErrorKind::Unsupported, "{url}");
        assert!(error.details.contains("MariaDB is coming"), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    for url in ["", "hub.db", "sqlite:", "sqlite://", "sqlite::memory:"] {
        assert_eq!(kind(open(url)), ErrorKind::Invalid, "{url}");
    }
    assert_eq!(
        kind(open("sqlite:/nonexistent/folder/hub.db")),
        ErrorKind::Unavailable
    );
}

#[test]
fn the_files_are_private_and_survive_reopening() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("odd name?mode=memory#%20.db");
    for scheme in ["sqlite:", "sqlite://", "sqlite:"] {
        open(&format!("{scheme}{}", path.display())).expect("opened");
        for entry in std::fs::read_dir(folder.path()).expect("a listing") {
            let mode = entry
                .expect("an entry")
                .metadata()
                .expect("its metadata")
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}

#[test]
fn a_file_that_is_no_database_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notes.txt");
    let text = "not a database ".repeat(1000);
    std::fs::write(&path, &text).expect("written");
    assert_eq!(
        kind(open(&format!("sqlite:{}", path.display()))),
        ErrorKind::Corrupt
    );
    assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
}

#[test]
fn a_catalog_of_a_later_version_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite:{}", folder.path().join("hub.db").display());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let catalog = Catalog::open(&url).await.expect("opened");
        execute(
            &catalog,
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', 1, x'00', 0)",
        )
        .await
        .expect("inserted");
        catalog.close().await;
        assert_eq!(kind(Catalog::open(&url).await), ErrorKind::Corrupt);
    });
}

#[test]
fn the_database_is_set_up_to_survive_a_loss_of_power() {
    on_fresh_sqlite(|catalog| async move {
        let mut tx = catalog.write().await.expect("a transaction");
        let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
            .fetch_one(&mut *tx)
            .await
            .expect("a mode");
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous")
            .fetch_one(&mut *tx)
            .await
            .expect("a level");
        let keys: i64 = sqlx::query_scalar("PRAGMA foreign_keys")
            .fetch_one(&mut *tx)
            .await
            .expect("a switch");
        assert_eq!((mode.as_str(), synchronous, keys), ("wal", 2, 1));
    });
}

#[test]
fn readers_cannot_write() {
    on_fresh_sqlite(|catalog| async move {
        let refused = sqlx::query("DELETE FROM backup_jobs")
            .execute(catalog.reader())
            .await;
        assert_eq!(kind(refused.map_err(Error::from)), ErrorKind::Unavailable);
    });
}
