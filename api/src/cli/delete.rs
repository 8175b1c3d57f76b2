//! `sendense-hub delete`: backups of a hub, with their files.

use crate::views::DeletedView;
use clap::Args;

use super::client::Hub;
use super::output;

/// Delete backups with their files, in the order given. What stands on a backup goes first: increments before what they
/// are increments of.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Ids of backups.
    #[arg(value_name = "BACKUP", required = true)]
    backups: Vec<String>,
    #[command(flatten)]
    hub: Hub,
}

impl Delete {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        for backup in &self.backups {
            let deleted: DeletedView = self.hub.delete(&["backups", backup]).await?;
            if self.hub.json {
                output::json(&deleted)?;
            } else {
                output::line(format_args!("deleted {}", deleted.backup_id))?;
            }
        }
        Ok(())
    }
}
