//! `GET /audit`.

use axum::extract::State;

use super::Api;
use super::reply::Reply;
use crate::error::{Problems, Refused};
use crate::extract::{AuditQuery, Params};
use crate::views::{AuditListView, ProblemDetails};

/// Who changed what, newest first. An entry is written when a call has ended; refused ones have
/// theirs.
#[utoipa::path(
    get,
    path = "/audit",
    operation_id = "audit",
    tag = "access",
    params(AuditQuery),
    responses(
        (status = 200, body = AuditListView),
        (status = 400, description = "limit or before is no number", body = ProblemDetails, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn audit(
    State(api): State<Api>,
    Params(query): Params<AuditQuery>,
) -> Result<Reply<AuditListView>, Refused<Problems>> {
    let entries = api.engine.audit(&query.check()?).await?;
    Ok(Reply::ok(AuditListView::new(entries)))
}
