//! `sendense-hub show`: one backup and its disks.

use crate::views::{BackupDiskListView, BackupDiskView, BackupView};
use clap::Args;
use serde::Serialize;

use super::client::Hub;
use super::{output, size};

/// Show one backup and its disks.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Id of the backup.
    #[arg(value_name = "BACKUP")]
    backup: String,
    #[command(flatten)]
    hub: Hub,
}

/// What `--json` prints: the backup, with its disks.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    backup: BackupView,
    disks: Vec<BackupDiskView>,
}

impl Show {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let backup: BackupView = self.hub.get(&["backups", &self.backup], &[]).await?;
        let disks: BackupDiskListView = self
            .hub
            .get(&["backups", &self.backup, "disks"], &[])
            .await?;
        let shown = Shown {
            backup,
            disks: disks.disks,
        };
        if self.hub.json {
            output::json(&shown)?;
        } else {
            output::line(facts(&shown.backup))?;
            output::line("")?;
            output::line(disk_table(&shown.disks))?;
        }
        Ok(())
    }
}

fn facts(backup: &BackupView) -> String {
    let facts = [
        ("backup", Some(backup.backup_id.clone())),
        ("vm", Some(backup.vm_name.clone())),
        ("repository", Some(backup.repository_id.clone())),
        ("type", Some(backup.backup_type.clone())),
        ("type reason", backup.type_reason.clone()),
        ("status", Some(backup.status.clone())),
        ("phase", Some(backup.current_phase.clone())),
        ("received", Some(size::human(backup.bytes_transferred))),
        ("created", Some(backup.created_at.clone())),
        ("completed", backup.completed_at.clone()),
        ("error", backup.error_message.clone()),
    ];
    let rows = facts
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| vec![name.to_owned(), value]));
    output::table(&rows.collect::<Vec<_>>())
}

fn disk_table(disks: &[BackupDiskView]) -> String {
    let head = [
        "DISK", "STATUS", "SIZE", "RECEIVED", "ZERO", "EQUAL", "STORED", "PARENT", "IMAGE",
    ];
    let absent = || "-".to_owned();
    let rows = disks.iter().map(|disk| {
        vec![
            disk.disk_index.to_string(),
            disk.status.clone(),
            size::human(disk.capacity_bytes),
            size::human(disk.received_bytes),
            size::human(disk.zero_bytes),
            size::human(disk.equal_bytes),
            size::human(disk.stored_bytes),
            disk.parent_backup_id.clone().unwrap_or_else(absent),
            disk.image_path.clone().unwrap_or_else(absent),
        ]
    });
    let head = head.map(str::to_owned).to_vec();
    output::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
