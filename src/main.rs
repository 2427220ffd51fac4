//! The `mailtap` command: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    mailtap::cli::main()
}
