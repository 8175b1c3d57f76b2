//! The command line: arguments in, bars and a summary out.

mod args;
mod backup;
mod bars;
mod summary;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::{Args, Command};

/// How a command ended; the number is the exit status of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done = 0,
    Failed = 1,
    Usage = 2,
    DoneWithWarnings = 3,
}

/// Runs the program: exit status 0 done, 1 failed, 2 usage, 3 done with warnings.
#[must_use]
pub fn main() -> ExitCode {
    // Ends the process itself with status 2 on bad usage, 0 for help.
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start the runtime: {error}"));
            return ExitCode::from(Outcome::Failed as u8);
        }
    };
    let outcome = match args.command {
        Command::Backup(args) => runtime.block_on(backup::run(args)),
    };
    // A read that hangs in a dead disk must not keep the process.
    runtime.shutdown_background();
    ExitCode::from(outcome as u8)
}

/// One line for the user; a closed terminal is no reason to fail.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
