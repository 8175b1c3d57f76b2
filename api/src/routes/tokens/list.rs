//! `GET /tokens`.

use axum::extract::State;

use crate::error::{Problems, Refused};
use crate::routes::{Api, reply::Reply};
use crate::views::{ProblemDetails, TokenListView};

/// All tokens, without their texts.
#[utoipa::path(
    get,
    path = "/tokens",
    operation_id = "list_tokens",
    tag = "access",
    responses(
        (status = 200, body = TokenListView),
        (status = 500, body = ProblemDetails, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list(
    State(api): State<Api>,
) -> Result<Reply<TokenListView>, Refused<Problems>> {
    Ok(Reply::ok(TokenListView::new(api.engine.tokens().await?)))
}
