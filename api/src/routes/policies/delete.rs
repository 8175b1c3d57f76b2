//! `DELETE /policies/{policy_id}`.

use axum::extract::{Path, State};

use crate::error::{Policies, Refused};
use crate::extract::policy_id;
use crate::routes::{Api, reply::Reply};
use crate::views::DeletedPolicyView;

/// Delete a policy with its rules; backups and copies that came of it stay.
#[utoipa::path(
    delete,
    path = "/policies/{policy_id}",
    operation_id = "delete_policy",
    tag = "policies",
    params(("policy_id" = String, Path, description = "Id of the policy")),
    responses(
        (status = 200, body = DeletedPolicyView),
        (status = 404, description = "no such policy", body = String, content_type = "text/plain"),
    )
)]
pub(crate) async fn delete(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Reply<DeletedPolicyView>, Refused<Policies>> {
    let id = policy_id(&id)?;
    api.engine.delete_policy(&id).await?;
    Ok(Reply::ok(DeletedPolicyView::new(id)))
}
