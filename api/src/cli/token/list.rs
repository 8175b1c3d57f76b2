//! `sendense-hub token list`.

use anyhow::Context as _;
use clap::Args;

use super::Place;
use crate::cli::output;
use crate::views::{TokenListView, TokenView};

/// List the tokens; their texts are not known.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

impl List {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let tokens = self.place.open().await?;
        let found = tokens.list().await;
        tokens.close().await;
        let found = TokenListView::new(found.context("list the tokens")?);
        match self.json {
            true => output::json(&found)?,
            false => output::line(table(&found.tokens))?,
        }
        Ok(())
    }
}

fn table(tokens: &[TokenView]) -> String {
    let head = ["NAME", "ROLE", "BACKUP", "CREATED"];
    let rows = tokens.iter().map(|token| {
        vec![
            token.name.clone(),
            token.role.clone(),
            token.job_id.clone().unwrap_or_else(|| "-".to_owned()),
            token.created_at.clone(),
        ]
    });
    let head = head.map(str::to_owned).to_vec();
    output::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
