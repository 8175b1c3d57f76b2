//! `GET /backups`.

use axum::extract::State;
use engine::BackupPage;

use crate::error::{Backups, Refused};
use crate::extract::{ListQuery, Params};
use crate::routes::{Api, reply::Reply};
use crate::views::{BackupListView, BackupsFailure};

/// Backups that match every filter, newest first. Without any filter, limit or offset the list is empty.
#[utoipa::path(
    get,
    path = "/backups",
    operation_id = "list_backups",
    tag = "backups",
    params(ListQuery),
    responses(
        (status = 200, body = BackupListView),
        (status = 400, description = "limit or offset is no number", body = BackupsFailure),
        (status = 404, description = "no such VM", body = BackupsFailure),
    )
)]
pub(crate) async fn list(
    State(api): State<Api>,
    Params(query): Params<ListQuery>,
) -> Result<Reply<BackupListView>, Refused<Backups>> {
    let page = match query.check()? {
        Some(filter) => api.engine.backup_page(filter).await?,
        None => BackupPage::default(),
    };
    Ok(Reply::ok(BackupListView::from(page)))
}
