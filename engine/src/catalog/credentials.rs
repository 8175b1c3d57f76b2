//! Credentials, always encrypted.

use sqlx::FromRow;

use super::timestamp::to_text;
use super::{Catalog, SealedCredential, StoredCredential};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::limits::{NAME_CHARS_MAX, SEALED_PASSWORD_BYTES_MAX};
use crate::model::{Credential, check_text};

#[derive(FromRow)]
struct CredentialRow {
    id: i64,
    credential_name: String,
    vcenter_host: String,
    username: String,
    password_encrypted: String,
    datacenter: String,
}

impl Catalog {
    /// Stores a credential.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for an empty or overlong text, [`Conflict`](crate::ErrorKind::Conflict) if the name is taken.
    pub async fn add_credential(
        &self,
        credential: &SealedCredential,
        now: Timestamp,
    ) -> Result<Credential, Error> {
        check(credential)?;
        let mut tx = self.write().await?;
        let taken: Option<i64> =
            sqlx::query_scalar("SELECT id FROM vmware_credentials WHERE credential_name = ?")
                .bind(&credential.credential_name)
                .fetch_optional(&mut *tx)
                .await?;
        if taken.is_some() {
            let details = format!("credential_name={}", credential.credential_name);
            return Err(Error::conflict("credential name is taken", details));
        }
        let inserted = sqlx::query(
            "INSERT INTO vmware_credentials (credential_name, vcenter_host, username, password_encrypted, datacenter, \
             created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&credential.credential_name)
        .bind(&credential.vcenter_host)
        .bind(&credential.username)
        .bind(&credential.password_encrypted)
        .bind(&credential.datacenter)
        .bind(to_text(now))
        .bind(to_text(now))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Credential {
            id: inserted.last_insert_rowid(),
            credential_name: credential.credential_name.clone(),
            vcenter_host: credential.vcenter_host.clone(),
            username: credential.username.clone(),
            datacenter: credential.datacenter.clone(),
        })
    }

    /// A credential with its encrypted password.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is none with this id.
    pub async fn credential(&self, id: i64) -> Result<StoredCredential, Error> {
        let row: Option<CredentialRow> = sqlx::query_as(
            "SELECT id, credential_name, vcenter_host, username, password_encrypted, datacenter \
             FROM vmware_credentials WHERE id = ?",
        )
        .bind(id)
        .fetch_optional(self.reader())
        .await?;
        let row = row.ok_or_else(|| {
            Error::not_found("credential not found", format!("credential_id={id}"))
        })?;
        Ok(StoredCredential {
            credential: Credential {
                id: row.id,
                credential_name: row.credential_name,
                vcenter_host: row.vcenter_host,
                username: row.username,
                datacenter: row.datacenter,
            },
            password_encrypted: row.password_encrypted,
        })
    }
}

fn check(credential: &SealedCredential) -> Result<(), Error> {
    let required = [
        ("credential_name", &credential.credential_name),
        ("vcenter_host", &credential.vcenter_host),
        ("username", &credential.username),
    ];
    for (field, text) in required {
        if text.trim().is_empty() {
            return Err(Error::invalid(format!("{field} is required"), ""));
        }
        check_text(field, text, NAME_CHARS_MAX)?;
    }
    check_text("datacenter", &credential.datacenter, NAME_CHARS_MAX)?;
    let length = credential.password_encrypted.len();
    if length == 0 || length > SEALED_PASSWORD_BYTES_MAX {
        let details = format!("encrypted_bytes={length} max={SEALED_PASSWORD_BYTES_MAX}");
        return Err(Error::invalid("password is empty or too long", details));
    }
    Ok(())
}
