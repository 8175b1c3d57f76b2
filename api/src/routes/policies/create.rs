//! `POST /policies`.

use axum::extract::State;

use crate::error::{Policies, Refused};
use crate::extract::{Body, PolicyInput};
use crate::routes::{Api, reply::Reply};
use crate::views::PolicyView;

/// Make a policy with its rules, or nothing of it. It is recorded; nothing acts on it yet.
#[utoipa::path(
    post,
    path = "/policies",
    operation_id = "create_policy",
    tag = "policies",
    request_body = PolicyInput,
    responses(
        (status = 201, body = PolicyView),
        (status = 400, description = "the request", body = String, content_type = "text/plain"),
        (status = 404, description = "no such repository", body = String, content_type = "text/plain"),
        (status = 409, description = "the name or the id of a rule is taken", body = String, content_type = "text/plain"),
    )
)]
pub(crate) async fn create(
    State(api): State<Api>,
    body: Body<PolicyInput, Policies>,
) -> Result<Reply<PolicyView>, Refused<Policies>> {
    let policy = body.0.check()?;
    match api.engine.create_policy(policy).await {
        Ok(policy) => Ok(Reply::created(PolicyView::from(policy))),
        Err(error) => Err(Refused::from(error).headed("Failed to create policy")),
    }
}
