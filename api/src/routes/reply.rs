//! Answers in JSON, each ending with a newline as clients of the legacy hub know them.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// A view and the status that it goes out with.
pub(crate) struct Reply<T>(StatusCode, T);

impl<T: Serialize> Reply<T> {
    /// 200.
    pub(crate) fn ok(view: T) -> Self {
        Self(StatusCode::OK, view)
    }

    /// 201.
    pub(crate) fn created(view: T) -> Self {
        Self(StatusCode::CREATED, view)
    }

    /// 201 for something new, 200 for something that was updated.
    pub(crate) fn created_or_updated(created: bool, view: T) -> Self {
        match created {
            true => Self::created(view),
            false => Self::ok(view),
        }
    }

    /// 401.
    pub(crate) fn unauthorized(view: T) -> Self {
        Self(StatusCode::UNAUTHORIZED, view)
    }

    /// 200, or 503 when the hub cannot work.
    pub(crate) fn health(healthy: bool, view: T) -> Self {
        match healthy {
            true => Self::ok(view),
            false => Self(StatusCode::SERVICE_UNAVAILABLE, view),
        }
    }
}

impl<T: Serialize> IntoResponse for Reply<T> {
    fn into_response(self) -> Response {
        json(self.0, "application/json", &self.1)
    }
}

/// A response of one line of plain text.
pub(crate) fn text(status: StatusCode, line: &str) -> Response {
    let kind = "text/plain; charset=utf-8";
    (status, [(header::CONTENT_TYPE, kind)], format!("{line}\n")).into_response()
}

/// A response with this body in JSON and a newline.
pub(crate) fn json(
    status: StatusCode,
    content_type: &'static str,
    body: &impl Serialize,
) -> Response {
    let mut text = serde_json::to_vec(body).expect("views have string keys and no failing parts");
    text.push(b'\n');
    (status, [(header::CONTENT_TYPE, content_type)], text).into_response()
}
