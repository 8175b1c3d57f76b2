//! `GET /policies/{policy_id}`.

use axum::extract::{Path, State};

use crate::error::{Policies, Refused};
use crate::extract::policy_id;
use crate::routes::{Api, reply::Reply};
use crate::views::PolicyView;

/// One policy.
#[utoipa::path(
    get,
    path = "/policies/{policy_id}",
    operation_id = "show_policy",
    tag = "policies",
    params(("policy_id" = String, Path, description = "Id of the policy")),
    responses(
        (status = 200, body = PolicyView),
        (status = 404, description = "no such policy", body = String, content_type = "text/plain"),
    )
)]
pub(crate) async fn show(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Reply<PolicyView>, Refused<Policies>> {
    let policy = api.engine.policy(&policy_id(&id)?).await?;
    Ok(Reply::ok(PolicyView::from(policy)))
}
