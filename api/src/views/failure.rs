//! The bodies of refusals: each family of endpoints has its own, and clients rely on them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `/backups`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupsFailure {
    /// What went wrong, in a text that clients know.
    pub error: String,
    /// Which and why.
    pub details: String,
    /// Always present and always empty.
    pub timestamp: String,
}

/// A caller who is not known, wherever it asks; and `/auth`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccessFailure {
    /// What went wrong, in a text that clients know.
    pub error: String,
    /// Which and why.
    pub details: String,
    /// UTC.
    pub timestamp: String,
}

/// `/vm-contexts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmContextsFailure {
    /// What went wrong.
    pub error: String,
    /// UTC.
    pub timestamp: String,
}

/// `/repositories`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RepositoriesFailure {
    /// `false`.
    pub success: bool,
    /// What went wrong.
    pub error: String,
}

/// A problem document (RFC 9457): the endpoints that have no older shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemDetails {
    /// `about:blank`: the status says the kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// What went wrong, the same text for every occurrence.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// This occurrence: which and why.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub detail: String,
}
