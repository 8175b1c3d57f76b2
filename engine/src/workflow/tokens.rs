//! Makes tokens and knows their holders.

use super::hub::Hub;
use crate::catalog::Catalog;
use crate::clock::Timestamp;
use crate::config::Secret;
use crate::error::{Error, ErrorKind};
use crate::id::BackupId;
use crate::model::{BoundJob, Caller, NewToken, Token, TokenHash, token_text};
use crate::random;

/// Makes a token; its text is told this once.
pub(crate) async fn create_token(
    catalog: &Catalog,
    token: &NewToken,
    now: Timestamp,
) -> Result<(Token, Secret), Error> {
    let text = token_text(random::bytes());
    let hash =
        TokenHash::of(text.reveal()).ok_or_else(|| Error::internal("malformed token", ""))?;
    let made = catalog.add_token(token, hash, now).await?;
    Ok((made, text))
}

/// Who holds the token.
///
/// # Errors
///
/// `Unauthenticated` for a token that is not known.
pub(crate) async fn authenticate(hub: &Hub, presented: &Secret) -> Result<Caller, Error> {
    let known = match TokenHash::of(presented.reveal()) {
        Some(hash) => hub.catalog.token(hash).await?,
        None => None,
    };
    let token = known
        .ok_or_else(|| Error::new(ErrorKind::Unauthenticated, "Invalid or expired token", ""))?;
    let job = match &token.job {
        Some(id) => Some(bound_job(hub, id).await?),
        None => None,
    };
    Ok(Caller {
        name: token.name,
        role: token.role,
        job,
    })
}

async fn bound_job(hub: &Hub, id: &BackupId) -> Result<BoundJob, Error> {
    let backup = hub.catalog.backup(id).await?;
    let vm = hub
        .catalog
        .vm_by_name_or_id(backup.vm_context_id.as_str())
        .await?;
    Ok(BoundJob {
        id: backup.id,
        vm,
        is_running: !backup.status.has_ended(),
    })
}
