//! `GET /repositories/{id}/storage`.

use axum::extract::{Path, State};
use engine::RepositoryId;

use crate::error::{Refused, Repositories};
use crate::routes::{Api, reply::Reply};
use crate::views::{RepositoriesFailure, StorageInfoView};

/// The storage of a repository, looked at just now and recorded.
#[utoipa::path(
    get,
    path = "/repositories/{id}/storage",
    operation_id = "repository_storage",
    tag = "repositories",
    params(("id" = String, Path, description = "Id of the repository")),
    responses(
        (status = 200, body = StorageInfoView),
        (status = 404, description = "no such repository", body = RepositoriesFailure),
        (status = 503, description = "the repository cannot be used", body = RepositoriesFailure),
    )
)]
pub(crate) async fn storage(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Reply<StorageInfoView>, Refused<Repositories>> {
    let id = RepositoryId::parse(&id)?;
    let (repository, seen) = api.engine.look_at_repository(&id, false).await?;
    Ok(Reply::ok(StorageInfoView::new(&repository, &seen)))
}
