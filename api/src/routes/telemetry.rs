//! `POST /telemetry/{job_type}/{job_id}`.

use axum::extract::{Path, State};

use super::{Api, reply::Reply};
use crate::error::{Refused, Telemetry};
use crate::extract::{Body, TelemetryInput, job_id};
use crate::views::TelemetryView;

/// What a client reports of its running backup: a sign of life, and hints at its progress. It never completes a disk; a
/// failure fails the backup; a report that comes after the end changes nothing.
#[utoipa::path(
    post,
    path = "/telemetry/{job_type}/{job_id}",
    operation_id = "telemetry",
    tag = "backups",
    params(
        ("job_type" = String, Path, description = "Any word; clients say backup"),
        ("job_id" = String, Path, description = "Id of the backup"),
    ),
    request_body = TelemetryInput,
    responses(
        (status = 200, body = TelemetryView),
        (status = 400, description = "the body cannot be read", body = String, content_type = "text/plain"),
        (status = 404, description = "no such backup", body = String, content_type = "text/plain"),
    )
)]
pub(crate) async fn telemetry(
    State(api): State<Api>,
    Path((_job_type, job)): Path<(String, String)>,
    body: Body<TelemetryInput, Telemetry>,
) -> Result<Reply<TelemetryView>, Refused<Telemetry>> {
    let id = job_id(&job)?;
    api.engine.telemetry(&id, body.0.into()).await?;
    Ok(Reply::ok(TelemetryView::new(api.clock.now())))
}
