//! Inputs of `/repositories`. The texts of refusals are the wire contract.

use engine::{Error, ErrorKind, NewRepository, RepositoryConfig, RepositorySummary, read_config};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::non_empty;
use crate::error::Failure;

/// Make a repository.
#[derive(Default, Deserialize, ToSchema)]
pub(crate) struct RepositoryInput {
    /// For people; unique.
    #[schema(required = true)]
    #[serde(default)]
    name: String,
    /// `local`, `nfs`, `cifs` or `smb`.
    #[schema(required = true)]
    #[serde(default, rename = "type")]
    kind: String,
    /// Whether backups may go there; not, if absent.
    #[serde(default)]
    enabled: bool,
    /// Where it is: `path`; or `server`, `export_path` (NFS) or `share_name` (SMB), `mount_point`,
    /// `mount_options` (a text with commas, or a list), `username`, `password`, `domain`. And a
    /// `description`.
    #[schema(required = true, value_type = Object)]
    #[serde(default)]
    config: Map<String, Value>,
    /// Whether points are locked after completion.
    #[serde(default)]
    is_immutable: bool,
    /// How long they are locked at least.
    #[serde(default)]
    min_retention_days: u32,
}

impl RepositoryInput {
    pub(crate) fn check(self) -> Result<NewRepository, Failure> {
        if self.name.trim().is_empty() {
            return Err(Failure::invalid("Repository name is required", ""));
        }
        let config = config_of(&self.kind, &self.config)?;
        let new = NewRepository {
            name: self.name,
            repository_type: self.kind,
            enabled: self.enabled,
            place: config.place,
            description: config.description,
            password: config.password,
            is_immutable: self.is_immutable,
            min_retention_days: self.min_retention_days,
        };
        new.check()?;
        Ok(new)
    }
}

/// Try a place.
#[derive(Default, Deserialize, ToSchema)]
pub(crate) struct PlaceInput {
    /// `local`, `nfs`, `cifs` or `smb`.
    #[schema(required = true)]
    #[serde(default, rename = "type")]
    kind: String,
    /// As for a repository.
    #[schema(required = true, value_type = Object)]
    #[serde(default)]
    config: Map<String, Value>,
}

impl PlaceInput {
    pub(crate) fn check(self) -> Result<RepositoryConfig, Failure> {
        config_of(&self.kind, &self.config)
    }
}

fn config_of(kind: &str, config: &Map<String, Value>) -> Result<RepositoryConfig, Failure> {
    let shown = match kind {
        "" => return Err(Failure::invalid("Repository type is required", "")),
        "nfs" => "NFS",
        "cifs" | "smb" => "CIFS",
        other => other,
    };
    let refused = |error: Error| match error.kind {
        ErrorKind::Unsupported => {
            let shown: String = kind.chars().take(80).collect();
            Failure::invalid(format!("Unsupported repository type: {shown}"), "")
        }
        _ => Failure::invalid(
            format!("Invalid {shown} repository config"),
            error.to_string(),
        ),
    };
    let config = read_config(kind, config).map_err(refused)?;
    config.place.check().map_err(refused)?;
    Ok(config)
}

/// Which repositories; all that are given must hold.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct RepositoryQuery {
    /// `local`, `nfs`, `cifs`, `smb`, …
    #[param(required = false)]
    #[serde(rename = "type")]
    kind: String,
    /// `true` or `false`.
    #[param(required = false)]
    enabled: String,
}

/// A checked [`RepositoryQuery`].
pub(crate) struct WantedRepositories {
    kind: Option<String>,
    enabled: Option<bool>,
}

impl RepositoryQuery {
    pub(crate) fn check(self) -> Result<WantedRepositories, Failure> {
        let enabled = non_empty(self.enabled).map(|text| text.parse::<bool>());
        Ok(WantedRepositories {
            kind: non_empty(self.kind),
            enabled: enabled
                .transpose()
                .map_err(|error| Failure::invalid("invalid enabled", error.to_string()))?,
        })
    }
}

impl WantedRepositories {
    pub(crate) fn takes(&self, repository: &RepositorySummary) -> bool {
        let kind = self.kind.as_ref();
        kind.is_none_or(|kind| *kind == repository.repository_type)
            && self
                .enabled
                .is_none_or(|enabled| enabled == repository.enabled)
    }
}
