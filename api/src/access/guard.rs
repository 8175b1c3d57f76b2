//! One request at one route: who asks, may they, and what came of it.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use engine::{Caller, Deed, Error, Verb};
use tracing::Instrument as _;

use super::Door;
use super::named::Named;
use crate::error::{Access, Failure, Family, Refused};

/// Lets the request through to the route if its caller may do `verb`. What changes something is
/// recorded, and is done and recorded to its end even if the caller goes away meanwhile.
pub(super) async fn guard<F: Family>(verb: Verb, mut request: Request, next: Next) -> Response {
    let door = request.extensions().get::<Door>().cloned();
    let door = door.expect("the router puts a door before every route");
    let named = Named::of(&mut request).await;
    let caller = match door.caller(request.headers(), named.peer).await {
        Ok(caller) => caller,
        Err(failure) => return stranger::<F>(&door, verb, named, failure).await,
    };
    if let Err(error) = caller.permit(verb, &named.target) {
        tracing::warn!(event = "access.forbidden", caller = caller.name, %error, "refused");
        let response = F::respond(error.into());
        record(&door, named.deed(verb, Some(caller), &response)).await;
        return response;
    }
    if !verb.changes_state() {
        return next.run(request).await;
    }
    let done = attend(door, verb, named, caller, request, next);
    match tokio::spawn(done.in_current_span()).await {
        Ok(response) => response,
        Err(broken) => match broken.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => F::respond(Error::internal("request broke off", "").into()),
        },
    }
}

/// Does what was asked and records it.
async fn attend(
    door: Door,
    verb: Verb,
    named: Named,
    caller: Caller,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    record(&door, named.deed(verb, Some(caller), &response)).await;
    response
}

/// A caller who is not known gets the same words everywhere; a hub that cannot look says so in
/// those of the family.
async fn stranger<F: Family>(door: &Door, verb: Verb, named: Named, failure: Failure) -> Response {
    if !failure.is_unauthenticated() {
        return F::respond(failure);
    }
    let peer = named.peer.map(tracing::field::display);
    tracing::warn!(event = "access.unauthenticated", %verb, peer, "refused");
    let response = Refused::<Access>::from(failure).into_response();
    if door.strangers.may_be_recorded(door.clock.now()) {
        record(door, named.deed(verb, None, &response)).await;
    }
    response
}

/// A deed that cannot be recorded has been done all the same; the log is what is left to tell it.
async fn record(door: &Door, deed: Deed) {
    if !deed.verb.changes_state() {
        return;
    }
    if let Err(error) = door.engine.record(&deed).await {
        tracing::error!(event = "audit.lost", %error, ?deed, "the audit log lacks an entry");
    }
}
