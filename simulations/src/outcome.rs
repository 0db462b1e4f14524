//! What came of a run.

use std::time::Duration;

use crate::rollout::Figures;
use crate::tally::Tally;

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) finishes: Vec<Finish>,
    /// Nodes that hold everything.
    pub(crate) complete: usize,
    pub(crate) seeder_pieces: u64,
    /// Pieces that the busiest node sent.
    pub(crate) busiest_pieces: u64,
    pub(crate) tally: Tally,
    /// Zones with a trunk; none in a flat network.
    pub(crate) racks: Vec<Rack>,
    pub(crate) curve: Curve,
    /// The least time in which a usual node could have everything.
    pub(crate) bound: Duration,
    pub(crate) ended: Duration,
    pub(crate) events: u64,
    /// What came of the rollout, where there is one.
    pub(crate) rollout: Option<Figures>,
    pub(crate) digest: String,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Finish {
    pub(crate) host: u32,
    /// Time from its start over its own bound; `None` for one that died.
    pub(crate) over_bound: Option<f64>,
    /// Since the start of the run.
    pub(crate) finished: Option<Duration>,
    pub(crate) measured: bool,
    /// Before it had everything.
    pub(crate) died: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rack {
    /// Copies of the image that came in over its trunk.
    pub(crate) copies_in: f64,
    /// Of its measured nodes.
    pub(crate) last_over_bound: f64,
}

/// How far the swarm was at even steps of time.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    /// In bounds.
    pub(crate) step: f64,
    /// Pieces that nodes held at the end of each step, of all that they came to hold.
    pub(crate) pieces: Vec<f64>,
    /// Nodes that were complete, of all that came to be.
    pub(crate) nodes: Vec<f64>,
}

impl Outcome {
    /// Finish over bound of the measured nodes, ascending.
    pub(crate) fn over_bound(&self) -> Vec<f64> {
        let measured = self.finishes.iter().filter(|finish| finish.measured);
        let mut over_bound: Vec<f64> = measured.filter_map(|finish| finish.over_bound).collect();
        over_bound.sort_by(f64::total_cmp);
        over_bound
    }
}

impl Curve {
    pub(crate) fn new(tally: &Tally, finishes: &[Finish], bound: Duration) -> Self {
        let total: u64 = tally.held.iter().sum();
        let mut sum = 0;
        let pieces = tally.held.iter().map(|held| {
            sum += held;
            sum as f64 / total.max(1) as f64
        });
        let mut finished: Vec<Duration> = finishes.iter().filter_map(|finish| finish.finished).collect();
        finished.sort_unstable();
        let nodes = (1..=tally.held.len()).map(|step| {
            let end = tally.step * u32::try_from(step).unwrap_or(u32::MAX);
            finished.partition_point(|finished| *finished < end) as f64 / finished.len().max(1) as f64
        });
        Self {
            step: tally.step.as_secs_f64() / bound.as_secs_f64(),
            pieces: pieces.collect(),
            nodes: nodes.collect(),
        }
    }
}
