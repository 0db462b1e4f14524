//! `shoal-seeder`: the image server, which only seeds.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
