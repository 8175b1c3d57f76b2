//! Node appliances as `serve` is told them: `URL`, or `VCENTER=URL` for one vCenter.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// One node appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sna {
    /// `None` for the one that serves every vCenter without one of its own.
    vcenter: Option<String>,
    url: String,
}

impl FromStr for Sna {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (vcenter, url) = match text.split_once('=') {
            // What comes before a `=` of a URL's query has a scheme.
            Some((vcenter, url)) if !vcenter.contains("://") => (Some(vcenter), url),
            _ => (None, text),
        };
        if vcenter == Some("") {
            return Err("no vCenter before the =".to_owned());
        }
        if !url.starts_with("http://") {
            return Err(format!("not http://HOST:PORT: {url:?}"));
        }
        Ok(Self {
            vcenter: vcenter.map(str::to_owned),
            url: url.to_owned(),
        })
    }
}

/// The common node, if one was told, and those of single vCenters. Of two for the same vCenter the last one counts.
pub(super) fn by_vcenter(told: Vec<Sna>) -> (Option<String>, BTreeMap<String, String>) {
    let mut common = None;
    let mut own = BTreeMap::new();
    for sna in told {
        match sna.vcenter {
            None => common = Some(sna.url),
            Some(vcenter) => {
                own.insert(vcenter, sna.url);
            }
        }
    }
    (common, own)
}

/// Reads the key of the configuration file: one text, or a list.
pub(super) fn key<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Sna>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    let texts = match OneOrMore::deserialize(from)? {
        OneOrMore::One(text) => vec![text],
        OneOrMore::More(texts) => texts,
    };
    let parsed: Result<Vec<_>, _> = texts.iter().map(|text| text.parse()).collect();
    parsed.map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_serves_a_vcenter_or_all_others() {
        let told = ["http://a:1", "vc.lab=http://b:2", "http://c/?x=y"];
        let (common, own) = by_vcenter(told.iter().map(|text| text.parse().unwrap()).collect());
        assert_eq!(common.as_deref(), Some("http://c/?x=y"));
        let expected = BTreeMap::from([("vc.lab".to_owned(), "http://b:2".to_owned())]);
        assert_eq!(own, expected);
        for (wrong, named) in [
            ("=http://a", "no vCenter"),
            ("vc=", "not http"),
            ("https://a", "not http"),
            ("", "not http"),
        ] {
            let error = wrong.parse::<Sna>().unwrap_err();
            assert!(error.contains(named), "{wrong}: {error}");
        }
    }
}
