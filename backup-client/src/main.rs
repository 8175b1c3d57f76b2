//! `sendense-backup-client`: the command.

use std::process::ExitCode;

fn main() -> ExitCode {
    backup_client::cli::main()
}
