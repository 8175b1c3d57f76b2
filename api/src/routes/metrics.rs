//! `GET /metrics`.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use crate::metrics;

/// Counters and gauges of this process, in the text format of Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "hub",
    responses((
        status = 200,
        content_type = "application/openmetrics-text",
        description = "one line per metric and labels, with HELP and TYPE",
        body = String,
    ))
)]
pub(crate) async fn metrics(State(api): State<Api>) -> Response {
    match metrics::text(&api.engine) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
