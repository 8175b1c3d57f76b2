//! Refusals: the only place that knows which status a failure has and how its family words it.
//!
//! ```text
//! engine::Error ─┐
//! bad input ─────┴▶ Failure (status, error, details) ─▶ Refused<Family> ─▶ body of the family
//! ```

use std::error::Error as _;
use std::marker::PhantomData;

use axum::http::header::WWW_AUTHENTICATE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use engine::{Clock, Error, ErrorKind, SystemClock};

use crate::routes::reply;
use crate::views::{
    AccessFailure, BackupsFailure, ProblemDetails, RepositoriesFailure, VmContextsFailure,
};

/// What went wrong, before a family gives it its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    status: StatusCode,
    error: String,
    details: String,
}

impl Failure {
    /// The request can never succeed as it is.
    pub(crate) fn invalid(error: impl Into<String>, details: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, details)
    }

    /// The caller is not known.
    pub(crate) fn unauthenticated(error: impl Into<String>, details: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error, details)
    }

    /// What the request names does not exist.
    pub(crate) fn not_found(error: impl Into<String>, details: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error, details)
    }

    /// The body is longer than [`crate::limits::MAX_BODY_BYTES`].
    pub(crate) fn too_large(error: impl Into<String>, details: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, error, details)
    }

    fn new(status: StatusCode, error: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            details: details.into(),
        }
    }

    /// Whether it is the caller who is not known.
    pub(crate) fn is_unauthenticated(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    fn sentence(&self) -> String {
        match self.details.is_empty() {
            true => self.error.clone(),
            false => format!("{}: {}", self.error, self.details),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = status(error.kind);
        if status.is_server_error() {
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            tracing::error!(kind = %error.kind, %error, cause, "request failed");
        }
        Self::new(status, error.message, error.details)
    }
}

fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid | ErrorKind::NoParent => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        // Legacy callers know a node's refusal as 500, like everything that is not their fault.
        ErrorKind::NodeUnreachable
        | ErrorKind::NodeRefused
        | ErrorKind::Corrupt
        | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A group of endpoints whose refusals look alike.
pub(crate) trait Family {
    /// The text for every body that cannot be read.
    const INVALID_BODY: &str = "invalid request body";

    fn respond(failure: Failure) -> Response;
}

/// `/backups`.
pub(crate) struct Backups;
/// `/vm-contexts`.
pub(crate) struct VmContexts;
/// `/repositories`.
pub(crate) struct Repositories;
/// Callers who are not known, wherever they ask, and `/auth`.
pub(crate) struct Access;
/// `/telemetry`.
pub(crate) struct Telemetry;
/// `/policies`, and the copies of a backup.
pub(crate) struct Policies;
/// Endpoints without an older shape: RFC 9457.
pub(crate) struct Problems;

impl Family for Backups {
    fn respond(failure: Failure) -> Response {
        let body = BackupsFailure {
            error: failure.error,
            details: failure.details,
            timestamp: String::new(),
        };
        reply::json(failure.status, "application/json", &body)
    }
}

impl Family for VmContexts {
    fn respond(failure: Failure) -> Response {
        let body = VmContextsFailure {
            error: failure.sentence(),
            timestamp: crate::views::utc(SystemClock.now()),
        };
        reply::json(failure.status, "application/json", &body)
    }
}

impl Family for Repositories {
    fn respond(failure: Failure) -> Response {
        let body = RepositoriesFailure {
            success: false,
            error: failure.sentence(),
        };
        reply::json(failure.status, "application/json", &body)
    }
}

impl Family for Access {
    fn respond(failure: Failure) -> Response {
        let body = AccessFailure {
            error: failure.error,
            details: failure.details,
            timestamp: crate::views::utc(SystemClock.now()),
        };
        let mut response = reply::json(failure.status, "application/json", &body);
        if failure.status == StatusCode::UNAUTHORIZED {
            // RFC 9110, 11.6.1: what the caller is asked for.
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

impl Family for Telemetry {
    const INVALID_BODY: &str = "Invalid request body";

    fn respond(failure: Failure) -> Response {
        reply::text(failure.status, &failure.error)
    }
}

impl Family for Policies {
    fn respond(failure: Failure) -> Response {
        reply::text(failure.status, &failure.sentence())
    }
}

impl Family for Problems {
    fn respond(failure: Failure) -> Response {
        let body = ProblemDetails {
            kind: "about:blank".to_owned(),
            title: failure.error,
            status: failure.status.as_u16(),
            detail: failure.details,
        };
        reply::json(failure.status, "application/problem+json", &body)
    }
}

/// A failure on its way out in the shape of `F`.
pub(crate) struct Refused<F>(Failure, PhantomData<F>);

impl<F> Refused<F> {
    /// The same in the words of an endpoint that has its own.
    pub(crate) fn worded(mut self, error: &str) -> Self {
        error.clone_into(&mut self.0.error);
        self
    }

    /// The same under the heading of an endpoint that has its own.
    pub(crate) fn headed(mut self, heading: &str) -> Self {
        self.0.details = self.0.sentence();
        self.worded(heading)
    }
}

impl<F> From<Failure> for Refused<F> {
    fn from(failure: Failure) -> Self {
        Self(failure, PhantomData)
    }
}

impl<F> From<Error> for Refused<F> {
    fn from(error: Error) -> Self {
        Failure::from(error).into()
    }
}

impl<F: Family> IntoResponse for Refused<F> {
    fn into_response(self) -> Response {
        F::respond(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::to_bytes;

    async fn body_of<F: Family>(error: Error) -> (u16, String, String) {
        let response = Refused::<F>::from(error).into_response();
        let kind = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 16).await.unwrap();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn every_kind_has_its_status() {
        let check = |kind, expected| assert_eq!(status(kind).as_u16(), expected, "{kind}");
        check(ErrorKind::Invalid, 400);
        check(ErrorKind::NoParent, 400);
        check(ErrorKind::Unauthenticated, 401);
        check(ErrorKind::Forbidden, 403);
        check(ErrorKind::NotFound, 404);
        check(ErrorKind::Conflict, 409);
        check(ErrorKind::Corrupt, 500);
        check(ErrorKind::Internal, 500);
        check(ErrorKind::NodeRefused, 500);
        check(ErrorKind::NodeUnreachable, 500);
        check(ErrorKind::Unsupported, 501);
        check(ErrorKind::Unavailable, 503);
        check(ErrorKind::NoSpace, 507);
    }

    #[tokio::test]
    async fn each_family_words_the_same_failure_its_way() {
        let failure = || Error::not_found("VM not found", "vm_name=web");
        let (status, kind, body) = body_of::<Backups>(failure()).await;
        assert_eq!((status, kind.as_str()), (404, "application/json"));
        let expected = r#"{"error":"VM not found","details":"vm_name=web","timestamp":""}"#;
        assert_eq!(body, format!("{expected}\n"));

        let (_, _, body) = body_of::<VmContexts>(failure()).await;
        assert!(
            body.starts_with(r#"{"error":"VM not found: vm_name=web","timestamp":"20"#),
            "{body}"
        );

        let (_, _, body) = body_of::<Repositories>(failure()).await;
        let expected = r#"{"success":false,"error":"VM not found: vm_name=web"}"#;
        assert_eq!(body, format!("{expected}\n"));

        let (_, _, body) = body_of::<Access>(failure()).await;
        let expected = r#"{"error":"VM not found","details":"vm_name=web","timestamp":"20"#;
        assert!(body.starts_with(expected), "{body}");
        let (_, kind, body) = body_of::<Telemetry>(failure()).await;
        assert_eq!(kind, "text/plain; charset=utf-8");
        assert_eq!(body, "VM not found\n");

        let (_, kind, body) = body_of::<Policies>(failure()).await;
        assert_eq!(kind, "text/plain; charset=utf-8");
        assert_eq!(body, "VM not found: vm_name=web\n");

        let (_, kind, body) = body_of::<Problems>(failure()).await;
        assert_eq!(kind, "application/problem+json");
        let expected =
            r#"{"type":"about:blank","title":"VM not found","status":404,"detail":"vm_name=web"}"#;
        assert_eq!(body, format!("{expected}\n"));
    }
}
