//! The lab: the shipped programs as processes, each on a host of its own that is a network namespace.
//!
//! A star: a bridge in a namespace of its own, one link to every host, shaped both ways. One host seeds, the others
//! install at the same moment from nothing. Knows neither of the programs but by what they print.
//!
//! **Invariant:** whatever ends a run, its namespaces, processes and files go with it. What a run leaves that was
//! killed outright, the next one removes ([`leftovers`]).

mod leftovers;
mod network;
mod process;
mod report;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use rustix::process::geteuid;

use network::Rate;

/// Every namespace and folder of a run is called this, and the number of the run's process.
const NAME: &str = "shoal-lab";
/// What the kernel lets a namespace use, separated by blanks.
const CONGESTION_OFFERED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

#[derive(Debug, Args)]
pub(crate) struct Lab {
    /// The tree that becomes the image
    source: PathBuf,
    /// Hosts besides the seeder's
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=250))]
    nodes: u16,
    /// What each host's link carries, each way: a number with kbit, mbit or gbit
    #[arg(long, default_value = "100mbit")]
    rate: Rate,
    /// What happens
    #[arg(long, value_enum, default_value = "flash-crowd")]
    scenario: Scenario,
    /// How the hosts' TCP reacts to congestion, such as reno; namespaces may use what the machine allows to everyone
    /// [default: as this machine]
    #[arg(long, value_name = "NAME")]
    congestion: Option<String>,
    /// Bytes that wait at most before each host's own link
    #[arg(long, value_name = "BYTES", default_value_t = 1_000_000)]
    uplink_queue: u32,
    /// Bytes that wait at most in the bridge for each host
    #[arg(long, value_name = "BYTES", default_value_t = 512_000)]
    downlink_queue: u32,
    /// Where the hosts keep their files; best a file system in memory
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Leave the hosts' files, with what each program said, and say where
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// All nodes start at once
    FlashCrowd,
    /// Every second node starts when half of the time on the wire is over
    LateJoiners,
    /// One node in eight has a tenth of the rate, both ways
    Stragglers,
    /// The seeder is killed after 1.1 of the time on the wire
    SeederLost,
    /// One node in four is killed at half of the time on the wire
    Churn,
}

impl Lab {
    pub(crate) fn perform(&self) -> anyhow::Result<ExitCode> {
        ensure!(geteuid().is_root(), "the lab needs root, for network namespaces");
        ensure!(self.source.is_dir(), "{} is no directory", self.source.display());
        ensure!(self.dir.is_dir(), "{} is no directory", self.dir.display());
        if let Some(congestion) = &self.congestion {
            let offered = std::fs::read_to_string(CONGESTION_OFFERED)?;
            let known = offered.split_whitespace().any(|name| name == congestion);
            ensure!(known, "namespaces may use {} for --congestion, not {congestion}", offered.trim());
        }
        let programs = Programs::beside_us()?;
        leftovers::remove(&self.dir)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let report = runtime.block_on(run::until_interrupted(self, &programs))?;
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print!("{}", report.text());
        }
        Ok(if report.verified { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The programs under test.
#[derive(Debug)]
struct Programs {
    node: PathBuf,
    seeder: PathBuf,
}

impl Programs {
    fn beside_us() -> anyhow::Result<Self> {
        let us = std::env::current_exe().context("cannot find the running program")?;
        let find = |name: &str| {
            let path = us.with_file_name(name);
            if !path.is_file() {
                bail!("there is no {}: build it first", path.display());
            }
            Ok(path)
        };
        Ok(Self { node: find("shoal-node")?, seeder: find("shoal-seeder")? })
    }
}
