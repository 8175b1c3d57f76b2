//! Repositories: where images are kept.

use sqlx::FromRow;

use super::rows::{signed, small, stored, unsigned};
use super::timestamp::{from_optional_text, from_text, to_text};
use super::{Catalog, NewLocalRepository, StoredPassword};
use crate::clock::Timestamp;
use crate::config::Secret;
use crate::error::Error;
use crate::id::RepositoryId;
use crate::limits::{ID_ATTEMPTS_MAX, IMAGE_PATH_BYTES_MAX, INVENTORY_ROWS_MAX, NAME_CHARS_MAX};
use crate::model::{
    NewRepository, RepositorySummary, StorageSeen, check_text, overlap, read_config, write_config,
};

/// `SELECT` of [`RepositoryRow`]s, with the rest of the statement.
macro_rules! select_repositories {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, repository_type, enabled, config, is_immutable, min_retention_days, total_size_bytes, ",
            "used_size_bytes, available_size_bytes, last_check_at, created_at, updated_at, ",
            "(SELECT COUNT(*) FROM backup_jobs j WHERE j.repository_id = r.id AND j.repository_path = '/multi-disk-parent') ",
            "AS backup_count FROM backup_repositories r ",
            $rest
        )
    };
}

#[derive(FromRow)]
struct RepositoryRow {
    id: String,
    name: String,
    repository_type: String,
    enabled: bool,
    config: String,
    is_immutable: bool,
    min_retention_days: i64,
    total_size_bytes: i64,
    used_size_bytes: i64,
    available_size_bytes: i64,
    last_check_at: Option<String>,
    created_at: String,
    updated_at: String,
    backup_count: i64,
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
            let found = RepositorySummary::try_from(row)?;
            if found.path != repository.path {
                sqlx::query(
                    "UPDATE backup_repositories SET config = json_set(config, '$.path', ?), updated_at = ? WHERE id = ?",
                )
                .bind(&repository.path)
                .bind(to_text(now))
                .bind(repository.id.as_str())
                .execute(&mut *tx)
                .await?;
                let moved = find(&mut tx, &repository.id).await?;
                tx.commit().await?;
                return moved.ok_or_else(|| unknown(&repository.id))?.try_into();
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
        let rows: Vec<RepositoryRow> =
            sqlx::query_as(select_repositories!("ORDER BY name LIMIT ?"))
                .bind(INVENTORY_ROWS_MAX)
                .fetch_all(self.reader())
                .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// An id that no repository has: `repo-{type}-{unix seconds}`, with a number at the end while that is taken.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn free_repository_id(
        &self,
        repository_type: &str,
        now: Timestamp,
    ) -> Result<RepositoryId, Error> {
        let mut connection = self.reader().acquire().await?;
        let seconds = now.unix_timestamp().max(0);
        for ordinal in 0..ID_ATTEMPTS_MAX {
            let id = match ordinal {
                0 => format!("repo-{repository_type}-{seconds}"),
                _ => format!("repo-{repository_type}-{seconds}-{ordinal}"),
            };
            let id = RepositoryId::parse(&id)?;
            if find(&mut connection, &id).await?.is_none() {
                return Ok(id);
            }
        }
        let details = format!("repository_type={repository_type} attempts={ID_ATTEMPTS_MAX}");
        Err(Error::conflict("no free repository id", details))
    }

    /// Records a repository under an id from [`free_repository_id`](Self::free_repository_id), its password encrypted already.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) as [`NewRepository::check`], [`Conflict`](crate::ErrorKind::Conflict) if the name is
    /// taken, or its folder is or lies in that of another, whose sweep would take its files for leftovers.
    pub async fn add_repository(
        &self,
        id: &RepositoryId,
        repository: &NewRepository,
        sealed_password: Option<&str>,
        now: Timestamp,
    ) -> Result<RepositorySummary, Error> {
        repository.check()?;
        let mut tx = self.write().await?;
        let others: Vec<RepositoryRow> = sqlx::query_as(select_repositories!(""))
            .fetch_all(&mut *tx)
            .await?;
        for other in others {
            let other = RepositorySummary::try_from(other)?;
            if other.name == repository.name {
                let details = format!("name={}", other.name);
                return Err(Error::conflict("repository name is taken", details));
            }
            if !other.path.is_empty() && overlap(&other.path, repository.place.root()) {
                let details = format!("repository_id={} path={}", other.id, other.path);
                return Err(Error::conflict("another repository is there", details));
            }
        }
        let mut config = write_config(&repository.place, &repository.description);
        if let Some(sealed) = sealed_password {
            config.insert(SEALED_PASSWORD.to_owned(), sealed.into());
        }
        sqlx::query(
            "INSERT INTO backup_repositories (id, name, repository_type, enabled, config, is_immutable, min_retention_days, \
             created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(id.as_str())
        .bind(&repository.name)
        .bind(&repository.repository_type)
        .bind(repository.enabled)
        .bind(serde_json::Value::Object(config).to_string())
        .bind(repository.is_immutable)
        .bind(repository.min_retention_days)
        .bind(to_text(now))
        .bind(to_text(now))
        .execute(&mut *tx)
        .await?;
        let made = find(&mut tx, id).await?.ok_or_else(|| unknown(id))?;
        tx.commit().await?;
        made.try_into()
    }

    /// The password of a share as it is stored: encrypted by us, or plain by a legacy hub.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is no repository with this id.
    pub async fn repository_password(
        &self,
        id: &RepositoryId,
    ) -> Result<Option<StoredPassword>, Error> {
        let mut connection = self.reader().acquire().await?;
        let row = find(&mut connection, id)
            .await?
            .ok_or_else(|| unknown(id))?;
        let config = config_of(&row)?;
        let text = |key: &str| {
            let text = config.get(key).and_then(serde_json::Value::as_str);
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        Ok(match text(SEALED_PASSWORD) {
            Some(sealed) => Some(StoredPassword::Sealed(sealed)),
            None => text("password_secret").map(|plain| StoredPassword::Plain(Secret::new(plain))),
        })
    }

    /// Records what was seen of a repository's storage.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn record_storage(&self, id: &RepositoryId, seen: &StorageSeen) -> Result<(), Error> {
        let mut tx = self.write().await?;
        sqlx::query(
            "UPDATE backup_repositories SET total_size_bytes = ?, used_size_bytes = ?, available_size_bytes = ?, \
             last_check_at = ? WHERE id = ?",
        )
        .bind(signed("total_size_bytes", seen.total_bytes)?)
        .bind(signed("used_size_bytes", seen.used_bytes)?)
        .bind(signed("available_size_bytes", seen.available_bytes)?)
        .bind(to_text(seen.at))
        .bind(id.as_str())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Forgets a repository that holds no backup; returns how many it holds. Its files are not touched.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is none with this id, [`Conflict`](crate::ErrorKind::Conflict) if a policy
    /// names it.
    pub async fn delete_repository(&self, id: &RepositoryId) -> Result<u64, Error> {
        let mut tx = self.write().await?;
        if find(&mut tx, id).await?.is_none() {
            return Err(unknown(id));
        }
        let jobs: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM backup_jobs WHERE repository_id = ?")
                .bind(id.as_str())
                .fetch_one(&mut *tx)
                .await?;
        if jobs > 0 {
            return unsigned("backup_count", jobs);
        }
        // A context without a backup is what a refused start leaves.
        for statement in [
            "DELETE FROM vm_backup_contexts WHERE repository_id = ?",
            "DELETE FROM backup_repositories WHERE id = ?",
        ] {
            sqlx::query(statement)
                .bind(id.as_str())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(0)
    }
}

async fn find(
    connection: &mut sqlx::SqliteConnection,
    id: &RepositoryId,
) -> Result<Option<RepositoryRow>, Error> {
    Ok(sqlx::query_as(select_repositories!("WHERE id = ?"))
        .bind(id.as_str())
        .fetch_optional(connection)
        .await?)
}

fn unknown(id: &RepositoryId) -> Error {
    Error::not_found("repository not found", format!("repository_id={id}"))
}

/// Where a config has the password of a share, as base64 of nonce and ciphertext.
const SEALED_PASSWORD: &str = "password_sealed";

fn config_of(row: &RepositoryRow) -> Result<serde_json::Map<String, serde_json::Value>, Error> {
    serde_json::from_str(&row.config).map_err(|source| {
        let details = format!("a repository's config cannot be read id={}", row.id);
        Error::corrupt("database error", details).with_source(source)
    })
}

impl TryFrom<RepositoryRow> for RepositorySummary {
    type Error = Error;

    fn try_from(row: RepositoryRow) -> Result<Self, Error> {
        let config = config_of(&row)?;
        // A type or a value that we do not know makes a repository that cannot be used, not a list that cannot be read.
        let known = read_config(&row.repository_type, &config).ok();
        let last_check_at = from_optional_text("last_check_at", row.last_check_at.as_deref())?;
        let storage = match last_check_at {
            None => None,
            Some(at) => Some(StorageSeen {
                total_bytes: unsigned("total_size_bytes", row.total_size_bytes)?,
                used_bytes: unsigned("used_size_bytes", row.used_size_bytes)?,
                available_bytes: unsigned("available_size_bytes", row.available_size_bytes)?,
                at,
            }),
        };
        Ok(Self {
            id: stored("id", RepositoryId::parse(&row.id))?,
            name: row.name,
            repository_type: row.repository_type,
            enabled: row.enabled,
            path: known
                .as_ref()
                .map(|known| known.place.root().to_owned())
                .unwrap_or_default(),
            description: known
                .as_ref()
                .map(|known| known.description.clone())
                .unwrap_or_default(),
            place: known.map(|known| known.place),
            is_immutable: row.is_immutable,
            min_retention_days: small("min_retention_days", row.min_retention_days)?,
            storage,
            backup_count: unsigned("backup_count", row.backup_count)?,
            created_at: from_text("created_at", &row.created_at)?,
            updated_at: from_text("updated_at", &row.updated_at)?,
        })
    }
}
