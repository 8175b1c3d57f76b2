//! Tokens, always hashed.

use sqlx::{FromRow, SqliteConnection};

use super::rows::{optional, word};
use super::timestamp::{from_text, to_text};
use super::{Catalog, open};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::id::BackupId;
use crate::limits::TOKENS_MAX;
use crate::model::{NewToken, Token, TokenHash};

#[derive(FromRow)]
struct TokenRow {
    name: String,
    role: String,
    backup_job_id: Option<String>,
    created_at: String,
}

impl Catalog {
    /// Stores a token. When there is no room for it, the tokens of ended jobs go first.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) as [`NewToken::check`], [`NotFound`](crate::ErrorKind::NotFound) for an unknown job,
    /// [`Conflict`](crate::ErrorKind::Conflict) if the name is taken or there are too many.
    pub async fn add_token(
        &self,
        token: &NewToken,
        hash: TokenHash,
        now: Timestamp,
    ) -> Result<Token, Error> {
        token.check()?;
        let mut tx = self.write().await?;
        check_free(&mut tx, token).await?;
        make_room(&mut tx).await?;
        sqlx::query(
            "INSERT INTO access_tokens (name, role, hash, backup_job_id, created_at) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(&token.name)
        .bind(token.role.as_str())
        .bind(hash.0.as_slice())
        .bind(token.job.as_ref().map(BackupId::as_str))
        .bind(to_text(now))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Token {
            name: token.name.clone(),
            role: token.role,
            job: token.job.clone(),
            created_at: now,
        })
    }

    /// The token with this hash.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn token(&self, hash: TokenHash) -> Result<Option<Token>, Error> {
        let row: Option<TokenRow> = sqlx::query_as(
            "SELECT name, role, backup_job_id, created_at FROM access_tokens WHERE hash = ?",
        )
        .bind(hash.0.as_slice())
        .fetch_optional(self.reader())
        .await?;
        row.map(TryInto::try_into).transpose()
    }

    /// Every token, by name.
    ///
    /// # Errors
    /// As any call to the database.
    pub async fn tokens(&self) -> Result<Vec<Token>, Error> {
        let rows: Vec<TokenRow> = sqlx::query_as(
            "SELECT name, role, backup_job_id, created_at FROM access_tokens ORDER BY name LIMIT ?",
        )
        .bind(TOKENS_MAX)
        .fetch_all(self.reader())
        .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Forgets a token: the next call with it is refused.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is none of this name.
    pub async fn revoke_token(&self, name: &str) -> Result<(), Error> {
        let mut tx = self.write().await?;
        if !is_taken(&mut tx, name).await? {
            return Err(Error::not_found("token not found", format!("name={name}")));
        }
        sqlx::query("DELETE FROM access_tokens WHERE name = ?")
            .bind(name)
            .execute(&mut *tx)
            .await?;
        tx.commit().await.map_err(Error::from)
    }

    /// Whether the database at `url` has a token; one that does not exist or is of an earlier version has none. Changes nothing.
    ///
    /// # Errors
    /// As [`Catalog::open`].
    pub async fn has_tokens(url: &str) -> Result<bool, Error> {
        let Some(mut connection) = open::look(url).await? else {
            return Ok(false);
        };
        let tables: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM sqlite_master WHERE name = 'access_tokens'")
                .fetch_one(&mut connection)
                .await?;
        if tables == 0 {
            return Ok(false);
        }
        Ok(
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM access_tokens)")
                .fetch_one(&mut connection)
                .await?,
        )
    }
}

async fn check_free(connection: &mut SqliteConnection, token: &NewToken) -> Result<(), Error> {
    if is_taken(connection, &token.name).await? {
        let details = format!("name={}", token.name);
        return Err(Error::conflict("token name is taken", details));
    }
    let Some(job) = &token.job else { return Ok(()) };
    let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM backup_jobs WHERE id = ?)")
        .bind(job.as_str())
        .fetch_one(connection)
        .await?;
    match known {
        true => Ok(()),
        false => Err(Error::not_found(
            "backup job not found",
            format!("job_id={job}"),
        )),
    }
}

async fn is_taken(connection: &mut SqliteConnection, name: &str) -> Result<bool, Error> {
    Ok(
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM access_tokens WHERE name = ?)")
            .bind(name)
            .fetch_one(connection)
            .await?,
    )
}

async fn make_room(connection: &mut SqliteConnection) -> Result<(), Error> {
    if count(connection).await? < TOKENS_MAX {
        return Ok(());
    }
    sqlx::query(
        "DELETE FROM access_tokens WHERE backup_job_id IN \
         (SELECT id FROM backup_jobs WHERE status NOT IN ('pending', 'running'))",
    )
    .execute(&mut *connection)
    .await?;
    if count(connection).await? < TOKENS_MAX {
        return Ok(());
    }
    Err(Error::conflict(
        "too many tokens",
        format!("max={TOKENS_MAX}"),
    ))
}

async fn count(connection: &mut SqliteConnection) -> Result<u32, Error> {
    Ok(sqlx::query_scalar("SELECT COUNT(*) FROM access_tokens")
        .fetch_one(connection)
        .await?)
}

impl TryFrom<TokenRow> for Token {
    type Error = Error;

    fn try_from(row: TokenRow) -> Result<Self, Error> {
        Ok(Self {
            name: row.name,
            role: word("role", &row.role)?,
            job: optional(
                row.backup_job_id.as_deref(),
                "backup_job_id",
                BackupId::parse_stored,
            )?,
            created_at: from_text("created_at", &row.created_at)?,
        })
    }
}
