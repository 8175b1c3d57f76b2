//! Inputs of `/tokens`, `/auth` and `/audit`.

use std::num::ParseIntError;
use std::str::FromStr;

use engine::{AuditFilter, BackupId, NewToken, Role, Secret};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::non_empty;
use crate::error::Failure;
use crate::limits::AUDIT_PAGE_ROWS;

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

/// Which entries of the audit log; all that are given must hold.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditQuery {
    /// A token's name, `loopback`, `unknown`, …
    #[param(required = false)]
    actor: String,
    /// What was asked for, such as `start_backup`.
    #[param(required = false)]
    verb: String,
    /// `done`, `refused` or `failed`.
    #[param(required = false)]
    outcome: String,
    /// Only entries older than this one, a number.
    #[param(required = false)]
    before: String,
    /// Most entries to return, a number; 100 when absent, 1000 at most.
    #[param(required = false)]
    limit: String,
}

impl AuditQuery {
    pub(crate) fn check(self) -> Result<AuditFilter, Failure> {
        Ok(AuditFilter {
            actor: non_empty(self.actor),
            verb: non_empty(self.verb),
            outcome: non_empty(self.outcome),
            before: number("before", &self.before)?,
            limit: Some(number("limit", &self.limit)?.unwrap_or(AUDIT_PAGE_ROWS)),
        })
    }
}

fn number<T: FromStr<Err = ParseIntError>>(name: &str, text: &str) -> Result<Option<T>, Failure> {
    match text {
        "" => Ok(None),
        digits => digits.parse().map(Some).map_err(|error: ParseIntError| {
            Failure::invalid(format!("invalid {name}"), error.to_string())
        }),
    }
}
