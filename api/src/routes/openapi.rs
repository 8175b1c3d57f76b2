//! `GET /openapi.json`, outside and inside the prefix.

use axum::Router;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use utoipa::openapi::OpenApi;

use super::{Api, reply};

pub(crate) fn routes(document: &OpenApi) -> Router<Api> {
    let document = serde_json::to_value(document).expect("an OpenAPI document is JSON");
    let answer = move || {
        let document = document.clone();
        async move { answer(&document) }
    };
    Router::new()
        .route("/openapi.json", get(answer.clone()))
        .route("/api/v1/openapi.json", get(answer))
}

fn answer(document: &serde_json::Value) -> Response {
    reply::json(StatusCode::OK, "application/json", document)
}
