//! Many peers, one clock: the shipping `Exchange` under a discrete-event loop.
//!
//! `sim` is the loop, `shard` one thread of it, `host` one simulated machine, `link` its bandwidth, `network` what lies
//! between, `scenarios` what is promised, `rollout` what follows in a fleet, `checks` what must hold after every event and at the end, `report` what is
//! printed. `lab` is apart: it runs the programs themselves.

mod checks;
mod cli;
mod gate;
mod graph;
mod history;
mod host;
mod lab;
mod link;
mod network;
mod outcome;
mod policies;
mod queue;
mod report;
mod rollout;
mod scenarios;
mod shard;
mod sim;
mod tally;
mod trace;
mod trader;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::perform(cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shoal-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}
