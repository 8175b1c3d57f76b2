//! `POST /tokens`.

use axum::extract::State;

use crate::error::{Problems, Refused};
use crate::extract::{Body, TokenInput};
use crate::routes::{Api, reply::Reply};
use crate::views::{CreatedTokenView, ProblemDetails};

/// Make a token. Its text is told this once; the hub keeps only a hash.
#[utoipa::path(
    post,
    path = "/tokens",
    operation_id = "create_token",
    tag = "access",
    request_body = TokenInput,
    responses(
        (status = 201, body = CreatedTokenView),
        (status = 400, description = "the request", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 404, description = "no such job", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "the name is taken", body = ProblemDetails, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn create(
    State(api): State<Api>,
    body: Body<TokenInput, Problems>,
) -> Result<Reply<CreatedTokenView>, Refused<Problems>> {
    let (token, text) = api.engine.create_token(&body.0.check()?).await?;
    let name = token.name.clone();
    Ok(Reply::created(CreatedTokenView::new(token, &text)).about("name", &name))
}
