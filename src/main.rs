//! The `mailtap` command: parse, run, exit code.

use std::process::ExitCode;

/// Faster than that of the C library where several threads allocate.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    mailtap::cli::main()
}
