//! The lab: the shipped programs as processes, each on a host of its own that is a network namespace.
//!
//! A star: a bridge in a namespace of its own, one link to every host, shaped both ways; or racks of hosts, each behind
//! an uplink of its own. One host seeds, the others install at the same moment from nothing, or update at the same
//! moment from an older tree. Other tools may do the same on the same network, in turn. Knows neither of the programs
//! but by what they print.
//!
//! **Invariant:** whatever ends a run, its namespaces, processes and files go with it. What a run leaves that was
//! killed outright, the next one removes ([`leftovers`]).

mod deployment;
mod events;
mod folder;
mod leftovers;
mod machine;
mod meter;
mod network;
mod process;
mod report;
mod run;
mod tools;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use rustix::process::geteuid;

use network::{Racks, Rate};
use tools::Peer;

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
    /// Tools that deliver the same tree on the same network, after us and one after another
    #[arg(long, value_name = "TOOL,…", value_enum, value_delimiter = ',')]
    with: Vec<Peer>,
    /// Give a tool up that takes this many times what its bytes take on one link
    #[arg(long, value_name = "FACTOR", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    patience: u32,
    /// The hosts have this tree, and update to SOURCE
    #[arg(long, value_name = "OLD")]
    update: Option<PathBuf>,
    /// Put the hosts in this many racks, as many in each, the seeder's outside
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=250))]
    racks: Option<u16>,
    /// What the links of a rack's hosts carry together, of what the rack's uplink carries
    #[arg(long, value_name = "X", default_value_t = 1.0, requires = "racks")]
    ratio: f64,
    /// Tell no node its rack; without this a run with racks does both, told and untold
    #[arg(long, requires = "racks")]
    no_rack_labels: bool,
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
    /// The seeder is killed after 1.1 of the time on the wire, or as soon as every piece is held elsewhere if that is
    /// later
    SeederLost,
    /// One node in four is killed at half of the time on the wire
    Churn,
    /// Every second node is cut off from the seeder and the others, after a quarter of the time on the wire and for
    /// the whole of it
    Partition,
    /// With --update: the first node has SOURCE already and a fiftieth of the rate, and the seeder is killed: what SOURCE
    /// has that OLD has not comes from that node alone
    SlowLastPeer,
}

impl Lab {
    pub(crate) fn perform(&self) -> anyhow::Result<ExitCode> {
        self.check()?;
        let programs = Programs::beside_us()?;
        leftovers::remove(&self.dir)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let report = runtime.block_on(run::until_interrupted(self, &programs))?;
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print!("{}", report.text());
        }
        Ok(if report.is_verified() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// That all this can be done together, on this machine.
    fn check(&self) -> anyhow::Result<()> {
        for peer in &self.with {
            peer.tool().check()?;
        }
        if self.racks()?.is_some() {
            ensure!(self.scenario != Scenario::Partition, "--racks does not go with the scenario partition");
        }
        let slow_last_peer = self.scenario == Scenario::SlowLastPeer;
        ensure!(!slow_last_peer || self.update.is_some(), "the scenario slow-last-peer needs --update");
        if self.update.is_some() {
            ensure!(
                slow_last_peer || self.scenario == Scenario::FlashCrowd,
                "--update goes with the scenarios flash-crowd and slow-last-peer only"
            );
            if let Some(peer) = self.with.iter().find(|peer| !peer.tool().updates) {
                bail!(
                    "{} cannot update a tree, only bring a whole one: leave out --update",
                    peer.tool().name
                );
            }
        }
        if !self.with.is_empty() && !matches!(self.scenario, Scenario::FlashCrowd | Scenario::Stragglers) {
            bail!("--with goes with the scenarios flash-crowd and stragglers only");
        }
        ensure!(geteuid().is_root(), "the lab needs root, for network namespaces");
        for folder in [Some(&self.source), Some(&self.dir), self.update.as_ref()].into_iter().flatten() {
            ensure!(folder.is_dir(), "{} is no directory", folder.display());
        }
        if let Some(congestion) = &self.congestion {
            let offered = std::fs::read_to_string(CONGESTION_OFFERED)?;
            let known = offered.split_whitespace().any(|name| name == congestion);
            ensure!(known, "namespaces may use {} for --congestion, not {congestion}", offered.trim());
        }
        Ok(())
    }

    /// The racks asked for.
    fn racks(&self) -> anyhow::Result<Option<Racks>> {
        let Some(count) = self.racks else { return Ok(None) };
        let nodes = self.nodes;
        ensure!(nodes.is_multiple_of(count), "{nodes} nodes do not fill {count} racks evenly");
        ensure!(self.ratio >= 0.01 && self.ratio <= 100.0, "--ratio is not between 0.01 and 100");
        let hosts_each = usize::from(nodes / count);
        let uplink = self.rate.of_several(hosts_each, self.ratio);
        Ok(Some(Racks { count: usize::from(count), hosts_each, uplink }))
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
