//! The command line.

mod report;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};

use crate::gate::Gate;
use crate::lab::Lab;
use crate::network::Release;
use crate::outcome::Outcome;
use crate::policies;
use crate::report::Report;
use crate::rollout;
use crate::scenarios::{self, Scenario, Size, Threshold};
use crate::sim::Options;

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
    /// Run every scenario at its committed sizes; exit 1 with the figures when a promise is broken
    Gate(Gate),
    /// Run the committed runs, or read their results, and write a page with plots
    Report(report::Report),
    /// Run the real programs, each on a host of its own with a shaped link (needs root)
    Lab(Lab),
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// A name that `list` prints
    scenario: String,
    /// How the hosts trade: shoal, or a policy that it is compared with
    #[arg(long, default_value = policies::OURS)]
    policy: String,
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
    /// A control message takes up to this many latencies more
    #[arg(long, default_value_t = 0.0)]
    jitter: f64,
    /// Neighbours per host
    #[arg(long, default_value_t = 20)]
    neighbours: usize,
    /// Rate at which a host decodes and hashes, in MB/s
    #[arg(long, default_value_t = 500.0)]
    verify: f64,
    /// Rate at which a host stores, in MB/s
    #[arg(long, default_value_t = 1000.0)]
    store: f64,
    /// Processor time of a control message, in microseconds
    #[arg(long, default_value_t = 10.0)]
    message_cpu: f64,
    /// Eighths of a piece in a sender's device, which its control messages wait behind
    #[arg(long, default_value_t = 1)]
    device: usize,
    /// Eighths of a piece that a connection may have on their way, unconfirmed: 8 for switches that have room for
    /// every piece, 1 for real ones
    #[arg(long, default_value_t = 8)]
    window: u8,
    /// When an uploader has room again
    #[arg(long, value_enum, default_value = "written")]
    release: Release,
    /// Threads [default: as many as the size is worth]; they do not change the outcome
    #[arg(long)]
    threads: Option<usize>,
    /// Tell on stderr what happens to this host (0 is the first seeder)
    #[arg(long)]
    trace: Option<u32>,
}

/// The arguments of a run by themselves.
#[derive(Debug, Parser)]
struct Alone {
    #[command(flatten)]
    run: Run,
}

pub(crate) fn perform(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::List => {
            for scenario in scenarios::ALL {
                println!("{:<30} {}", scenario.name, scenario.promise);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(run) => run.perform(),
        Command::Gate(gate) => gate.perform(),
        Command::Report(report) => report.perform(),
        Command::Lab(lab) => lab.perform(),
    }
}

/// What the fleet does with what it fetched.
fn follow(scenario: &Scenario, mut outcome: Outcome, seed: u64) -> anyhow::Result<Outcome> {
    if let Some(refresh) = &scenario.rollout {
        let figures = rollout::run(refresh, &outcome.finishes, seed)?;
        outcome.digest = blake3::hash((outcome.digest + &figures.digest).as_bytes()).to_hex().to_string();
        outcome.rollout = Some(figures);
    }
    Ok(outcome)
}

impl Run {
    /// A run at a committed size, everything else as `shoal-sim run` has it.
    pub(crate) fn committed(scenario: &Scenario, most: &Threshold, seed: u64) -> Self {
        let mut words = vec!["run".into(), scenario.name.into()];
        words.extend([format!("--nodes={}", most.size.nodes), format!("--pieces={}", most.size.pieces)]);
        words.push(format!("--seed={seed}"));
        words.extend(most.seeder_rate.map(|rate| format!("--seeder-rate={rate}")));
        Alone::parse_from(words).run
    }

    /// A command line that starts with `shoal-sim run`.
    fn parse(command: &str) -> anyhow::Result<Self> {
        let words = command.split(' ').skip(1);
        Ok(Alone::try_parse_from(words).with_context(|| command.to_owned())?.run)
    }

    /// On one thread: others run beside it.
    pub(crate) fn alone(mut self) -> Self {
        self.threads = Some(1);
        self
    }

    pub(crate) fn simulate(&self, scenario: &Scenario) -> anyhow::Result<(Report, Outcome)> {
        let size = self.size();
        let options = self.options(size)?;
        let started = Instant::now();
        let outcome = (policies::named(&self.policy)?.run)(scenario, size, &options);
        let outcome = match outcome.and_then(|outcome| follow(scenario, outcome, self.seed)) {
            Ok(outcome) => outcome,
            Err(failure) => bail!("{failure:#}\nreplay with: {}", self.replay(scenario)),
        };
        Ok((Report::new(scenario, size, self.seed, &outcome, started.elapsed())?, outcome))
    }

    fn perform(&self) -> anyhow::Result<ExitCode> {
        let scenario = scenarios::named(&self.scenario)?;
        let (report, outcome) = self.simulate(scenario)?;
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print!("{}", report.text(&outcome));
        }
        let most = scenario.threshold(self.size(), self.seeder_rate);
        // Another network promises nothing.
        let as_committed = |most: &&Threshold| {
            Self::committed(scenario, most, self.seed).replay(scenario) == self.replay(scenario)
        };
        let broken = most.filter(as_committed).map(|most| most.broken(&report)).unwrap_or_default();
        for promise in &broken {
            eprintln!("shoal-sim: {}: {promise}", scenario.name);
        }
        if !broken.is_empty() {
            eprintln!("shoal-sim: replay with: {}", self.replay(scenario));
        }
        Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn size(&self) -> Size {
        Size { nodes: self.nodes as usize, pieces: self.pieces as usize }
    }

    fn options(&self, size: Size) -> anyhow::Result<Options> {
        let above_zero = [
            (self.mbit, "--mbit"),
            (self.seeder_rate.unwrap_or(1.0), "--seeder-rate"),
            (self.latency, "--latency"),
            (self.verify, "--verify"),
            (self.store, "--store"),
        ];
        if let Some((_, name)) = above_zero.iter().find(|(value, _)| !(value.is_finite() && *value > 0.0)) {
            bail!("{name} must be above zero");
        }
        for (value, name) in [(self.jitter, "--jitter"), (self.message_cpu, "--message-cpu")] {
            if !(0.0..1e6).contains(&value) {
                bail!("{name} must not be negative");
            }
        }
        Ok(Options {
            seed: self.seed,
            check_every: self.check.unwrap_or(1 + (size.nodes * size.pieces) as u64 / 2500).max(1),
            node_bytes_per_s: self.mbit * 125_000.0,
            seeder_rate: self.seeder_rate,
            latency_block_times: self.latency,
            jitter: self.jitter,
            neighbours: self.neighbours,
            verify_bytes_per_s: self.verify * 1e6,
            store_bytes_per_s: self.store * 1e6,
            message_cpu: Duration::from_secs_f64(self.message_cpu * 1e-6),
            device_quanta: self.device,
            window_quanta: self.window,
            release: self.release,
            threads: self.threads,
            trace: self.trace,
            ..Options::default()
        })
    }

    pub(crate) fn replay(&self, scenario: &Scenario) -> String {
        let mut command = format!(
            "shoal-sim run {} --policy {} --nodes {} --pieces {} --seed {} --mbit {} --latency {} --jitter {} \
             --neighbours {} --verify {} --store {} --message-cpu {} --device {} --window {} --release {} --check 1",
            scenario.name,
            self.policy,
            self.nodes,
            self.pieces,
            self.seed,
            self.mbit,
            self.latency,
            self.jitter,
            self.neighbours,
            self.verify,
            self.store,
            self.message_cpu,
            self.device,
            self.window,
            if self.release == Release::Written { "written" } else { "arrived" }
        );
        if let Some(rate) = self.seeder_rate {
            command += &format!(" --seeder-rate {rate}");
        }
        command
    }
}
