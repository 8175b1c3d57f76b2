//! The answer to a client's report.

use engine::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::utc;

/// The report was taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TelemetryView {
    /// `success`.
    pub status: String,
    /// A sentence for people.
    pub message: String,
    /// UTC.
    pub timestamp: String,
}

impl TelemetryView {
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            status: "success".to_owned(),
            message: "Telemetry received and processed".to_owned(),
            timestamp: utc(now),
        }
    }
}
