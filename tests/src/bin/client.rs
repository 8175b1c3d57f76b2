//! The program `sendense-backup-client`, built by the same test run that starts it.

fn main() -> std::process::ExitCode {
    backup_client::cli::main()
}
