//! The program `sendense-hub`.

fn main() -> std::process::ExitCode {
    api::cli::main()
}
