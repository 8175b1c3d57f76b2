//! `sendense-hub serve`: the hub.

mod settings;
mod sna;

use anyhow::Context as _;
use clap::Args;

use crate::hub::{self, ServeConfig};

use super::signals::Ends;
use super::{logging, output};
use settings::Settings;

/// Run the hub: REST API, NBD server and database in this process.
///
/// Prints one line `ready api=http://… nbd=nbd://…` once both accept. SIGTERM and SIGINT end it in
/// order. Every flag is also a key of the TOML file given by --config and an environment variable;
/// a flag wins over the environment, the environment over the file.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// TOML file with the same keys as the flags.
    #[arg(long, env = "SENDENSE_CONFIG", value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Serve {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let settings = match &self.config {
            None => self.settings,
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("read the configuration path={}", path.display()))?;
                let file = Settings::from_toml(&text)
                    .with_context(|| format!("configuration path={}", path.display()))?;
                self.settings.or(file)
            }
        };
        logging::start(settings.log_filter())?;
        let mut ends = Ends::catch().context("catch signals")?;
        let credential_key = settings.credential_key()?;
        let nbd = settings.endpoints()?;
        let config = ServeConfig {
            credential_key,
            nbd,
            ..settings.into_config()
        };
        let hub = hub::start(config).await?;
        let ready = format!("ready api={} nbd={}", hub.api_url(), hub.nbd_url());
        tracing::info!(version = crate::VERSION, "{ready}");
        if let Err(error) = output::line(&ready) {
            tracing::warn!(%error, "nobody reads stdout");
        }
        let signal = ends.next().await;
        tracing::info!(signal, "ending: answering what is in flight");
        hub.stop().await;
        tracing::info!("ended");
        Ok(())
    }
}
