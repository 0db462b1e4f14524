//! `shoal-node`: the machine that is installed.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
