//! What a database error means to the caller.

use crate::error::{Error, ErrorKind};

/// The message of every database error: the text that legacy clients know.
const MESSAGE: &str = "database error";

impl From<sqlx::Error> for Error {
    fn from(source: sqlx::Error) -> Self {
        let (kind, details) = classify(&source);
        Self::new(kind, MESSAGE, details).with_source(source)
    }
}

fn classify(source: &sqlx::Error) -> (ErrorKind, &'static str) {
    match source {
        sqlx::Error::Database(error) if error.is_unique_violation() => {
            (ErrorKind::Conflict, "another row has the same unique value")
        }
        sqlx::Error::Database(error) if error.is_foreign_key_violation() => (
            ErrorKind::Conflict,
            "a row that is referred to is missing or still needed",
        ),
        sqlx::Error::Database(error) => classify_sqlite(error.code().as_deref()),
        sqlx::Error::PoolTimedOut => (ErrorKind::Unavailable, "no connection became free in time"),
        sqlx::Error::PoolClosed => (ErrorKind::Unavailable, "the database is closed"),
        sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => {
            (ErrorKind::Unavailable, "the database does not answer")
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            (ErrorKind::Corrupt, "a row cannot be read")
        }
        _ => (ErrorKind::Internal, "unexpected database error"),
    }
}

/// By SQLite's primary result code ("Result and Error Codes"); extended codes have it in their low byte.
fn classify_sqlite(code: Option<&str>) -> (ErrorKind, &'static str) {
    let extended = code.and_then(|code| code.parse::<u32>().ok());
    if extended == Some(SQLITE_CONSTRAINT_TRIGGER) {
        return (
            ErrorKind::Conflict,
            "a row that is referred to is still needed",
        );
    }
    match extended.map(|code| code & 0xff) {
        Some(5 | 6) => (
            ErrorKind::Unavailable,
            "the database is locked by another process",
        ),
        Some(8) => (ErrorKind::Unavailable, "the database cannot be written"),
        Some(10 | 14) => (
            ErrorKind::Unavailable,
            "the database file cannot be read or written",
        ),
        Some(11 | 26) => (
            ErrorKind::Corrupt,
            "the database file is damaged or no database",
        ),
        Some(13) => (ErrorKind::NoSpace, "no space for the database"),
        _ => (ErrorKind::Internal, "unexpected database error"),
    }
}

/// How SQLite reports a refused `ON DELETE RESTRICT`, which it implements as a trigger.
const SQLITE_CONSTRAINT_TRIGGER: u32 = 1811;
