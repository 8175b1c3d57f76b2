//! The OpenAPI document: its head here, the rest from the routes themselves.

use utoipa::openapi::{InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};

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
    OpenApiBuilder::new().info(info).build()
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
