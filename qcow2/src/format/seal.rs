//! The hub's facts inside an image, as a header extension.

use serde_json::{Map, Value};

use crate::error::{Error, corrupt, invalid, unsupported};
use crate::format::digest::Digest;
use crate::format::limits::MAX_SEAL_BYTES;

/// The layout of the JSON; readers refuse a higher one. A key that an older reader may leave out of account, as it does
/// with what it does not know, is no new layout.
const VERSION: u64 = 1;

/// The hub's facts inside an image: an unknown header extension to everyone else (JSON, versioned,
/// kept by QEMU's tools). A sealed image takes no writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seal {
    /// The point in time that this image is a disk of.
    pub point_id: String,
    /// The point below it in the chain; `None` for a full.
    pub parent_id: Option<String>,
    /// The hypervisor's change id of the disk at this point.
    pub change_id: Option<String>,
    /// The root of the image's hash sidecar, which is the only one that is believed; `None` without one. The image
    /// fills it in when it is sealed.
    pub hashes: Option<Digest>,
}

impl Seal {
    /// The content of the extension.
    ///
    /// # Errors
    /// `Invalid` for identifiers that do not fit.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut object = Map::new();
        object.insert("version".into(), VERSION.into());
        object.insert("point_id".into(), self.point_id.clone().into());
        if let Some(parent) = &self.parent_id {
            object.insert("parent_id".into(), parent.clone().into());
        }
        if let Some(change) = &self.change_id {
            object.insert("change_id".into(), change.clone().into());
        }
        if let Some(root) = &self.hashes {
            object.insert("hashes".into(), root.to_string().into());
        }
        let bytes = Value::Object(object).to_string().into_bytes();
        if bytes.len() > MAX_SEAL_BYTES {
            return Err(invalid(format!(
                "seal is too long: len={} limit={MAX_SEAL_BYTES}",
                bytes.len()
            )));
        }
        Ok(bytes)
    }

    /// Reads the content of the extension.
    ///
    /// # Errors
    /// `Corrupt` for content that is not a seal, `Unsupported` for a newer layout.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_SEAL_BYTES {
            return Err(corrupt(format!("seal is too long: len={}", bytes.len())));
        }
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| corrupt(format!("seal is not JSON: {error}")))?;
        match value.get("version").and_then(Value::as_u64) {
            Some(VERSION) => {}
            Some(version) => {
                return Err(unsupported(format!(
                    "seal has a newer layout: version={version}"
                )));
            }
            None => return Err(corrupt("seal has no version")),
        }
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let point_id = text("point_id").ok_or_else(|| corrupt("seal has no point_id"))?;
        Ok(Self {
            point_id,
            parent_id: text("parent_id"),
            change_id: text("change_id"),
            hashes: text("hashes").as_deref().map(Digest::parse).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_survives_a_round_trip() {
        let seal = Seal {
            point_id: "p\"1".into(),
            parent_id: None,
            change_id: Some("52 de/4".into()),
            hashes: Some(Digest([0xa5; Digest::BYTES])),
        };
        assert_eq!(Seal::parse(&seal.encode().unwrap()).unwrap(), seal);
        assert!(Seal::parse(b"{}").is_err());
        assert!(Seal::parse(b"{\"version\":1,\"point_id\":\"x\",\"hashes\":\"1\"}").is_err());
        let unknown = Seal::parse(b"{\"version\":1,\"point_id\":\"x\",\"later\":[1]}").unwrap();
        assert_eq!((unknown.point_id.as_str(), unknown.hashes), ("x", None));
        assert!(Seal::parse(b"{\"version\":2,\"point_id\":\"x\"}").is_err());
        let long = Seal {
            point_id: "x".repeat(5000),
            ..Seal::default()
        };
        assert!(long.encode().is_err());
    }
}
