//! What a request says of itself, before its route reads it.

use std::net::SocketAddr;

use axum::RequestExt as _;
use axum::extract::{ConnectInfo, Query, RawPathParams, Request};
use axum::response::Response;
use engine::{Caller, Deed, Target, Verb};

use crate::request_id::RequestId;
use crate::routes::reply::Subject;

/// What a request says of itself: enough to decide and to record.
pub(super) struct Named {
    pub(super) peer: Option<SocketAddr>,
    pub(super) target: Target,
    /// The parts of the path that name something, as `name=value`.
    object: String,
    request_id: String,
}

impl Named {
    pub(super) async fn of(request: &mut Request) -> Self {
        let peer = request.extract_parts::<ConnectInfo<SocketAddr>>().await;
        let path = request.extract_parts::<RawPathParams>().await;
        let path: Vec<(String, String)> = path.map_or_else(
            |_| Vec::new(),
            |params| {
                let owned = params.iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
                owned.collect()
            },
        );
        let query = request
            .extract_parts::<Query<Vec<(String, String)>>>()
            .await;
        let query = query.map_or_else(|_| Vec::new(), |Query(pairs)| pairs);
        let request_id = request.extensions().get::<RequestId>();
        Self {
            peer: peer.ok().map(|ConnectInfo(address)| address),
            target: Target {
                job: first(&path, &["backup_id", "job_id"]),
                // The first of several is the one that the route answers.
                vm_name: first(&query, &["vm_name"]),
            },
            object: path
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
                .join(" "),
            request_id: request_id.map(|id| id.0.clone()).unwrap_or_default(),
        }
    }

    /// What came of the request; what it made is named by its answer.
    pub(super) fn deed(self, verb: Verb, caller: Option<Caller>, response: &Response) -> Deed {
        let subject = response.extensions().get::<Subject>();
        let (actor, role) = match caller {
            Some(caller) => (caller.name, Some(caller.role)),
            None => ("unknown".to_owned(), None),
        };
        Deed {
            actor,
            role,
            peer: self.peer.map(|peer| peer.ip().to_string()),
            verb,
            object: subject.map_or(self.object, |Subject(made)| made.clone()),
            status: response.status().as_u16(),
            request_id: self.request_id,
        }
    }
}

fn first(pairs: &[(String, String)], names: &[&str]) -> Option<String> {
    let found = pairs
        .iter()
        .find(|(name, _)| names.contains(&name.as_str()));
    found.map(|(_, value)| value.clone())
}
