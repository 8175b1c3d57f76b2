//! The command `backup`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::args::BackupArgs;
use super::bars::{Bars, Lines};
use super::{Outcome, complain, summary};
use crate::{BackupOptions, BackupReport, Error, ErrorKind, Progress, backup};

/// Runs one backup and tells how it went.
pub(super) async fn run(args: BackupArgs) -> Outcome {
    let json = args.json;
    let options = match options_of(args) {
        Ok(options) => options,
        Err(text) => {
            complain(&format!("error: {text}"));
            return Outcome::Usage;
        }
    };
    let signals = match cancel_on_signals(options.cancel.clone()) {
        Ok(signals) => signals,
        Err(error) => {
            complain(&format!("error: cannot watch for signals: {error}"));
            return Outcome::Failed;
        }
    };
    let progress: Box<dyn Progress> = if std::io::stderr().is_terminal() {
        Box::new(Bars::new())
    } else {
        Box::new(Lines::default())
    };
    let result = backup(options, progress.as_ref()).await;
    drop(progress);
    signals.abort();
    match result {
        Ok(report) => tell(&report, json),
        Err(error) => {
            complain(&format!("error: {}", error.full_text()));
            match error.kind() {
                ErrorKind::Usage => Outcome::Usage,
                _ => Outcome::Failed,
            }
        }
    }
}

fn options_of(args: BackupArgs) -> Result<BackupOptions, String> {
    let state_dir = match (args.no_tracking, args.state) {
        (true, _) => None,
        (false, Some(directory)) => Some(directory),
        (false, None) => Some(default_state_dir().ok_or(
            "no home for the tracking state: give --state DIR, or --no-tracking to send everything",
        )?),
    };
    Ok(BackupOptions {
        hub: args.hub,
        token: args.token,
        vm_name: args.vm,
        disks: args.disks,
        backup_type: args.backup_type.into(),
        repository: args.repository,
        state_dir,
        connections: args.connections,
        cancel: CancellationToken::new(),
    })
}

/// `$XDG_STATE_HOME/sendense`, else `~/.local/state/sendense` (XDG Base Directory Specification).
fn default_state_dir() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("sendense"))
}

/// The first SIGINT or SIGTERM cancels in order; the second ends the process at once.
fn cancel_on_signals(cancel: CancellationToken) -> std::io::Result<tokio::task::JoinHandle<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if cancel.is_cancelled() {
                complain("ended at once; the job may still run at the hub");
                std::process::exit(Outcome::Failed as i32);
            }
            complain("stopping: cancelling the backup at the hub (again: end at once)");
            cancel.cancel();
        }
    }))
}

fn tell(report: &BackupReport, json: bool) -> Outcome {
    let text = if json {
        serde_json::to_string_pretty(report)
            .map_err(|error| Error::because(ErrorKind::State, "cannot express the report", error))
    } else {
        Ok(summary::text(report))
    };
    let written = text.and_then(|text| {
        writeln!(std::io::stdout(), "{text}")
            .map_err(|error| Error::because(ErrorKind::State, "cannot write the report", error))
    });
    if let Err(error) = written {
        complain(&format!("error: {}", error.full_text()));
        return Outcome::Failed;
    }
    if report.warnings.is_empty() {
        Outcome::Done
    } else {
        Outcome::DoneWithWarnings
    }
}
