//! The command line.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};

use crate::report::Report;
use crate::scenarios::{self, Scenario, Size};
use crate::sim::{Options, Simulation};

/// Simulate a swarm of Shoal's own state machines.
#[derive(Debug, Parser)]
#[command(name = "shoal-sim", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the scenarios and what each promises
    List,
    /// Run one scenario; exit 1 when a check fails or, at a committed size, when its promise is broken
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    /// A name that `list` prints
    scenario: String,
    /// Nodes besides the seeders
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    nodes: u32,
    /// Pieces of the image, 1 MiB each
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pieces: u32,
    /// Seed of every random choice
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Walk a host's invariants after one event in so many [default: grows with nodes × pieces, so that the walks
    /// cost about as much as the rest]
    #[arg(long)]
    check: Option<u64>,
    /// Uplink and downlink of a node, in Mbit/s
    #[arg(long, default_value_t = 100.0)]
    mbit: f64,
    /// Uplink of a seeder, in uplinks of a node [default: the scenario's]
    #[arg(long)]
    seeder_rate: Option<f64>,
    /// One way between any two hosts, in block-times of a node
    #[arg(long, default_value_t = 0.05)]
    latency: f64,
    /// Neighbours per host
    #[arg(long, default_value_t = 20)]
    neighbours: usize,
}

pub(crate) fn perform(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::List => {
            for scenario in scenarios::ALL {
                println!("{:<14} {}", scenario.name, scenario.promise);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(run) => run.perform(),
    }
}

impl Run {
    fn perform(&self) -> anyhow::Result<ExitCode> {
        let scenario = scenarios::find(&self.scenario)
            .with_context(|| format!("no scenario is called {}: see shoal-sim list", self.scenario))?;
        let size = Size { nodes: self.nodes as usize, pieces: self.pieces as usize };
        let options = self.options(size)?;
        let started = Instant::now();
        let outcome = Simulation::new(scenario, size, &options)?.run();
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(failure) => bail!("{failure:#}\nreplay with: {}", self.replay(scenario)),
        };
        let report = Report::new(scenario, size, self.seed, &outcome, started.elapsed())?;
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print!("{}", report.text(&outcome));
        }
        let broken = scenario.broken(size, &report);
        for promise in &broken {
            eprintln!("shoal-sim: {}: {promise}", scenario.name);
        }
        if !broken.is_empty() {
            eprintln!("shoal-sim: replay with: {}", self.replay(scenario));
        }
        Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn options(&self, size: Size) -> anyhow::Result<Options> {
        for (value, name) in [(self.mbit, "--mbit"), (self.seeder_rate.unwrap_or(1.0), "--seeder-rate")] {
            if !(value.is_finite() && value > 0.0) {
                bail!("{name} must be above zero");
            }
        }
        if !(self.latency.is_finite() && self.latency >= 0.0) {
            bail!("--latency must not be negative");
        }
        Ok(Options {
            seed: self.seed,
            check_every: self.check.unwrap_or(1 + (size.nodes * size.pieces) as u64 / 2500).max(1),
            node_bytes_per_s: self.mbit * 125_000.0,
            seeder_rate: self.seeder_rate,
            latency_block_times: self.latency,
            neighbours: self.neighbours,
        })
    }

    fn replay(&self, scenario: &Scenario) -> String {
        let mut command = format!(
            "shoal-sim run {} --nodes {} --pieces {} --seed {} --mbit {} --latency {} --neighbours {} --check 1",
            scenario.name, self.nodes, self.pieces, self.seed, self.mbit, self.latency, self.neighbours
        );
        if let Some(rate) = self.seeder_rate {
            command += &format!(" --seeder-rate {rate}");
        }
        command
    }
}
