//! One file per verb: typed input, one engine call, a view.
//!
//! The route and its OpenAPI entry are one declaration, so neither exists without the other.

mod backups;
mod health;
mod metrics;
mod openapi;
pub(crate) mod reply;
mod repositories;
mod vms;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::{Clock, Engine};
use tower_http::cors::{Any, CorsLayer};
use tower_http::trace::TraceLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::{limits, openapi as document};

/// What every route is given.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) engine: Engine,
    pub(crate) clock: Arc<dyn Clock>,
}

/// The REST API of a hub.
///
/// Unknown paths answer 404 in plain text, known paths with another method 405. Requests that
/// take long are not cut: a completion fsyncs before it answers.
pub fn router(engine: Engine, clock: Arc<dyn Clock>) -> Router {
    let (routes, document) = with_document();
    routes
        .merge(openapi::routes(&document))
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(limits::MAX_BODY_BYTES))
        .layer(cors())
        .layer(TraceLayer::new_for_http())
        .with_state(Api { engine, clock })
}

/// Every route, and the document that describes exactly these.
pub(crate) fn with_document() -> (Router<Api>, OpenApi) {
    let v1 = OpenApiRouter::new()
        .merge(backups::routes())
        .merge(vms::routes())
        .routes(routes!(repositories::list))
        .routes(routes!(health::health_v1));
    OpenApiRouter::with_openapi(document::head())
        .routes(routes!(health::health))
        .routes(routes!(metrics::metrics))
        .nest("/api/v1", v1)
        .split_for_parts()
}

fn cors() -> CorsLayer {
    let methods = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ];
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods(methods)
        .allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION])
}

async fn not_found() -> Response {
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    let body = "404 page not found\n";
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, text)], body).into_response()
}
