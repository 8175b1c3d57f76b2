//! `GET /repositories`.

use axum::extract::State;

use crate::error::{Refused, Repositories};
use crate::extract::{Params, RepositoryQuery};
use crate::routes::{Api, reply::Reply};
use crate::views::{RepositoriesFailure, RepositoryListView};

/// All repositories with their state, those that are disabled or broken included.
#[utoipa::path(
    get,
    path = "/repositories",
    operation_id = "list_repositories",
    tag = "repositories",
    params(RepositoryQuery),
    responses(
        (status = 200, body = RepositoryListView),
        (status = 400, description = "enabled is neither true nor false", body = RepositoriesFailure),
        (status = 500, body = RepositoriesFailure),
    )
)]
pub(crate) async fn list(
    State(api): State<Api>,
    Params(query): Params<RepositoryQuery>,
) -> Result<Reply<RepositoryListView>, Refused<Repositories>> {
    let wanted = query.check()?;
    let mut repositories = api.engine.repositories().await?;
    repositories.retain(|(repository, _)| wanted.takes(repository));
    Ok(Reply::ok(RepositoryListView::new(repositories)))
}
