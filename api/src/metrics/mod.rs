//! What monitors scrape: one file per family of metrics, each made from a snapshot at the moment of
//! the scrape, so that nothing is kept here.
//!
//! Names are `sendense_<family>_<what>[_<unit>][_total]`, in base units.

mod family;
mod nbd;

use std::fmt;

use engine::Engine;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// The text format of Prometheus (OpenMetrics 1.0), as its content type.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every metric of a hub now.
///
/// # Errors
///
/// Only if a family cannot be told, which is a bug of its file.
pub(crate) fn text(engine: &Engine) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("sendense");
    registry.register_collector(Box::new(nbd::Nbd(engine.nbd_statistics())));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}
