//! Answers in JSON, each ending with a newline as clients of the legacy hub know them.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// A view and the status that it goes out with.
pub(crate) struct Reply<T> {
    status: StatusCode,
    view: T,
    subject: Option<Subject>,
}

/// What the audit log calls the object of a request that made one: `name=value`.
#[derive(Debug, Clone)]
pub(crate) struct Subject(pub(crate) String);

impl<T: Serialize> Reply<T> {
    fn with(status: StatusCode, view: T) -> Self {
        Self {
            status,
            view,
            subject: None,
        }
    }

    /// Says what the request was about, where its path does not.
    pub(crate) fn about(mut self, name: &str, value: &str) -> Self {
        self.subject = Some(Subject(format!("{name}={value}")));
        self
    }

    /// 200.
    pub(crate) fn ok(view: T) -> Self {
        Self::with(StatusCode::OK, view)
    }

    /// 201.
    pub(crate) fn created(view: T) -> Self {
        Self::with(StatusCode::CREATED, view)
    }

    /// 201 for something new, 200 for something that was updated.
    pub(crate) fn created_or_updated(created: bool, view: T) -> Self {
        match created {
            true => Self::created(view),
            false => Self::ok(view),
        }
    }

    /// 409.
    pub(crate) fn conflict(view: T) -> Self {
        Self::with(StatusCode::CONFLICT, view)
    }

    /// 401.
    pub(crate) fn unauthorized(view: T) -> Self {
        Self::with(StatusCode::UNAUTHORIZED, view)
    }

    /// 200, or 503 when the hub cannot work.
    pub(crate) fn health(healthy: bool, view: T) -> Self {
        match healthy {
            true => Self::ok(view),
            false => Self::with(StatusCode::SERVICE_UNAVAILABLE, view),
        }
    }
}

impl<T: Serialize> IntoResponse for Reply<T> {
    fn into_response(self) -> Response {
        let mut response = json(self.status, "application/json", &self.view);
        if let Some(subject) = self.subject {
            response.extensions_mut().insert(subject);
        }
        response
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
