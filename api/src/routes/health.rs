//! `GET /health` and `GET /api/v1/health`: one answer under two names.

use axum::extract::State;

use super::Api;
use super::reply::Reply;
use crate::views::HealthView;

/// Whether the hub can work; asks the database.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health",
    tag = "hub",
    responses(
        (status = 200, body = HealthView),
        (status = 503, description = "the database does not answer", body = HealthView),
    )
)]
pub(crate) async fn health(State(api): State<Api>) -> Reply<HealthView> {
    let healthy = api.engine.healthy().await.is_ok();
    Reply::health(healthy, HealthView::new(healthy, api.clock.now()))
}

/// The same inside the prefix, for callers that know only that.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health_v1",
    tag = "hub",
    responses(
        (status = 200, body = HealthView),
        (status = 503, description = "the database does not answer", body = HealthView),
    )
)]
pub(crate) async fn health_v1(api: State<Api>) -> Reply<HealthView> {
    health(api).await
}
