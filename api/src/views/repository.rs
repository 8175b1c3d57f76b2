//! Repositories.

use engine::RepositorySummary;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::utc;

/// All repositories.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RepositoryListView {
    /// `true`.
    pub success: bool,
    /// In a stable order; never null.
    pub repositories: Vec<RepositoryView>,
}

impl RepositoryListView {
    pub(crate) fn new(repositories: Vec<RepositorySummary>) -> Self {
        Self {
            success: true,
            repositories: repositories.into_iter().map(RepositoryView::from).collect(),
        }
    }
}

/// A place where images are kept.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RepositoryView {
    /// What the start of a backup names.
    pub id: String,
    /// For people.
    pub name: String,
    /// `local`, `nfs`, `cifs`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether backups may go there.
    pub enabled: bool,
    /// Where it is; secrets are never told.
    pub config: RepositoryConfigView,
    /// Whether points are locked after completion.
    pub is_immutable: bool,
    /// How long they are locked at least.
    pub min_retention_days: u32,
    /// UTC.
    pub created_at: String,
    /// UTC.
    pub updated_at: String,
}

/// Where a repository is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RepositoryConfigView {
    /// Folder on the hub.
    pub path: String,
}

impl From<RepositorySummary> for RepositoryView {
    fn from(repository: RepositorySummary) -> Self {
        let created_at = utc(repository.created_at);
        Self {
            id: repository.id.to_string(),
            name: repository.name,
            kind: repository.repository_type,
            enabled: repository.enabled,
            config: RepositoryConfigView {
                path: repository.path,
            },
            // No verb makes a repository immutable or edits one yet.
            is_immutable: false,
            min_retention_days: 0,
            updated_at: created_at.clone(),
            created_at,
        }
    }
}
