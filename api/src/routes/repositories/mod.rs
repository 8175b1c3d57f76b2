//! `/repositories`.

mod create;
mod delete;
mod list;
mod refresh;
mod show;
mod storage;
mod test;

use engine::Verb;
use utoipa_axum::routes;

use crate::access::Guarded;
use crate::error::Repositories;

pub(crate) fn routes() -> Guarded<Repositories> {
    Guarded::new()
        .allow(Verb::ManageRepositories, routes!(create::create))
        .allow(Verb::ReadRepositories, routes!(list::list))
        .allow(Verb::ManageRepositories, routes!(test::place))
        .allow(Verb::CheckRepository, routes!(refresh::refresh))
        .allow(Verb::ReadRepositories, routes!(show::show))
        .allow(Verb::ManageRepositories, routes!(delete::delete))
        .allow(Verb::CheckRepository, routes!(storage::storage))
        .allow(Verb::CheckRepository, routes!(test::known))
}
