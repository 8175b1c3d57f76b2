//! `GET /backups/stats`.

use axum::extract::State;

use crate::error::{Backups, Refused};
use crate::extract::{Params, StatsQuery};
use crate::routes::{Api, reply::Reply};
use crate::views::{BackupsFailure, StatsView};

/// Sums over the completed backups of a VM in a repository; zeros for a VM that is not known.
#[utoipa::path(
    get,
    path = "/backups/stats",
    operation_id = "backup_stats",
    tag = "backups",
    params(StatsQuery),
    responses(
        (status = 200, body = StatsView),
        (status = 400, description = "a parameter is missing", body = BackupsFailure),
    )
)]
pub(crate) async fn stats(
    State(api): State<Api>,
    Params(query): Params<StatsQuery>,
) -> Result<Reply<StatsView>, Refused<Backups>> {
    let (vm_name, repository) = query.check()?;
    let stats = api.engine.backup_stats(&vm_name, &repository).await?;
    Ok(Reply::ok(StatsView::from(stats)))
}
