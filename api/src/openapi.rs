//! The OpenAPI document: its head here, the rest from the routes themselves.

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};

/// The document's name for the token that a route asks for.
pub(crate) const BEARER: &str = "token";

/// What the document says before any route is added.
pub(crate) fn head() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Sendense Hub")
        .description(Some(
            "Backups of virtual machines: start, complete, look up.",
        ))
        .version(crate::VERSION)
        .license(Some(
            LicenseBuilder::new().name("MIT OR Apache-2.0").build(),
        ))
        .build();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "A token of the hub; callers on its machine may be trusted without.",
        ))
        .build();
    let components = ComponentsBuilder::new()
        .security_scheme(BEARER, SecurityScheme::Http(bearer))
        .build();
    OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .build()
}

/// The document that `/openapi.json` serves, indented.
///
/// # Panics
/// Never: the document is made of views that serialise.
#[must_use]
pub fn document() -> String {
    let (_, document) = crate::routes::with_document();
    let mut text = serde_json::to_string_pretty(&document).expect("an OpenAPI document is JSON");
    text.push('\n');
    text
}
