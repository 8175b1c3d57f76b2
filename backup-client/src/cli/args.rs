//! The arguments.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::{BackupType, DEFAULT_CONNECTIONS, SourceSpec, Token};

/// Pushes the disks of VMs to a Sendense Hub.
///
/// Exit status: 0 done, 1 failed, 2 usage, 3 done with warnings.
#[derive(Debug, Parser)]
#[command(name = "sendense-backup-client", version)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Backup(BackupArgs),
}

/// Back up the disks of one VM.
#[derive(Debug, clap::Args)]
pub(super) struct BackupArgs {
    /// Address of the hub.
    #[arg(
        long,
        env = "SENDENSE_HUB",
        value_name = "URL",
        default_value = "http://127.0.0.1:8082"
    )]
    pub(super) hub: String,
    /// Token for the hub.
    #[arg(long, env = "SENDENSE_TOKEN", hide_env_values = true)]
    pub(super) token: Option<Token>,
    /// Name of the VM; registered if the hub does not know it.
    #[arg(long, value_name = "NAME")]
    pub(super) vm: String,
    /// A disk, once per disk, in order: a raw file or block device, a qcow2 file (name ending in .qcow2), or
    /// explicitly raw:PATH or qcow2:PATH. Backing files of qcow2 are opened below the directory of the file only.
    #[arg(long = "disk", value_name = "SOURCE", required = true)]
    pub(super) disks: Vec<SourceSpec>,
    /// Kind of backup; auto takes an increment where the hub has a good parent.
    #[arg(long = "type", value_enum, default_value = "auto")]
    pub(super) backup_type: TypeArg,
    /// Repository at the hub [default: its first enabled one].
    #[arg(long, value_name = "ID")]
    pub(super) repository: Option<String>,
    /// Where change tracking keeps its state [default: $XDG_STATE_HOME/sendense or ~/.local/state/sendense].
    #[arg(long, value_name = "DIR", env = "SENDENSE_STATE")]
    pub(super) state: Option<PathBuf>,
    /// NBD connections per disk.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CONNECTIONS)]
    pub(super) connections: usize,
    /// Keep no tracking state: send everything and let the hub find the differences.
    #[arg(long)]
    pub(super) no_tracking: bool,
    /// Print the report as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// The values of `--type`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum TypeArg {
    Auto,
    Full,
    Incremental,
}

impl From<TypeArg> for BackupType {
    fn from(arg: TypeArg) -> Self {
        match arg {
            TypeArg::Auto => Self::Auto,
            TypeArg::Full => Self::Full,
            TypeArg::Incremental => Self::Incremental,
        }
    }
}
