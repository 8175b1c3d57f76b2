//! Whether the hub can work.

use engine::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::utc;

/// Whether the hub can work.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HealthView {
    /// The name under which monitors know this API.
    pub service: String,
    /// `healthy`, or `unhealthy` when the database does not answer.
    pub status: String,
    /// UTC.
    pub timestamp: String,
    /// Version of the hub.
    pub version: String,
    /// `connected` or `disconnected`: asked just now.
    pub database: String,
}

impl HealthView {
    pub(crate) fn new(database_answers: bool, now: Timestamp) -> Self {
        let (status, database) = match database_answers {
            true => ("healthy", "connected"),
            false => ("unhealthy", "disconnected"),
        };
        Self {
            service: "SHA API".to_owned(),
            status: status.to_owned(),
            timestamp: utc(now),
            version: crate::VERSION.to_owned(),
            database: database.to_owned(),
        }
    }
}
