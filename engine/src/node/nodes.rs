//! Which node appliance reads which VM.

use std::collections::BTreeMap;

use super::client::NodeClient;
use crate::config::EngineConfig;
use crate::error::Error;

/// The nodes of this hub: one for every vCenter that was given its own, and one for all others.
#[derive(Debug)]
pub(crate) struct Nodes {
    others: NodeClient,
    by_vcenter: BTreeMap<String, NodeClient>,
}

impl Nodes {
    /// Clients of the configured nodes; nothing is called yet.
    pub(crate) fn new(config: &EngineConfig) -> Result<Self, Error> {
        let own = config.vcenter_node_urls.iter();
        let by_vcenter = own
            .map(|(vcenter, url)| Ok((vcenter.to_lowercase(), NodeClient::new(url)?)))
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            others: NodeClient::new(&config.node_url)?,
            by_vcenter,
        })
    }

    /// The node that reaches this vCenter. Host names do not care for case.
    pub(crate) fn of_vcenter(&self, host: &str) -> &NodeClient {
        self.by_vcenter
            .get(&host.to_lowercase())
            .unwrap_or(&self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::WatchLimits;

    #[test]
    fn a_vcenter_has_its_node_or_the_common_one() {
        let config = EngineConfig {
            data_dir: "unused".into(),
            database: None,
            nbd_advertise: "127.0.0.1:10809".to_owned(),
            node_url: "http://common".to_owned(),
            vcenter_node_urls: BTreeMap::from([("VC.lab".to_owned(), "http://lab/".to_owned())]),
            private_exports: false,
            credential_key: None,
            watch: WatchLimits::default(),
            extended_headers: true,
        };
        let nodes = Nodes::new(&config).unwrap();
        for (host, url) in [
            ("vc.lab", "http://lab"),
            ("vc.LAB", "http://lab"),
            ("vc.lab.", "http://common"),
            ("", "http://common"),
        ] {
            assert_eq!(nodes.of_vcenter(host).url(), url, "{host}");
        }
    }
}
