//! `/auth`.

mod login;

use utoipa_axum::routes;

use crate::access::Guarded;
use crate::error::Access;

pub(crate) fn routes() -> Guarded<Access> {
    Guarded::new().open(routes!(login::login))
}
