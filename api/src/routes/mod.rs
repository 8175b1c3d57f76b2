//! One file per verb: typed input, one engine call, a view.
//!
//! The route and its OpenAPI entry are one declaration, so neither exists without the other.

mod audit;
mod auth;
mod backups;
mod health;
mod metrics;
mod openapi;
mod policies;
pub(crate) mod reply;
mod repositories;
mod telemetry;
mod tokens;
mod vms;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Extension};
use axum::http::{Method, StatusCode, header};
use axum::middleware::from_fn;
use axum::response::Response;
use engine::{Clock, Engine, Verb};
use tower_http::cors::{Any, CorsLayer};
use tower_http::trace::TraceLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::routes;

use crate::access::{Door, Guarded, Strangers, Trust};
use crate::error::{Access, Problems, Telemetry};
use crate::{limits, openapi as document, request_id};

/// What every route is given.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) engine: Engine,
    pub(crate) clock: Arc<dyn Clock>,
}

/// The REST API of a hub.
///
/// Unknown paths answer 404 in plain text, known paths with another method 405. Requests that
/// take long are not cut: a completion fsyncs before it answers. Callers are known by their token;
/// their address counts only where the server tells it (`ConnectInfo<SocketAddr>`).
pub fn router(engine: Engine, clock: Arc<dyn Clock>, trust: Trust) -> Router {
    let (routes, document) = with_document();
    let door = Door {
        engine: engine.clone(),
        clock: Arc::clone(&clock),
        trust,
        strangers: Arc::new(Strangers::default()),
    };
    routes
        .merge(openapi::routes(&document))
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(limits::MAX_BODY_BYTES))
        .layer(Extension(door))
        .layer(cors())
        .layer(TraceLayer::new_for_http().make_span_with(request_id::span))
        .layer(from_fn(request_id::assign))
        .with_state(Api { engine, clock })
}

/// Every route, and the document that describes exactly these.
pub(crate) fn with_document() -> (Router<Api>, OpenApi) {
    let telemetry =
        Guarded::<Telemetry>::new().allow(Verb::ReportTelemetry, routes!(telemetry::telemetry));
    let audit = Guarded::<Problems>::new().allow(Verb::ReadAudit, routes!(audit::audit));
    let v1 = Guarded::<Access>::new()
        .merge(backups::routes())
        .merge(telemetry)
        .merge(vms::routes())
        .merge(repositories::routes())
        .merge(policies::routes())
        .merge(auth::routes())
        .merge(tokens::routes())
        .merge(audit)
        .open(routes!(health::health_v1));
    Guarded::<Access>::with_openapi(document::head())
        .open(routes!(health::health))
        .allow(Verb::ReadMetrics, routes!(metrics::metrics))
        .nest("/api/v1", v1)
        .into_parts()
}

/// Pages of every origin may call: there are no cookies, so a browser adds nothing of its own to such
/// a call, and where tokens are required a page can do what the one that it was given allows. Where
/// this machine is trusted, a browser on it is, too. It lies before the doors: a preflight carries no
/// token and is answered on every path.
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
        .allow_headers([
            header::CONTENT_TYPE,
            header::AUTHORIZATION,
            request_id::HEADER,
        ])
        .expose_headers([request_id::HEADER])
}

async fn not_found() -> Response {
    reply::text(StatusCode::NOT_FOUND, "404 page not found")
}
