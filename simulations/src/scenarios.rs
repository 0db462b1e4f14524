//! What is promised: each scenario is a file that says who takes part, what goes wrong and what must hold.

mod bad_release;
mod churn;
mod churn_heavy;
mod firewalled;
mod flash_crowd;
mod huge_image;
mod late_joiners;
mod liars;
mod lost_pieces;
mod mixed_rates;
mod partial_seeders;
mod partition_heal;
mod rack_crippled;
mod racks;
mod racks_churn;
mod racks_stragglers;
mod racks_wide;
mod refresh;
mod refresh_wave;
mod returning;
mod rows;
mod seeder_lost;
mod seeder_lost_at_once;
mod seeder_restart;
mod slow_holder;
mod slow_peer_last_piece;
mod staggered_start;
mod stragglers;
mod tiny_image;
mod two_seeders;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rand_chacha::ChaCha8Rng;
use shoal_proto::exchange::{Bitfield, Role};

use crate::report::Report;
use crate::rollout::Refresh;

pub(crate) const ALL: &[&Scenario] = &[
    &flash_crowd::SCENARIO,
    &staggered_start::SCENARIO,
    &late_joiners::SCENARIO,
    &refresh::SCENARIO,
    &returning::SCENARIO,
    &partial_seeders::SCENARIO,
    &tiny_image::SCENARIO,
    &huge_image::SCENARIO,
    &two_seeders::SCENARIO,
    &mixed_rates::SCENARIO,
    &stragglers::SCENARIO,
    &churn::SCENARIO,
    &churn_heavy::SCENARIO,
    &seeder_lost::SCENARIO,
    &seeder_lost_at_once::SCENARIO,
    &lost_pieces::SCENARIO,
    &partition_heal::SCENARIO,
    &firewalled::SCENARIO,
    &slow_peer_last_piece::SCENARIO,
    &slow_holder::SCENARIO,
    &liars::SCENARIO,
    &racks::SCENARIO,
    &racks_wide::SCENARIO,
    &rows::SCENARIO,
    &racks_churn::SCENARIO,
    &racks_stragglers::SCENARIO,
    &rack_crippled::SCENARIO,
    &refresh_wave::SCENARIO,
    &bad_release::SCENARIO,
    &seeder_restart::SCENARIO,
];

pub(crate) fn named(name: &str) -> anyhow::Result<&'static Scenario> {
    let found = ALL.iter().copied().find(|scenario| scenario.name == name);
    found.with_context(|| format!("no scenario is called {name}: see shoal-sim list"))
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
    /// What follows once nodes have everything.
    pub(crate) rollout: Option<Refresh>,
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
    /// Neighbours outside its rack, at each level, of a host that has one; inside it knows all, or as many as a host has at most.
    pub(crate) neighbours_outside: usize,
    pub(crate) partition: Option<Partition>,
    /// Some pieces are to be had nowhere in the end: a node is done when it has said of each that it lacks that it is
    /// not to be had.
    pub(crate) some_is_lost: bool,
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
        Self {
            members,
            pieces,
            trunks: Vec::new(),
            neighbours_outside: 0,
            partition: None,
            some_is_lost: false,
        }
    }
}

/// Most that the figures may come to at one size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Threshold {
    pub(crate) size: Size,
    /// Of the seeders, in uplinks of a node; `None` for the scenario's own.
    pub(crate) seeder_rate: Option<f64>,
    pub(crate) last_over_bound: f64,
    pub(crate) seeder_copies: f64,
    pub(crate) duplicate_ratio: f64,
    pub(crate) rack_copies_max: f64,
    pub(crate) rack_last_over_median: f64,
    pub(crate) control_per_piece: f64,
    /// Takes more than a minute: not run unless asked for.
    pub(crate) heavy: bool,
}

impl Threshold {
    /// What holds unless a scenario has a reason.
    const STRICT: Self = Self {
        size: Size { nodes: 0, pieces: 0 },
        seeder_rate: None,
        last_over_bound: 1.10,
        seeder_copies: 1.005,
        duplicate_ratio: 0.0005,
        rack_copies_max: 1.05,
        rack_last_over_median: 1.1,
        control_per_piece: 35.0,
        heavy: false,
    };
}

impl Stage {
    /// No schedule is faster: pieces leave the seeder one after the other, and the last one must then double its
    /// holders until all have it. A faster seeder leaves each node's own downlink as the bound.
    pub(crate) fn bound(&self) -> Duration {
        let doublings = if self.seeder_rate > 1.0 { 0 } else { self.size.nodes.ilog2() };
        self.pieces_time(self.size.pieces) + self.block_time * doublings
    }

    /// Time of so many pieces over a node's link.
    pub(crate) fn pieces_time(&self, pieces: usize) -> Duration {
        self.block_time * u32::try_from(pieces).expect("bounded by the command line")
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
    /// The committed figures for a size, if there are any.
    pub(crate) fn threshold(&self, size: Size, seeder_rate: Option<f64>) -> Option<&Threshold> {
        self.thresholds.iter().find(|most| most.size == size && most.seeder_rate == seeder_rate)
    }
}

impl Threshold {
    /// What a report breaks, with its figures.
    pub(crate) fn broken(&self, report: &Report) -> Vec<String> {
        [
            ("last_over_bound", report.last_over_bound, self.last_over_bound),
            ("seeder_copies", report.seeder_copies, self.seeder_copies),
            ("duplicate_ratio", report.duplicate_ratio, self.duplicate_ratio),
            ("rack_copies_max", report.rack_copies_max, self.rack_copies_max),
            ("rack_last_over_median", report.rack_last_over_median, self.rack_last_over_median),
            ("control_per_piece", report.control_per_piece, self.control_per_piece),
        ]
        .into_iter()
        .filter(|(_, value, most)| value > most)
        .map(|(name, value, most)| format!("{name} is {value}, at most {most} is promised"))
        .collect()
    }

    /// The scenario's name, with the seeder's rate where that is not the scenario's own.
    pub(crate) fn label(&self, scenario: &str) -> String {
        self.seeder_rate.map_or_else(|| scenario.into(), |rate| format!("{scenario}, seeder x {rate}"))
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
        Options { seed, check_every: 1, neighbours: 10, ..Options::default() }
    }

    #[test]
    fn every_scenario_completes_with_every_check_on() {
        for scenario in ALL {
            let outcome = run(scenario, options(1)).expect(scenario.name);
            for finish in &outcome.finishes {
                let excused = finish.died || !finish.measured;
                assert!(finish.finished.is_some() || excused, "{}: host {}", scenario.name, finish.host);
            }
            let finished = outcome.finishes.iter().filter(|finish| finish.finished.is_some()).count();
            // Where pieces are lost with the seeder, to finish is to name them.
            let complete =
                if scenario.name == lost_pieces::SCENARIO.name { 0..1 } else { finished..usize::MAX };
            assert!(finished >= SMALL.nodes / 2, "{}: {finished} finished", scenario.name);
            assert!(complete.contains(&outcome.complete), "{}: {} complete", scenario.name, outcome.complete);
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
            let digest =
                |threads| run(scenario, Options { threads: Some(threads), ..options(1) }).unwrap().digest;
            assert_eq!(digest(1), digest(3), "{}", scenario.name);
        }
    }

    #[test]
    fn rollouts_end_as_they_should_and_touch_nobody_ahead_of_the_waves() {
        let all = ALL.iter().filter_map(|scenario| Some((scenario, scenario.rollout?)));
        for (scenario, refresh) in all {
            let outcome = run(scenario, options(1)).unwrap();
            let figures = |seed| crate::rollout::run(&refresh, &outcome.finishes, seed).expect(scenario.name);
            for seed in 0..5 {
                assert_eq!(figures(seed), figures(seed), "{}", scenario.name);
            }
            let figures = figures(1);
            let (touched, passed) = if refresh.is_good { (SMALL.nodes, 4) } else { (1, 0) };
            assert_eq!((figures.nodes_touched, figures.waves_passed), (touched, passed), "{}", scenario.name);
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
            rollout: None,
            wall_s: 1.0,
            peak_rss_bytes: 1,
            digest: String::new(),
        };
        let most = flash_crowd::SCENARIO.threshold(Size { nodes: 200, pieces: 200 }, None).unwrap();
        assert_eq!(most.broken(&report), ["last_over_bound is 1.5, at most 1.1 is promised"]);
        assert!(most.broken(&Report { last_over_bound: 1.0, ..report }).is_empty());
        assert!(flash_crowd::SCENARIO.threshold(SMALL, None).is_none());
    }
}
