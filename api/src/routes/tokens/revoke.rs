//! `DELETE /tokens/{name}`.

use axum::extract::{Path, State};

use crate::error::{Problems, Refused};
use crate::routes::{Api, reply::Reply};
use crate::views::{ProblemDetails, RevokedTokenView};

/// Revoke a token: the next call with it is refused.
#[utoipa::path(
    delete,
    path = "/tokens/{name}",
    operation_id = "revoke_token",
    tag = "access",
    params(("name" = String, Path, description = "Name of the token")),
    responses(
        (status = 200, body = RevokedTokenView),
        (status = 404, description = "no such token", body = ProblemDetails, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn revoke(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Reply<RevokedTokenView>, Refused<Problems>> {
    api.engine.revoke_token(&name).await?;
    Ok(Reply::ok(RevokedTokenView::new(name)))
}
