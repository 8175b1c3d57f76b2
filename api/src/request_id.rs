//! An id for every request: in its answer, in the log lines of its task, in the audit log.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

use crate::limits::REQUEST_ID_BYTES_MAX;

/// Carries the id in both directions.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// Gives the request an id: the caller's own where it is harmless, else a new one.
pub(crate) async fn assign(mut request: Request, next: Next) -> Response {
    let told = request.headers().get(HEADER).and_then(harmless);
    let id = told.unwrap_or_else(|| Uuid::new_v4().to_string());
    let header = HeaderValue::from_str(&id).expect("an id has only harmless characters");
    request.extensions_mut().insert(RequestId(id));
    let mut response = next.run(request).await;
    response.headers_mut().insert(HEADER, header);
    response
}

/// The span of a request: what its log lines have in common. Of the highest level, because a filter that lets a line through
/// must let its span through.
pub(crate) fn span<B>(request: &axum::http::Request<B>) -> tracing::Span {
    let id = request.extensions().get::<RequestId>();
    let request_id = id.map(|RequestId(id)| id.as_str()).unwrap_or_default();
    let (method, path) = (request.method(), request.uri().path());
    tracing::error_span!("request", request_id, %method, path)
}

fn harmless(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let fits = (1..=REQUEST_ID_BYTES_MAX).contains(&text.len());
    (fits && text.bytes().all(allowed)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_may_choose_only_a_harmless_id() {
        let check = |text: &'static str, kept: bool| {
            let value = HeaderValue::from_static(text);
            assert_eq!(harmless(&value).is_some(), kept, "{text:?}");
        };
        check("4f1c-A_b.2", true);
        check("", false);
        check("a b", false);
        check("a\"b", false);
        check("{}", false);
        let longest = "x".repeat(REQUEST_ID_BYTES_MAX);
        let kept = |text: &str| harmless(&HeaderValue::from_str(text).unwrap()).is_some();
        assert!(kept(&longest));
        assert!(!kept(&format!("{longest}x")));
    }
}
