//! Routes that say what is done on them.

use std::marker::PhantomData;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use engine::Verb;
use utoipa::openapi::path::{Operation, PathItem, Paths};
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{OpenApi, extensions::ExtensionsBuilder};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

use super::guard::guard;
use crate::error::Family;
use crate::openapi::BEARER;
use crate::routes::Api;

/// Routes of family `F`, each with the verb that its callers must be allowed.
pub(crate) struct Guarded<F> {
    routes: OpenApiRouter<Api>,
    family: PhantomData<F>,
}

impl<F: Family + 'static> Guarded<F> {
    pub(crate) fn new() -> Self {
        Self::over(OpenApiRouter::default())
    }

    pub(crate) fn with_openapi(document: OpenApi) -> Self {
        Self::over(OpenApiRouter::with_openapi(document))
    }

    fn over(routes: OpenApiRouter<Api>) -> Self {
        Self {
            routes,
            family: PhantomData,
        }
    }

    /// Adds routes that do `verb`. Another method of the path is asked for its own.
    pub(crate) fn allow(self, verb: Verb, routes: UtoipaMethodRouter<Api>) -> Self {
        let (schemas, mut paths, router) = routes;
        describe(&mut paths, verb);
        let guard = move |request: Request, next: Next| guard::<F>(verb, request, next);
        let router = router.route_layer(from_fn(guard));
        Self::over(self.routes.routes((schemas, paths, router)))
    }

    /// Adds routes that answer everybody.
    pub(crate) fn open(self, routes: UtoipaMethodRouter<Api>) -> Self {
        Self::over(self.routes.routes(routes))
    }

    pub(crate) fn merge<G>(self, others: Guarded<G>) -> Self {
        Self::over(self.routes.merge(others.routes))
    }

    pub(crate) fn nest<G>(self, prefix: &str, others: Guarded<G>) -> Self {
        Self::over(self.routes.nest(prefix, others.routes))
    }

    /// The routes, and the document that describes exactly these.
    pub(crate) fn into_parts(self) -> (Router<Api>, OpenApi) {
        self.routes.split_for_parts()
    }
}

/// Says in the document what a caller needs.
fn describe(paths: &mut Paths, verb: Verb) {
    for operation in paths.paths.values_mut().flat_map(operations) {
        let no_scopes: [&str; 0] = [];
        operation.security = Some(vec![SecurityRequirement::new(BEARER, no_scopes)]);
        operation.extensions = Some(
            ExtensionsBuilder::new()
                .add("x-verb", verb.as_str())
                .build(),
        );
        for (status, description) in [
            (
                "401",
                "no token where one is needed, or one that is not known",
            ),
            ("403", "the caller may not do this"),
        ] {
            let response = ResponseBuilder::new().description(description).build();
            let responses = &mut operation.responses.responses;
            responses
                .entry(status.to_owned())
                .or_insert_with(|| response.into());
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem {
        get,
        put,
        post,
        delete,
        patch,
        ..
    } = item;
    [get, put, post, delete, patch].into_iter().flatten()
}
