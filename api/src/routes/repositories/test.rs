//! `POST /repositories/test` and `POST /repositories/{id}/test`: 200 also when the test fails.

use axum::extract::{Path, State};
use engine::{ErrorKind, RepositoryId};

use crate::error::{Refused, Repositories};
use crate::extract::{Body, PlaceInput};
use crate::routes::{Api, reply::Reply};
use crate::views::{RepositoriesFailure, RepositoryTestView};

/// Whether a place could become a repository: mounted if it has to be, written once, not recorded.
#[utoipa::path(
    post,
    path = "/repositories/test",
    operation_id = "test_place",
    tag = "repositories",
    request_body = PlaceInput,
    responses(
        (status = 200, body = RepositoryTestView),
        (status = 400, description = "the request", body = RepositoriesFailure),
    )
)]
pub(crate) async fn place(
    State(api): State<Api>,
    body: Body<PlaceInput, Repositories>,
) -> Result<Reply<RepositoryTestView>, Refused<Repositories>> {
    let config = body.0.check()?;
    let seen = api.engine.try_place(config.place, config.password).await;
    Ok(Reply::ok(RepositoryTestView::new(seen)))
}

/// Whether a repository can be used: written once.
#[utoipa::path(
    post,
    path = "/repositories/{id}/test",
    operation_id = "test_repository",
    tag = "repositories",
    params(("id" = String, Path, description = "Id of the repository")),
    responses(
        (status = 200, body = RepositoryTestView),
        (status = 404, description = "no such repository", body = RepositoriesFailure),
    )
)]
pub(crate) async fn known(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Reply<RepositoryTestView>, Refused<Repositories>> {
    let id = RepositoryId::parse(&id)?;
    match api.engine.look_at_repository(&id, true).await {
        Err(error) if error.kind == ErrorKind::NotFound => Err(error.into()),
        looked => Ok(Reply::ok(RepositoryTestView::new(
            looked.map(|(_, seen)| seen),
        ))),
    }
}
