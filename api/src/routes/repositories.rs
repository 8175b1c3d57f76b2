//! `GET /repositories`.

use axum::extract::State;

use super::Api;
use super::reply::Reply;
use crate::error::{Refused, Repositories};
use crate::views::{RepositoriesFailure, RepositoryListView};

/// All repositories.
#[utoipa::path(
    get,
    path = "/repositories",
    operation_id = "list_repositories",
    tag = "repositories",
    responses(
        (status = 200, body = RepositoryListView),
        (status = 500, body = RepositoriesFailure),
    )
)]
pub(crate) async fn list(
    State(api): State<Api>,
) -> Result<Reply<RepositoryListView>, Refused<Repositories>> {
    let repositories = api.engine.repositories().await?;
    Ok(Reply::ok(RepositoryListView::new(repositories)))
}
