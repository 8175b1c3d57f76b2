//! `POST /auth/login`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use engine::ErrorKind;

use crate::error::{Access, Failure, Refused};
use crate::extract::{Body, LoginInput};
use crate::routes::{Api, reply::Reply};
use crate::views::{AccessFailure, LoginFailure, LoginView};

/// Exchange a token for a session, as legacy appliances do. The session is the token: it lives
/// until it is revoked.
#[utoipa::path(
    post,
    path = "/auth/login",
    operation_id = "login",
    tag = "access",
    request_body = LoginInput,
    responses(
        (status = 200, body = LoginView),
        (status = 400, description = "the request", body = AccessFailure),
        (status = 401, description = "the token is not known", body = LoginFailure),
    )
)]
pub(crate) async fn login(
    State(api): State<Api>,
    body: Result<Body<LoginInput, Access>, Refused<Access>>,
) -> Result<Reply<LoginView>, Response> {
    let refused = |refused: Refused<Access>| refused.worded("Invalid request payload");
    let token = body
        .map_err(|error| refused(error).into_response())?
        .0
        .token();
    match api.engine.authenticate(&token).await {
        Ok(_) => Ok(Reply::ok(LoginView::new(&token, api.clock.now()))),
        Err(error) if error.kind == ErrorKind::Unauthenticated => {
            Err(Reply::unauthorized(LoginFailure::default()).into_response())
        }
        Err(error) => Err(Refused::<Access>::from(Failure::from(error)).into_response()),
    }
}
