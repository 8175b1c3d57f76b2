//! `GET /policies`.

use axum::extract::State;

use crate::error::{Policies, Refused};
use crate::routes::{Api, reply::Reply};
use crate::views::PolicyView;

/// All policies, by name.
#[utoipa::path(
    get,
    path = "/policies",
    operation_id = "list_policies",
    tag = "policies",
    responses(
        (status = 200, body = Vec<PolicyView>),
        (status = 500, body = String, content_type = "text/plain"),
    )
)]
pub(crate) async fn list(
    State(api): State<Api>,
) -> Result<Reply<Vec<PolicyView>>, Refused<Policies>> {
    let policies = api.engine.policies().await?;
    Ok(Reply::ok(
        policies.into_iter().map(PolicyView::from).collect(),
    ))
}
