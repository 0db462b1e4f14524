//! What is promised: each scenario is a file that says who takes part, what goes wrong and what must hold.

mod churn;
mod flash_crowd;
mod late_joiners;
mod seeder_lost;
mod stragglers;

use std::sync::Arc;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use shoal_proto::exchange::{Bitfield, Role};

use crate::report::Report;

pub(crate) const ALL: &[&Scenario] = &[
    &flash_crowd::SCENARIO,
    &late_joiners::SCENARIO,
    &stragglers::SCENARIO,
    &churn::SCENARIO,
    &seeder_lost::SCENARIO,
];

pub(crate) fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().copied().find(|scenario| scenario.name == name)
}

/// Nodes, without the seeders, and pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) nodes: usize,
    pub(crate) pieces: usize,
}

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// In one line.
    pub(crate) promise: &'static str,
    /// Uplink of a seeder, in uplinks of a node.
    pub(crate) seeder_rate: f64,
    pub(crate) plan: fn(&Stage, &mut ChaCha8Rng) -> Plan,
    /// The figures that hold at the committed sizes, for every seed.
    pub(crate) thresholds: &'static [Threshold],
}

/// What a scenario knows when it plans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stage {
    pub(crate) size: Size,
    /// Time of one piece over a node's link.
    pub(crate) block_time: Duration,
    /// Uplink of the seeder, in uplinks of a node.
    pub(crate) seeder_rate: f64,
}

/// Who takes part, and what lies between them.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) members: Vec<Member>,
    /// Pieces of the image.
    pub(crate) pieces: usize,
    /// Rate of each zone's trunk, each way, in uplinks of a node: what [`Member::zones`] names.
    pub(crate) trunks: Vec<f64>,
    /// Neighbours outside its rack, of a host that has one; inside it knows all, or as many as a host has at most.
    pub(crate) neighbours_outside: usize,
    pub(crate) partition: Option<Partition>,
}

/// For a time, hosts of different [`Member::side`]s do not reach each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Partition {
    pub(crate) from: Duration,
    pub(crate) until: Duration,
}

/// One host of a plan. Members are linked at random when they join.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) role: Role,
    /// Uplink and downlink, in those of a usual node.
    pub(crate) up: f64,
    pub(crate) down: f64,
    pub(crate) joins: Duration,
    pub(crate) dies: Death,
    /// The least time in which it could have everything after it joined.
    pub(crate) bound: Duration,
    /// Whether its finish counts for `last_over_bound`.
    pub(crate) measured: bool,
    /// What it holds at the start: `None` for all of a seeder's and none of a node's.
    pub(crate) held: Option<Arc<Bitfield>>,
    /// Where it stands: its rack, then what the rack is in. Empty for a host that hangs on the core.
    pub(crate) zones: Vec<u32>,
    /// Its side of a partition.
    pub(crate) side: u8,
    /// Whether others can connect to it: one behind a firewall only connects to others.
    pub(crate) dialable: bool,
    /// No piece that it sends is what its name says.
    pub(crate) liar: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Death {
    Never,
    At(Duration),
    /// A seeder, as soon as every piece was shown by a neighbour.
    OnceReplicated,
    /// As soon as it sent so many copies of the image.
    AfterCopies(f64),
}

impl Plan {
    /// A flat network that stays whole.
    pub(crate) fn flat(stage: &Stage, members: Vec<Member>) -> Self {
        let pieces = stage.size.pieces;
        Self { members, pieces, trunks: Vec::new(), neighbours_outside: 0, partition: None }
    }
}

/// Most that the figures may come to at one size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Threshold {
    pub(crate) size: Size,
    pub(crate) last_over_bound: f64,
    pub(crate) seeder_copies: f64,
    pub(crate) duplicate_ratio: f64,
    pub(crate) control_per_piece: f64,
}

impl Stage {
    /// No schedule is faster: pieces leave the seeder one after the other, and the last one must then double its
    /// holders until all have it. A faster seeder leaves each node's own downlink as the bound.
    pub(crate) fn bound(&self) -> Duration {
        let doublings = if self.seeder_rate > 1.0 { 0 } else { self.size.nodes.ilog2() };
        let pieces = u32::try_from(self.size.pieces).expect("bounded by the command line");
        self.block_time * (pieces + doublings)
    }

    pub(crate) fn seeder(&self) -> Member {
        Member {
            role: Role::Seeder,
            up: self.seeder_rate,
            down: self.seeder_rate,
            joins: Duration::ZERO,
            dies: Death::Never,
            bound: self.bound(),
            measured: false,
            held: None,
            zones: Vec::new(),
            side: 0,
            dialable: true,
            liar: false,
        }
    }

    pub(crate) fn node(&self) -> Member {
        Member { role: Role::Node, up: 1.0, down: 1.0, measured: true, ..self.seeder() }
    }
}

impl Scenario {
    /// The promises that a report breaks; none at a size without committed figures.
    pub(crate) fn broken(&self, size: Size, report: &Report) -> Vec<String> {
        let Some(most) = self.thresholds.iter().find(|threshold| threshold.size == size) else {
            return Vec::new();
        };
        [
            ("last_over_bound", report.last_over_bound, most.last_over_bound),
            ("seeder_copies", report.seeder_copies, most.seeder_copies),
            ("duplicate_ratio", report.duplicate_ratio, most.duplicate_ratio),
            ("control_per_piece", report.control_per_piece, most.control_per_piece),
        ]
        .into_iter()
        .filter(|(_, value, most)| value > most)
        .map(|(name, value, most)| format!("{name} is {value}, at most {most} is promised"))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;
    use crate::sim::{Options, Simulation, exchange};

    const SMALL: Size = Size { nodes: 40, pieces: 30 };

    fn run(scenario: &Scenario, options: Options) -> anyhow::Result<Outcome> {
        Simulation::new(scenario, SMALL, &options, exchange)?.run()
    }

    fn options(seed: u64) -> Options {
        Options {
            seed,
            check_every: 1,
            neighbours: 10,
            ..Options::default()
        }
    }

    #[test]
    fn every_scenario_completes_with_every_check_on() {
        for scenario in ALL {
            let outcome = run(scenario, options(1)).expect(scenario.name);
            let dead = if scenario.name == "churn" { SMALL.nodes / 20 } else { 0 };
            assert_eq!(outcome.complete, SMALL.nodes - dead, "{}", scenario.name);
        }
    }

    #[test]
    fn a_seed_gives_one_history_and_another_seed_another() {
        let digest = |seed| run(&flash_crowd::SCENARIO, options(seed)).unwrap().digest;
        assert_eq!(digest(1), digest(1));
        assert_ne!(digest(1), digest(2));
    }

    #[test]
    fn threads_do_not_change_the_history() {
        for scenario in ALL {
            let digest = |threads| run(scenario, Options { threads: Some(threads), ..options(1) }).unwrap().digest;
            assert_eq!(digest(1), digest(3), "{}", scenario.name);
        }
    }

    #[test]
    fn nodes_that_cannot_complete_are_named() {
        let failure = run(&flash_crowd::SCENARIO, Options { neighbours: 0, ..options(1) }).unwrap_err();
        assert!(failure.to_string().contains("40 live hosts are not complete"), "{failure}");
    }

    #[test]
    fn a_broken_promise_is_told_with_its_figures() {
        let report = Report {
            scenario: "flash-crowd",
            nodes: 200,
            pieces: 200,
            seed: 1,
            last_over_bound: 1.5,
            median_over_bound: 1.4,
            seeder_copies: 1.0,
            duplicate_ratio: 0.0,
            rack_copies_max: 1.0,
            rack_last_over_median: 1.0,
            control_per_piece: 30.0,
            complete: 200,
            wall_s: 1.0,
            peak_rss_bytes: 1,
            digest: String::new(),
        };
        let broken = flash_crowd::SCENARIO.broken(Size { nodes: 200, pieces: 200 }, &report);
        assert_eq!(broken, ["last_over_bound is 1.5, at most 1.1 is promised"]);
        assert!(flash_crowd::SCENARIO.broken(SMALL, &report).is_empty());
    }
}
