//! One request at one route: who asks, and may they.

use std::net::SocketAddr;

use axum::RequestExt as _;
use axum::extract::{ConnectInfo, Query, RawPathParams, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use engine::{Target, Verb};

use super::Door;
use crate::error::{Access, Failure, Family, Refused};

/// Lets the request through to the route if its caller may do `verb`.
pub(super) async fn guard<F: Family>(verb: Verb, mut request: Request, next: Next) -> Response {
    let door = request.extensions().get::<Door>().cloned();
    let door = door.expect("the router puts a door before every route");
    let peer = request.extract_parts::<ConnectInfo<SocketAddr>>().await;
    let peer = peer.ok().map(|ConnectInfo(address)| address);
    let caller = match door.caller(request.headers(), peer).await {
        Ok(caller) => caller,
        Err(failure) => return refuse::<F>(failure, verb),
    };
    let target = target(&mut request).await;
    match caller.permit(verb, &target) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            tracing::warn!(event = "access.forbidden", caller = caller.name, %error, "refused");
            F::respond(error.into())
        }
    }
}

/// A caller who is not known gets the same words everywhere; a hub that cannot look says so in
/// those of the family.
fn refuse<F: Family>(failure: Failure, verb: Verb) -> Response {
    if !failure.is_unauthenticated() {
        return F::respond(failure);
    }
    tracing::warn!(event = "access.unauthenticated", %verb, "refused");
    Refused::<Access>::from(failure).into_response()
}

/// What the request names: the job in its path, the VM in its query.
async fn target(request: &mut Request) -> Target {
    let path = request.extract_parts::<RawPathParams>().await;
    let job = path.ok().and_then(|params| {
        let job = params
            .iter()
            .find(|(name, _)| matches!(*name, "backup_id" | "job_id"));
        job.map(|(_, id)| id.to_owned())
    });
    let query = request
        .extract_parts::<Query<Vec<(String, String)>>>()
        .await;
    // The first of several wins, as it does for the route.
    let vm_name = query.ok().and_then(|Query(pairs)| {
        let vm = pairs.into_iter().find(|(name, _)| name == "vm_name");
        vm.map(|(_, name)| name)
    });
    Target { job, vm_name }
}
