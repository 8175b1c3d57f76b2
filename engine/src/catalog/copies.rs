//! Copies of backups in other repositories.

use sqlx::{FromRow, SqliteConnection};

use super::Catalog;
use super::begin::check_repository;
use super::finish::load_job;
use super::rows::{optional, stored, unsigned, word};
use super::timestamp::{from_optional_text, from_text, to_text};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::id::{BackupId, CopyId, CopyRuleId, RepositoryId};
use crate::limits::PAGE_ROWS_MAX;
use crate::model::BackupCopy;

#[derive(FromRow)]
struct CopyRow {
    id: String,
    source_backup_id: String,
    repository_id: String,
    copy_rule_id: Option<String>,
    status: String,
    file_path: String,
    size_bytes: i64,
    copy_started_at: Option<String>,
    copy_completed_at: Option<String>,
    verified_at: Option<String>,
    verification_status: String,
    error_message: Option<String>,
    created_at: String,
}

impl Catalog {
    /// Records that a copy of a backup is wanted; nothing else happens to it here.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) for an unknown backup or repository, [`Conflict`](crate::ErrorKind::Conflict) if there is such a copy, the
    /// backup is not complete or the repository is disabled, [`Invalid`](crate::ErrorKind::Invalid) for the backup's own repository.
    pub async fn ask_for_copy(
        &self,
        backup: &BackupId,
        repository: &RepositoryId,
        id: CopyId,
        now: Timestamp,
    ) -> Result<BackupCopy, Error> {
        let mut tx = self.write().await?;
        let source = load_job(&mut tx, backup).await?.try_into()?;
        check_repository(&mut tx, repository).await?;
        let copy = BackupCopy::asked_for(&source, repository.clone(), id, now)?;
        check_free(&mut tx, &copy).await?;
        sqlx::query(
            "INSERT INTO backup_copies (id, source_backup_id, repository_id, status, file_path, verification_status, created_at) \
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(copy.id.as_str())
        .bind(copy.source_backup_id.as_str())
        .bind(copy.repository_id.as_str())
        .bind(copy.status.as_str())
        .bind(&copy.file_path)
        .bind(copy.verification.as_str())
        .bind(to_text(copy.created_at))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(copy)
    }

    /// The copies of a backup, oldest first; none of an unknown backup.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn copies(&self, backup: &BackupId) -> Result<Vec<BackupCopy>, Error> {
        let rows: Vec<CopyRow> = sqlx::query_as(
            "SELECT id, source_backup_id, repository_id, copy_rule_id, status, file_path, size_bytes, copy_started_at, \
             copy_completed_at, verified_at, verification_status, error_message, created_at \
             FROM backup_copies WHERE source_backup_id = ? ORDER BY created_at, id LIMIT ?",
        )
        .bind(backup.as_str())
        .bind(PAGE_ROWS_MAX)
        .fetch_all(self.reader())
        .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }
}

async fn check_free(tx: &mut SqliteConnection, copy: &BackupCopy) -> Result<(), Error> {
    let there: Option<String> = sqlx::query_scalar(
        "SELECT id FROM backup_copies WHERE source_backup_id = ? AND repository_id = ?",
    )
    .bind(copy.source_backup_id.as_str())
    .bind(copy.repository_id.as_str())
    .fetch_optional(tx)
    .await?;
    match there {
        None => Ok(()),
        Some(id) => Err(Error::conflict(
            "the repository has a copy of this backup",
            format!(
                "backup_id={} repository_id={} copy_id={id}",
                copy.source_backup_id, copy.repository_id
            ),
        )),
    }
}

impl TryFrom<CopyRow> for BackupCopy {
    type Error = Error;

    fn try_from(row: CopyRow) -> Result<Self, Error> {
        Ok(Self {
            id: stored("id", CopyId::parse(&row.id))?,
            source_backup_id: stored(
                "source_backup_id",
                BackupId::parse_stored(&row.source_backup_id),
            )?,
            repository_id: stored("repository_id", RepositoryId::parse(&row.repository_id))?,
            copy_rule_id: optional(
                row.copy_rule_id.as_deref(),
                "copy_rule_id",
                CopyRuleId::parse,
            )?,
            status: word("status", &row.status)?,
            file_path: row.file_path,
            size_bytes: unsigned("size_bytes", row.size_bytes)?,
            copy_started_at: from_optional_text("copy_started_at", row.copy_started_at.as_deref())?,
            copy_completed_at: from_optional_text(
                "copy_completed_at",
                row.copy_completed_at.as_deref(),
            )?,
            verified_at: from_optional_text("verified_at", row.verified_at.as_deref())?,
            verification: word("verification_status", &row.verification_status)?,
            error_message: row.error_message.filter(|text| !text.is_empty()),
            created_at: from_text("created_at", &row.created_at)?,
        })
    }
}
