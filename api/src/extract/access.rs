//! Inputs of `/tokens` and `/auth`.

use engine::{BackupId, NewToken, Role, Secret};
use serde::Deserialize;
use utoipa::ToSchema;

use super::non_empty;
use crate::error::Failure;

/// Make a token.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct TokenInput {
    /// What the audit log calls its holder; unique.
    #[schema(required = true)]
    #[serde(default)]
    name: String,
    /// `admin`, `operator`, `read-only` or `node`.
    #[schema(required = true)]
    #[serde(default)]
    role: String,
    /// For a node: the only backup that the token is good for.
    #[serde(default)]
    job_id: String,
}

impl TokenInput {
    pub(crate) fn check(self) -> Result<NewToken, Failure> {
        let role = non_empty(self.role).ok_or_else(|| Failure::invalid("role is required", ""))?;
        let job = non_empty(self.job_id).map(|id| BackupId::parse_stored(&id));
        Ok(NewToken {
            name: self.name,
            role: role.parse::<Role>()?,
            job: job.transpose()?,
        })
    }
}

/// Exchange a token for a session.
#[derive(Default, Deserialize, ToSchema)]
pub(crate) struct LoginInput {
    /// Who asks; ignored.
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "decoded so that a wrong type is refused as it always was"
    )]
    appliance_id: String,
    /// The token.
    #[schema(required = true)]
    #[serde(default)]
    token: String,
    /// What asks; ignored.
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "decoded so that a wrong type is refused as it always was"
    )]
    version: String,
}

impl LoginInput {
    pub(crate) fn token(self) -> Secret {
        Secret::new(self.token)
    }
}
