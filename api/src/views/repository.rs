//! Repositories.

use engine::{Error, RepositoryId, RepositoryState, RepositorySummary, StorageSeen, write_config};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
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
    pub(crate) fn new(repositories: Vec<(RepositorySummary, RepositoryState)>) -> Self {
        let views = repositories.into_iter();
        Self {
            success: true,
            repositories: views
                .map(|(repository, state)| RepositoryView::new(repository, &state))
                .collect(),
        }
    }
}

/// One repository.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RepositoryAnswer {
    /// `true`.
    pub success: bool,
    /// The repository.
    pub repository: RepositoryView,
}

impl RepositoryAnswer {
    /// One that was made just now, after it was tried.
    pub(crate) fn made(repository: RepositorySummary) -> Self {
        let state = match repository.enabled {
            true => RepositoryState::Ready,
            false => RepositoryState::Disabled,
        };
        Self::found((repository, state))
    }

    pub(crate) fn found((repository, state): (RepositorySummary, RepositoryState)) -> Self {
        Self {
            success: true,
            repository: RepositoryView::new(repository, &state),
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
    #[schema(value_type = Object)]
    pub config: Map<String, Value>,
    /// Whether points are locked after completion.
    pub is_immutable: bool,
    /// How long they are locked at least.
    pub min_retention_days: u32,
    /// `ready`, `disabled` or `broken`.
    pub state: String,
    /// Why it is broken.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state_reason: Option<String>,
    /// What was seen of its storage last; absent before the first look.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub storage_info: Option<StorageInfoView>,
    /// The same in a word.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub storage: Option<StorageUseView>,
    /// UTC.
    pub created_at: String,
    /// UTC.
    pub updated_at: String,
}

impl RepositoryView {
    fn new(repository: RepositorySummary, state: &RepositoryState) -> Self {
        let seen = repository.storage;
        let config = repository.place.as_ref();
        Self {
            storage_info: seen.map(|seen| StorageInfoView::new(&repository, &seen)),
            storage: seen.map(|seen| StorageUseView {
                used_percentage: seen.used_percent(),
            }),
            config: config
                .map(|place| write_config(place, &repository.description))
                .unwrap_or_default(),
            id: repository.id.to_string(),
            name: repository.name,
            kind: repository.repository_type,
            enabled: repository.enabled,
            is_immutable: repository.is_immutable,
            min_retention_days: repository.min_retention_days,
            state: state.as_str().to_owned(),
            state_reason: match state {
                RepositoryState::Broken(reason) => Some(reason.clone()),
                RepositoryState::Ready | RepositoryState::Disabled => None,
            },
            created_at: utc(repository.created_at),
            updated_at: utc(repository.updated_at),
        }
    }
}

/// The storage of a repository.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StorageInfoView {
    /// The repository.
    pub repository_id: String,
    /// Size of the filesystem.
    pub total_bytes: u64,
    /// What is not available.
    pub used_bytes: u64,
    /// What the hub may write.
    pub available_bytes: u64,
    /// Used of all, 0 to 100.
    pub used_percent: f64,
    /// Backups in it, whatever became of them.
    pub backup_count: u64,
    /// UTC.
    pub last_check_at: String,
}

impl StorageInfoView {
    pub(crate) fn new(repository: &RepositorySummary, seen: &StorageSeen) -> Self {
        Self {
            repository_id: repository.id.to_string(),
            total_bytes: seen.total_bytes,
            used_bytes: seen.used_bytes,
            available_bytes: seen.available_bytes,
            used_percent: seen.used_percent(),
            backup_count: repository.backup_count,
            last_check_at: utc(seen.at),
        }
    }
}

/// How full a repository is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StorageUseView {
    /// 0 to 100.
    pub used_percentage: f64,
}

/// What came of a test.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RepositoryTestView {
    /// Whether it can be used.
    pub success: bool,
    /// For people.
    pub message: String,
    /// What was seen.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub storage: Option<TestedStorageView>,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// The same under its other name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_details: Option<String>,
}

/// What a test saw.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TestedStorageView {
    /// Size of the filesystem.
    pub total_bytes: u64,
    /// What the hub may write.
    pub available_bytes: u64,
    /// `true`: a file was made and removed.
    pub writable: bool,
}

impl RepositoryTestView {
    pub(crate) fn new(seen: Result<StorageSeen, Error>) -> Self {
        match seen {
            Ok(seen) => Self {
                success: true,
                message: "Repository configuration is valid and connection test passed".to_owned(),
                storage: Some(TestedStorageView {
                    total_bytes: seen.total_bytes,
                    available_bytes: seen.available_bytes,
                    writable: true,
                }),
                error: None,
                error_details: None,
            },
            Err(error) => Self {
                success: false,
                message: "Repository test failed".to_owned(),
                storage: None,
                error: Some(error.to_string()),
                error_details: Some(error.to_string()),
            },
        }
    }
}

/// What a refresh saw.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RefreshedView {
    /// `true`.
    pub success: bool,
    /// For people.
    pub message: String,
    /// Repositories that answered.
    pub refreshed_count: usize,
    /// Repositories that did not.
    pub failed_count: usize,
}

impl RefreshedView {
    pub(crate) fn new(refreshed: usize, failed: usize) -> Self {
        Self {
            success: true,
            message: format!("Storage information refreshed for {refreshed} repositories"),
            refreshed_count: refreshed,
            failed_count: failed,
        }
    }
}

/// The answer to a deletion.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeletedRepositoryView {
    /// `true`.
    pub success: bool,
    /// For people.
    pub message: String,
    /// The repository that was.
    pub id: String,
}

impl DeletedRepositoryView {
    pub(crate) fn new(id: &RepositoryId) -> Self {
        Self {
            success: true,
            message: "Repository deleted successfully".to_owned(),
            id: id.to_string(),
        }
    }
}

/// The refusal to forget a repository that holds backups.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RepositoryInUse {
    /// `false`.
    pub success: bool,
    /// For people.
    pub error: String,
    /// So many backups.
    pub backup_count: u64,
}

impl RepositoryInUse {
    pub(crate) fn new(backup_count: u64) -> Self {
        Self {
            success: false,
            error: "Cannot delete repository with existing backups".to_owned(),
            backup_count,
        }
    }
}
