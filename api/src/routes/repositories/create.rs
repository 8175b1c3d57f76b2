//! `POST /repositories`.

use axum::extract::State;

use crate::error::{Refused, Repositories};
use crate::extract::{Body, RepositoryInput};
use crate::routes::{Api, reply::Reply};
use crate::views::{RepositoriesFailure, RepositoryAnswer};

/// Make a repository. A share is mounted and written once before it is recorded; its password is
/// stored encrypted and never comes back.
#[utoipa::path(
    post,
    path = "/repositories",
    operation_id = "create_repository",
    tag = "repositories",
    request_body = RepositoryInput,
    responses(
        (status = 201, body = RepositoryAnswer),
        (status = 400, description = "the request", body = RepositoriesFailure),
        (status = 409, description = "the name is taken, or another repository is there", body = RepositoriesFailure),
        (status = 503, description = "the place cannot be used", body = RepositoriesFailure),
    )
)]
pub(crate) async fn create(
    State(api): State<Api>,
    body: Body<RepositoryInput, Repositories>,
) -> Result<Reply<RepositoryAnswer>, Refused<Repositories>> {
    let made = api.engine.create_repository(body.0.check()?).await?;
    let id = made.id.clone();
    Ok(Reply::created(RepositoryAnswer::made(made)).about("id", id.as_str()))
}
