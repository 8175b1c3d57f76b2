//! `/vm-contexts` and `/vmware-credentials`: what a backup needs to know about a VM.

mod credentials;
mod disks;
mod list;
mod register;
mod show;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(register::register, list::list))
        .routes(routes!(show::by_id))
        .routes(routes!(show::by_name))
        .routes(routes!(disks::disks))
        .routes(routes!(credentials::create))
}
