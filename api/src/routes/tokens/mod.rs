//! `/tokens`.

mod create;
mod list;
mod revoke;

use engine::Verb;
use utoipa_axum::routes;

use crate::access::Guarded;
use crate::error::Problems;

pub(crate) fn routes() -> Guarded<Problems> {
    Guarded::new()
        .allow(Verb::ManageTokens, routes!(create::create, list::list))
        .allow(Verb::ManageTokens, routes!(revoke::revoke))
}
