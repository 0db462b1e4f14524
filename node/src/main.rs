//! `shoal-node`: the machine that is installed.

mod cli;

use std::process::ExitCode;

use shoal_node::replace::takeover;

fn main() -> ExitCode {
    match std::env::args_os().next() {
        // systemd's word for it, and ours: neither is a command of the operator.
        Some(name) if name == takeover::PROGRAM && std::process::id() == 1 => takeover::run(),
        Some(name) if name == takeover::INSIDE => takeover::inside(),
        _ => cli::main(),
    }
}
