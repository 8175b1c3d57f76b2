//! `sendense-hub list`: backups of a hub.

use crate::views::{BackupListView, BackupView};
use clap::Args;

use super::client::Hub;
use super::{output, size};

/// List backups, newest first.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only of this VM.
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,
    /// Only in this repository.
    #[arg(long, value_name = "ID")]
    repository: Option<String>,
    /// Only with this status.
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    #[command(flatten)]
    hub: Hub,
}

impl List {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let filters = [
            ("vm_name", &self.vm),
            ("repository_id", &self.repository),
            ("status", &self.status),
        ];
        let query: Vec<_> = filters
            .into_iter()
            .filter_map(|(name, value)| value.as_deref().map(|value| (name, value)))
            // Without any parameter a hub lists nothing.
            .chain([("offset", "0")])
            .collect();
        let found: BackupListView = self.hub.get(&["backups"], &query).await?;
        if self.hub.json {
            output::json(&found)?;
        } else {
            output::line(table(&found.backups))?;
        }
        Ok(())
    }
}

fn table(backups: &[BackupView]) -> String {
    let head = [
        "BACKUP", "VM", "TYPE", "STATUS", "DISKS", "RECEIVED", "CREATED",
    ];
    let rows = backups.iter().map(|backup| {
        vec![
            backup.backup_id.clone(),
            backup.vm_name.clone(),
            backup.backup_type.clone(),
            backup.status.clone(),
            backup.disks_count.to_string(),
            size::human(backup.bytes_transferred),
            backup.created_at.clone(),
        ]
    });
    let head = head.map(str::to_owned).to_vec();
    output::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
