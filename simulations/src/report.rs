//! What a run says: one JSON object or a short text.

pub(crate) mod page;
pub(crate) mod picture;
mod plots;
pub(crate) mod runs;
mod svg;

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use crate::outcome::{Outcome, Rack};
use crate::rollout::Figures;
use crate::scenarios::{Scenario, Size};
use crate::tally::MESSAGE_NAMES;

/// Field names and meanings are stable: other programs read them.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) scenario: &'static str,
    pub(crate) nodes: usize,
    pub(crate) pieces: usize,
    pub(crate) seed: u64,
    /// Of the nodes that the scenario measures, the latest finish over that node's own bound.
    pub(crate) last_over_bound: f64,
    pub(crate) median_over_bound: f64,
    /// What the seeders sent, in copies of the image.
    pub(crate) seeder_copies: f64,
    /// Pieces received for nothing over pieces received.
    pub(crate) duplicate_ratio: f64,
    /// Copies into the rack that got most. A flat network is one rack with the seeders outside.
    pub(crate) rack_copies_max: f64,
    /// The last finish of the slowest rack over that of the median rack; 1 in a flat network.
    pub(crate) rack_last_over_median: f64,
    /// Control messages of every kind, haves among them, per piece received.
    pub(crate) control_per_piece: f64,
    /// Nodes that hold everything at the end.
    pub(crate) complete: usize,
    /// What came of the rollout, where there is one.
    #[serde(flatten)]
    pub(crate) rollout: Option<Figures>,
    pub(crate) wall_s: f64,
    pub(crate) peak_rss_bytes: u64,
    /// BLAKE3 of the whole event history.
    pub(crate) digest: String,
}

impl Report {
    pub(crate) fn new(
        scenario: &Scenario,
        size: Size,
        seed: u64,
        outcome: &Outcome,
        wall: Duration,
    ) -> anyhow::Result<Self> {
        let over_bound = outcome.over_bound();
        let tally = &outcome.tally;
        let pieces_received = tally.pieces_received.max(1) as f64;
        let seeder_copies = outcome.seeder_pieces as f64 / size.pieces as f64;
        Ok(Self {
            scenario: scenario.name,
            nodes: size.nodes,
            pieces: size.pieces,
            seed,
            last_over_bound: rounded(over_bound.last().copied().context("no node is measured")?),
            median_over_bound: rounded(over_bound[over_bound.len() / 2]),
            seeder_copies: rounded(seeder_copies),
            duplicate_ratio: rounded(tally.duplicates as f64 / pieces_received),
            rack_copies_max: rounded(
                outcome.racks.iter().map(|rack| rack.copies_in).reduce(f64::max).unwrap_or(seeder_copies),
            ),
            rack_last_over_median: rounded(last_over_median(&outcome.racks)),
            control_per_piece: rounded(tally.messages.iter().sum::<u64>() as f64 / pieces_received),
            complete: outcome.complete,
            rollout: outcome.rollout.clone(),
            wall_s: rounded(wall.as_secs_f64()),
            peak_rss_bytes: peak_rss_bytes().context("cannot read the peak memory of this process")?,
            digest: outcome.digest.clone(),
        })
    }

    pub(crate) fn text(&self, outcome: &Outcome) -> String {
        let per_piece = |count: u64| count as f64 / outcome.tally.pieces_received.max(1) as f64;
        let kinds: Vec<_> = outcome
            .tally
            .messages
            .iter()
            .zip(MESSAGE_NAMES)
            .filter(|&(&count, _)| count > 0)
            .map(|(&count, name)| format!("{name} {:.2}", per_piece(count)))
            .collect();
        let died = match outcome.finishes.iter().filter(|finish| finish.died).count() {
            0 => String::new(),
            died => format!(", {died} died"),
        };
        let racks = match outcome.racks.len() {
            0 => String::new(),
            count => format!(
                "zones         {count}; at most {:.4} copies in; the slowest is done at {:.4} x the median one\n",
                self.rack_copies_max, self.rack_last_over_median
            ),
        };
        let rollout = self.rollout.as_ref().map(Figures::text).unwrap_or_default();
        format!(
            "{} with {} nodes and {} pieces, seed {}\n\
             last node     {:.4} x its bound (median {:.4}); {} nodes complete after {:.1} s{}\n\
             seeder        {:.4} copies; the busiest node {:.4}\n\
             {}duplicates    {:.4} %\n\
             control       {:.1} messages, {:.0} bytes per piece ({})\n\
             {}run           {:.1} s, {} events, {} MiB at most\n\
             digest        {}\n",
            self.scenario,
            self.nodes,
            self.pieces,
            self.seed,
            self.last_over_bound,
            self.median_over_bound,
            self.complete,
            outcome.ended.as_secs_f64(),
            died,
            self.seeder_copies,
            outcome.busiest_pieces as f64 / self.pieces as f64,
            racks,
            self.duplicate_ratio * 100.0,
            self.control_per_piece,
            per_piece(outcome.tally.control_bytes),
            kinds.join(", "),
            rollout,
            self.wall_s,
            outcome.events,
            self.peak_rss_bytes >> 20,
            self.digest,
        )
    }
}

fn last_over_median(racks: &[Rack]) -> f64 {
    let mut lasts: Vec<f64> = racks.iter().map(|rack| rack.last_over_bound).collect();
    lasts.sort_by(f64::total_cmp);
    lasts.last().map_or(1.0, |last| last / lasts[lasts.len() / 2])
}

fn rounded(ratio: f64) -> f64 {
    (ratio * 1e6).round() / 1e6
}

/// `VmHWM` of proc(5).
fn peak_rss_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib << 10)
}
