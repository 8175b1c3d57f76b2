//! `GET /repositories/{id}`.

use axum::extract::{Path, State};
use engine::RepositoryId;

use crate::error::{Refused, Repositories};
use crate::routes::{Api, reply::Reply};
use crate::views::{RepositoriesFailure, RepositoryAnswer};

/// One repository with its state.
#[utoipa::path(
    get,
    path = "/repositories/{id}",
    operation_id = "show_repository",
    tag = "repositories",
    params(("id" = String, Path, description = "Id of the repository")),
    responses(
        (status = 200, body = RepositoryAnswer),
        (status = 404, description = "no such repository", body = RepositoriesFailure),
    )
)]
pub(crate) async fn show(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Reply<RepositoryAnswer>, Refused<Repositories>> {
    let found = api.engine.repository(&RepositoryId::parse(&id)?).await?;
    Ok(Reply::ok(RepositoryAnswer::found(found)))
}
