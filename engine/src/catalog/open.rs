//! Opening and closing the database.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, Sqlite, SqliteConnection, SqlitePool, Transaction};

use crate::error::{Error, ErrorKind};
use crate::limits::{DATABASE_ACQUIRE_TIMEOUT_MS, DATABASE_BUSY_TIMEOUT_MS, DATABASE_READERS_MAX};

static MIGRATIONS: Migrator = sqlx::migrate!("src/catalog/migrations/sqlite");

/// The database of a hub. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// The only connection that writes: writers queue here, in order, and never meet a locked database.
    writer: SqlitePool,
    reader: SqlitePool,
}

impl Catalog {
    /// Opens the database at `url` (`sqlite:PATH`), creating the file (readable by its owner only, because it holds
    /// encrypted passwords) and bringing its tables up to date.
    ///
    /// A commit is on the disk when a call returns: the catalog has to survive a loss of power.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for any other kind of URL, [`Invalid`](ErrorKind::Invalid) for an empty or in-memory path,
    /// [`Corrupt`](ErrorKind::Corrupt) for a file that is no catalog of this or an earlier version,
    /// [`Unavailable`](ErrorKind::Unavailable) if the file cannot be opened.
    pub async fn open(url: &str) -> Result<Self, Error> {
        let path = database_path(url)?;
        create_private_file(&path)?;
        let catalog = Self::connect(&path).await?;
        MIGRATIONS
            .run(&catalog.writer)
            .await
            .map_err(|source| migration_error(&path, source))?;
        Ok(catalog)
    }

    /// Opens the database below a running hub: its tables must be those of this version, and stay as they are.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Conflict`](ErrorKind::Conflict) if the tables are those of another version.
    pub async fn open_as_is(url: &str) -> Result<Self, Error> {
        let catalog = Self::connect(&database_path(url)?).await?;
        let applied: Vec<i64> =
            sqlx::query_scalar("SELECT version FROM _sqlx_migrations ORDER BY version")
                .fetch_all(&catalog.reader)
                .await?;
        if !applied.into_iter().eq(MIGRATIONS.iter().map(|m| m.version)) {
            catalog.close().await;
            return Err(Error::conflict(
                "the running hub is of another version",
                "use the program that runs, or stop it first",
            ));
        }
        Ok(catalog)
    }

    async fn connect(path: &Path) -> Result<Self, Error> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_millis(DATABASE_BUSY_TIMEOUT_MS));
        let writer = pool_options(1)
            .before_acquire(|connection, _| {
                // On a full disk SQLite rolls back by itself; the driver then fails to, and would count every later
                // transaction as a nested one. Such a connection is closed and opened anew.
                Box::pin(async move { Ok(!connection.is_in_transaction()) })
            })
            .connect_with(options.clone())
            .await?;
        let reader = pool_options(DATABASE_READERS_MAX)
            .connect_with(options.read_only(true))
            .await?;
        Ok(Self { writer, reader })
    }

    /// Waits for running statements and closes every connection. Later calls fail as unavailable.
    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }

    /// Whether the database answers, on both ways in.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) if it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        for pool in [&self.reader, &self.writer] {
            sqlx::query("SELECT COUNT(*) FROM backup_repositories")
                .execute(pool)
                .await?;
        }
        Ok(())
    }

    pub(super) fn reader(&self) -> &SqlitePool {
        &self.reader
    }

    /// A transaction that holds the write lock from its start, so that what it reads stays true until it commits.
    pub(super) async fn write(&self) -> Result<Transaction<'static, Sqlite>, Error> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }
}

/// A connection that only reads, to a database that exists; `None` where there is none yet.
pub(super) async fn look(url: &str) -> Result<Option<SqliteConnection>, Error> {
    let path = database_path(url)?;
    if !path.exists() {
        return Ok(None);
    }
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(false)
        .read_only(true)
        .busy_timeout(Duration::from_millis(DATABASE_BUSY_TIMEOUT_MS));
    Ok(Some(SqliteConnection::connect_with(&options).await?))
}

fn pool_options(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_millis(DATABASE_ACQUIRE_TIMEOUT_MS))
}

fn database_path(url: &str) -> Result<PathBuf, Error> {
    // The URL may hold a password, so an error shows only its scheme.
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err(Error::invalid(
            "malformed database url",
            "expected sqlite:PATH",
        ));
    };
    match scheme {
        "sqlite" => {}
        "mysql" | "mariadb" => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "database not supported",
                format!(
                    "MariaDB is coming, this build has SQLite only, use sqlite:PATH scheme={scheme}"
                ),
            ));
        }
        _ => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "database not supported",
                format!("use sqlite:PATH; MariaDB is coming scheme={scheme:?}"),
            ));
        }
    }
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.is_empty() || path == ":memory:" {
        return Err(Error::invalid(
            "malformed database url",
            "sqlite: needs the path of a file",
        ));
    }
    Ok(PathBuf::from(path))
}

/// Makes the file before SQLite does, which would make it readable by everybody. SQLite gives its companions (`-wal`,
/// `-shm`) the same mode.
fn create_private_file(path: &Path) -> Result<(), Error> {
    let opened = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path);
    opened.map(drop).map_err(|source| {
        let details = format!("cannot open the database file path={}", path.display());
        Error::new(ErrorKind::Unavailable, "database error", details).with_source(source)
    })
}

fn migration_error(path: &Path, source: sqlx::migrate::MigrateError) -> Error {
    let details = format!("cannot bring the tables up to date path={}", path.display());
    match source {
        sqlx::migrate::MigrateError::Execute(source) => Error::from(source),
        other => Error::corrupt("database error", details).with_source(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_transaction_that_sqlite_ended_itself_does_not_spoil_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("hub.db").display());
        let catalog = Catalog::open(&url).await.unwrap();
        let mut transaction = catalog.write().await.unwrap();
        // What SQLite does when a statement meets a full disk.
        sqlx::query("ROLLBACK")
            .execute(&mut *transaction)
            .await
            .unwrap();
        drop(transaction);
        catalog.write().await.unwrap().commit().await.unwrap();
        catalog.close().await;
    }
}
