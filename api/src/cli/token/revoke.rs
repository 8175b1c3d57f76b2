//! `sendense-hub token revoke`.

use anyhow::Context as _;
use clap::Args;

use super::Place;
use crate::cli::output;

/// Revoke a token: the next call with it is refused.
#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// Name of the token.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    place: Place,
}

impl Revoke {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let tokens = self.place.open().await?;
        let revoked = tokens.revoke(&self.name).await;
        tokens.close().await;
        revoked.context("revoke the token")?;
        output::line(format_args!("revoked {}", self.name))?;
        Ok(())
    }
}
