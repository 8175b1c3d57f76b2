//! `/backups`.

mod cancel;
mod chain;
mod changeid;
mod complete;
mod disks;
mod list;
mod show;
mod start;
mod stats;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(start::start, list::list))
        .routes(routes!(stats::stats))
        .routes(routes!(changeid::change_id))
        .routes(routes!(chain::chain))
        .routes(routes!(show::show))
        .routes(routes!(disks::disks))
        .routes(routes!(complete::complete))
        .routes(routes!(cancel::cancel))
}
