//! The program `sendense-hub`, built by the same test run that starts it.

fn main() -> std::process::ExitCode {
    api::cli::main()
}
