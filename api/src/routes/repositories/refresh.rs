//! `POST /repositories/refresh-storage`.

use axum::extract::State;

use crate::error::{Refused, Repositories};
use crate::routes::{Api, reply::Reply};
use crate::views::{RefreshedView, RepositoriesFailure};

/// Look at the storage of every repository that is enabled, and record what is seen.
#[utoipa::path(
    post,
    path = "/repositories/refresh-storage",
    operation_id = "refresh_storage",
    tag = "repositories",
    responses(
        (status = 200, body = RefreshedView),
        (status = 500, body = RepositoriesFailure),
    )
)]
pub(crate) async fn refresh(
    State(api): State<Api>,
) -> Result<Reply<RefreshedView>, Refused<Repositories>> {
    let (refreshed, failed) = api.engine.refresh_storage().await?;
    Ok(Reply::ok(RefreshedView::new(refreshed, failed)))
}
