//! The command line: one file per subcommand.
//!
//! Answers go to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 usage,
//! 3 done with warnings; `image check` and `image compare` answer as qemu-img's do.

mod client;
mod delete;
mod demo;
mod export;
mod image;
mod list;
mod listen;
mod logging;
mod output;
mod serve;
mod show;
mod signals;
mod size;
mod tls;
mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Backups of virtual machines: an NBD server that writes qcow2 chains, a REST API, a database.
#[derive(Debug, Parser)]
#[command(name = "sendense-hub", version = crate::VERSION, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Demo(demo::DemoArgs),
    Export(export::Export),
    Image(image::Image),
    List(list::List),
    Show(show::Show),
    Token(token::Token),
    Delete(delete::Delete),
}

/// The program: parses the command line, runs the command to its end, tells the exit status.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    engine::descriptors::raise();
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => failed(&error.into()),
    }
}

async fn run(arguments: Arguments) -> ExitCode {
    let ended = match arguments.command {
        Command::Serve(command) => command.run().await,
        Command::Demo(command) => demo::run(command).await,
        Command::Export(command) => command.run().await,
        Command::Image(command) => return command.run().await,
        Command::List(command) => command.run().await,
        Command::Show(command) => command.run().await,
        Command::Token(command) => command.run().await,
        Command::Delete(command) => command.run().await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Tells the failure with its causes; exit status 1, or 2 for a usage error that only showed when all
/// sources of settings were merged.
pub(crate) fn failed(error: &anyhow::Error) -> ExitCode {
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        output::complain(format_args!("{}", usage.to_string().trim_end()));
        return ExitCode::from(2);
    }
    output::complain(format_args!("sendense-hub: {error:#}"));
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_version_is_that_of_the_package() {
        let version = Arguments::command().render_version();
        assert_eq!(
            version,
            format!("sendense-hub {}\n", env!("CARGO_PKG_VERSION"))
        );
    }

    #[test]
    fn a_usage_error_exits_with_two() {
        let error = Arguments::try_parse_from(["sendense-hub", "serve", "--nonsense"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
