//! Repositories: where images are kept.

use sqlx::FromRow;

use super::rows::stored;
use super::timestamp::{from_text, to_text};
use super::{Catalog, NewLocalRepository};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::id::RepositoryId;
use crate::limits::{IMAGE_PATH_BYTES_MAX, INVENTORY_ROWS_MAX, NAME_CHARS_MAX};
use crate::model::{RepositorySummary, check_text};

#[derive(FromRow)]
struct RepositoryRow {
    id: String,
    name: String,
    repository_type: String,
    enabled: bool,
    config: String,
    created_at: String,
}

impl Catalog {
    /// Makes the repository, or gives it the path if it has another one: a default repository moves with its data folder.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for an unusable name or path, [`Conflict`](crate::ErrorKind::Conflict) if the name is
    /// taken.
    pub async fn ensure_repository(
        &self,
        repository: &NewLocalRepository,
        now: Timestamp,
    ) -> Result<RepositorySummary, Error> {
        check_text("name", &repository.name, NAME_CHARS_MAX)?;
        if repository.path.is_empty() || repository.path.len() > IMAGE_PATH_BYTES_MAX {
            let details = format!("bytes={} max={IMAGE_PATH_BYTES_MAX}", repository.path.len());
            return Err(Error::invalid(
                "repository path is empty or too long",
                details,
            ));
        }
        let mut tx = self.write().await?;
        if let Some(row) = find(&mut tx, &repository.id).await? {
            let mut found = RepositorySummary::try_from(row)?;
            if found.path != repository.path {
                sqlx::query(
                    "UPDATE backup_repositories SET config = json_set(config, '$.path', ?), updated_at = ? WHERE id = ?",
                )
                .bind(&repository.path)
                .bind(to_text(now))
                .bind(repository.id.as_str())
                .execute(&mut *tx)
                .await?;
                tx.commit().await?;
                found.path.clone_from(&repository.path);
            }
            return Ok(found);
        }
        let config = serde_json::json!({ "path": repository.path }).to_string();
        sqlx::query(
            "INSERT INTO backup_repositories (id, name, repository_type, enabled, config, created_at, updated_at) \
             VALUES (?, ?, 'local', 1, ?, ?, ?)",
        )
        .bind(repository.id.as_str())
        .bind(&repository.name)
        .bind(config)
        .bind(to_text(now))
        .bind(to_text(now))
        .execute(&mut *tx)
        .await?;
        let made = find(&mut tx, &repository.id)
            .await?
            .ok_or_else(|| unknown(&repository.id))?;
        tx.commit().await?;
        made.try_into()
    }

    /// One repository.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is none with this id.
    pub async fn repository(&self, id: &RepositoryId) -> Result<RepositorySummary, Error> {
        let mut connection = self.reader().acquire().await?;
        find(&mut connection, id)
            .await?
            .ok_or_else(|| unknown(id))?
            .try_into()
    }

    /// Every image path that a row of this repository records, in whatever state: what a sweep must not touch.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn image_paths(&self, id: &RepositoryId) -> Result<Vec<String>, Error> {
        Ok(sqlx::query_scalar(
            "SELECT d.qcow2_path FROM backup_disks d JOIN backup_jobs j ON j.id = d.backup_job_id \
             WHERE j.repository_id = ? AND d.qcow2_path IS NOT NULL",
        )
        .bind(id.as_str())
        .fetch_all(self.reader())
        .await?)
    }

    /// Every repository, by name.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn repositories(&self) -> Result<Vec<RepositorySummary>, Error> {
        let rows: Vec<RepositoryRow> = sqlx::query_as(
            "SELECT id, name, repository_type, enabled, config, created_at FROM backup_repositories ORDER BY name LIMIT ?",
        )
        .bind(INVENTORY_ROWS_MAX)
        .fetch_all(self.reader())
        .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }
}

async fn find(
    connection: &mut sqlx::SqliteConnection,
    id: &RepositoryId,
) -> Result<Option<RepositoryRow>, Error> {
    Ok(sqlx::query_as(
        "SELECT id, name, repository_type, enabled, config, created_at FROM backup_repositories WHERE id = ?",
    )
    .bind(id.as_str())
    .fetch_optional(connection)
    .await?)
}

fn unknown(id: &RepositoryId) -> Error {
    Error::not_found("repository not found", format!("repository_id={id}"))
}

/// Where a repository keeps its files: `path` of a local one, `mount_point` of one on a share.
#[derive(serde::Deserialize, Default)]
struct Location {
    path: Option<String>,
    mount_point: Option<String>,
}

impl TryFrom<RepositoryRow> for RepositorySummary {
    type Error = Error;

    fn try_from(row: RepositoryRow) -> Result<Self, Error> {
        let location: Location = serde_json::from_str(&row.config).map_err(|source| {
            Error::corrupt(
                "database error",
                format!("a repository's config cannot be read id={}", row.id),
            )
            .with_source(source)
        })?;
        Ok(Self {
            id: stored("id", RepositoryId::parse(&row.id))?,
            name: row.name,
            repository_type: row.repository_type,
            enabled: row.enabled,
            path: location.path.or(location.mount_point).unwrap_or_default(),
            created_at: from_text("created_at", &row.created_at)?,
        })
    }
}
