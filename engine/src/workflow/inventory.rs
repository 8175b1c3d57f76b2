//! Registers what is backed up and how nodes reach it.

use super::hub::Hub;
use crate::catalog::SealedCredential;
use crate::config::Secret;
use crate::error::Error;
use crate::model::{Credential, NewCredential};
use crate::node::no_key;

/// Stores a credential, its password encrypted.
///
/// # Errors
///
/// `Unsupported` if the hub has no key.
pub(crate) async fn add_credential(
    hub: &Hub,
    credential: NewCredential,
) -> Result<Credential, Error> {
    let key = hub.credential_key.as_ref().ok_or_else(no_key)?;
    let sealed = SealedCredential {
        password_encrypted: key.encrypt(&Secret::new(credential.password))?,
        credential_name: credential.credential_name,
        vcenter_host: credential.vcenter_host,
        username: credential.username,
        datacenter: credential.datacenter,
    };
    hub.catalog.add_credential(&sealed, hub.clock.now()).await
}
