//! `DELETE /repositories/{id}`.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use engine::{Removal, RepositoryId};

use crate::error::{Refused, Repositories};
use crate::routes::{Api, reply::Reply};
use crate::views::{DeletedRepositoryView, RepositoriesFailure, RepositoryInUse};

/// Forget a repository that holds no backup. Its files stay.
#[utoipa::path(
    delete,
    path = "/repositories/{id}",
    operation_id = "delete_repository",
    tag = "repositories",
    params(("id" = String, Path, description = "Id of the repository")),
    responses(
        (status = 200, body = DeletedRepositoryView),
        (status = 404, description = "no such repository", body = RepositoriesFailure),
        (status = 409, description = "it holds backups, a policy names it, or it is the default one", body = RepositoryInUse),
    )
)]
pub(crate) async fn delete(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Response, Refused<Repositories>> {
    let id = RepositoryId::parse(&id)?;
    Ok(match api.engine.delete_repository(&id).await? {
        Removal::Removed => Reply::ok(DeletedRepositoryView::new(&id)).into_response(),
        Removal::InUse { backup_count } => {
            Reply::conflict(RepositoryInUse::new(backup_count)).into_response()
        }
    })
}
