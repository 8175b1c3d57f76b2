//! `POST /vmware-credentials`.

use axum::extract::State;

use crate::error::{Problems, Refused};
use crate::extract::{Body, CredentialInput};
use crate::routes::{Api, reply::Reply};
use crate::views::{CredentialView, ProblemDetails};

/// Record credentials of a vCenter; the password never comes back.
#[utoipa::path(
    post,
    path = "/vmware-credentials",
    operation_id = "add_credential",
    tag = "vms",
    request_body = CredentialInput,
    responses(
        (status = 201, body = CredentialView),
        (status = 400, description = "the request", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "the name is taken", body = ProblemDetails, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn create(
    State(api): State<Api>,
    body: Body<CredentialInput, Problems>,
) -> Result<Reply<CredentialView>, Refused<Problems>> {
    let credential = api.engine.add_credential(body.0.check()?).await?;
    let id = credential.id.to_string();
    Ok(Reply::created(CredentialView::from(credential)).about("credential_id", &id))
}
