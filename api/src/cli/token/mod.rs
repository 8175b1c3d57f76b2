//! `sendense-hub token`: the tokens in a hub's database, whether the hub runs or not.
//!
//! The database and nothing else is asked: who may write its file owns the hub, so the first token
//! needs no other token, and a hub that trusts nobody can still be given one.

mod create;
mod list;
mod revoke;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use engine::{SystemClock, Tokens};

/// Make, list and revoke the tokens that let callers in. Works on the data folder, whether a hub
/// runs on it or not.
#[derive(Debug, Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(create::Create),
    List(list::List),
    Revoke(revoke::Revoke),
}

impl Token {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Create(command) => command.run().await,
            Command::List(command) => command.run().await,
            Command::Revoke(command) => command.run().await,
        }
    }
}

/// Which hub's database.
#[derive(Debug, Args)]
struct Place {
    /// The data folder of the hub.
    #[arg(
        long,
        env = "SENDENSE_DATA",
        value_name = "DIR",
        default_value = "sendense-data"
    )]
    data: PathBuf,
    /// Where its database is: sqlite:PATH [default: sqlite:DIR/hub.db].
    #[arg(long, env = "SENDENSE_DATABASE", value_name = "URL")]
    database: Option<String>,
}

impl Place {
    async fn open(self) -> anyhow::Result<Tokens> {
        let failed = format!("open the database of the hub data={}", self.data.display());
        Tokens::open(&self.data, self.database, Arc::new(SystemClock))
            .await
            .context(failed)
    }
}
