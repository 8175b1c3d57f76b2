//! `sendense-hub token create`: the token on stdout, once.

use anyhow::Context as _;
use clap::Args;
use engine::{BackupId, NewToken, Role};

use super::Place;
use crate::cli::output;
use crate::views::CreatedTokenView;

/// Make a token and print it. This is the only time that it is shown.
#[derive(Debug, Args)]
pub(super) struct Create {
    /// What its holder may do: admin, operator, read-only or node.
    #[arg(long, value_name = "ROLE")]
    role: Role,
    /// What the audit log calls its holder; unique.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// For a node: the only backup that the token is good for.
    #[arg(long, value_name = "BACKUP")]
    job: Option<String>,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

impl Create {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let job = self.job.as_deref().map(BackupId::parse_stored);
        let wanted = NewToken {
            name: self.name,
            role: self.role,
            job: job.transpose()?,
        };
        wanted.check()?;
        let tokens = self.place.open().await?;
        let made = tokens.create(&wanted).await;
        tokens.close().await;
        let (token, text) = made.context("make a token")?;
        match self.json {
            true => output::json(&CreatedTokenView::new(token, &text))?,
            false => output::line(text.reveal())?,
        }
        Ok(())
    }
}
