//! The committed runs: which they are, and the files that keep what came of them.
//!
//! A file is one JSON object, a field per line, of [`Run`]. It holds nothing that depends on the machine: running the
//! set again gives the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::outcome::{Curve, Outcome};
use crate::policies::{self, OURS, Policy};
use crate::report::Report;
use crate::scenarios::{self, Scenario, Size};
use crate::sim::Options;

/// Points of a completion curve that are kept, at most.
const CURVE_POINTS_MAX: usize = 200;
/// Steps between the quantiles of the finish times that are kept.
const QUANTILES: usize = 100;
/// Seeds of the run that the page opens with.
const SEEDS: u64 = 5;

/// One run to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Todo {
    scenario: &'static str,
    policy: &'static str,
    size: Size,
    seed: u64,
    /// In uplinks of a node; `None` for the scenario's.
    seeder_rate: Option<f64>,
    /// Takes minutes: done only when asked for.
    pub(crate) heavy: bool,
}

/// What came of one run. The first fields are those of `shoal-sim run --json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) scenario: String,
    pub(crate) nodes: usize,
    pub(crate) pieces: usize,
    pub(crate) seed: u64,
    pub(crate) last_over_bound: f64,
    pub(crate) median_over_bound: f64,
    pub(crate) seeder_copies: f64,
    pub(crate) duplicate_ratio: f64,
    pub(crate) rack_copies_max: f64,
    pub(crate) rack_last_over_median: f64,
    pub(crate) control_per_piece: f64,
    pub(crate) complete: usize,
    pub(crate) digest: String,
    /// Does it again.
    pub(crate) command: String,
    pub(crate) policy: String,
    /// Uplink of a seeder, in uplinks of a node.
    pub(crate) seeder_rate: f64,
    pub(crate) bound_s: f64,
    /// Finish over bound of the measured nodes, at even shares of them from the first to the last.
    pub(crate) finish_quantiles: Vec<f64>,
    /// Time between two points of the curves, in bounds.
    pub(crate) curve_step: f64,
    /// Share of the pieces that nodes held, and of the nodes that were complete, at the end of each step.
    pub(crate) curve_pieces: Vec<f64>,
    pub(crate) curve_nodes: Vec<f64>,
    /// Copies of the image that came into each rack; none in a flat network.
    pub(crate) racks_copies_in: Vec<f64>,
    /// The last finish of each rack, over the bound.
    pub(crate) racks_last: Vec<f64>,
}

/// The sizes of a set of runs.
struct Sizes {
    compared: Size,
    seeds: u64,
    /// Nodes at the pieces of `compared`.
    nodes: &'static [usize],
    nodes_heavy: &'static [usize],
    /// Nodes and pieces.
    pieces: &'static [(usize, &'static [usize])],
    /// Largest committed size of a scenario that is run, in nodes × pieces.
    work_max: usize,
}

const FULL: Sizes = Sizes {
    compared: Size { nodes: 1000, pieces: 500 },
    seeds: SEEDS,
    nodes: &[16, 100, 200],
    nodes_heavy: &[10_000],
    pieces: &[(100, &[100, 500, 2000, 8000]), (1000, &[100, 2000])],
    work_max: usize::MAX,
};

const QUICK: Sizes = Sizes {
    compared: Size { nodes: 100, pieces: 200 },
    seeds: 2,
    nodes: &[16, 50, 200],
    nodes_heavy: &[],
    pieces: &[(100, &[50, 100, 400])],
    work_max: 200 * 200,
};

/// All that the page shows: the policies at one size, the scaling of ours, each scenario at its committed sizes.
pub(crate) fn all(quick: bool) -> Vec<Todo> {
    let sizes = if quick { QUICK } else { FULL };
    let ours = |size| Todo::new("flash-crowd", OURS, size);
    let compared = ours(sizes.compared);
    let others = policies::ALL.iter().filter(|policy| policy.name != "chain-bare");
    let mut all: Vec<Todo> = others.map(|policy| Todo { policy: policy.name, ..compared }).collect();
    all.extend((2..=sizes.seeds).map(|seed| Todo { seed, ..compared }));
    all.push(Todo { seeder_rate: Some(10.0), ..compared });
    all.extend(sizes.nodes.iter().map(|&nodes| ours(Size { nodes, ..sizes.compared })));
    let heavy = sizes.nodes_heavy.iter();
    all.extend(heavy.map(|&nodes| Todo { heavy: true, ..ours(Size { nodes, ..sizes.compared }) }));
    for (nodes, pieces) in sizes.pieces {
        all.extend(pieces.iter().map(|&pieces| ours(Size { nodes: *nodes, pieces })));
    }
    for scenario in scenarios::ALL {
        let kept =
            scenario.thresholds.iter().filter(|most| most.size.nodes * most.size.pieces <= sizes.work_max);
        all.extend(kept.map(|most| Todo {
            scenario: scenario.name,
            seeder_rate: most.seeder_rate,
            heavy: most.heavy,
            ..ours(most.size)
        }));
    }
    let by_name: BTreeMap<String, Todo> = all.into_iter().map(|todo| (todo.name(), todo)).collect();
    by_name.into_values().collect()
}

impl Todo {
    pub(crate) fn new(scenario: &'static str, policy: &'static str, size: Size) -> Self {
        Self { scenario, policy, size, seed: 1, seeder_rate: None, heavy: false }
    }

    /// Of its file, without the extension.
    pub(crate) fn name(&self) -> String {
        let mut name = format!("{}-{}x{}", self.scenario, self.size.nodes, self.size.pieces);
        if let Some(rate) = self.seeder_rate {
            name += &format!("-seeder{rate}");
        }
        if self.seed != 1 {
            name += &format!("-seed{}", self.seed);
        }
        if self.policy != OURS {
            name += &format!("-{}", self.policy);
        }
        name
    }

    pub(crate) fn command(&self) -> String {
        let mut command = format!("shoal-sim run {}", self.scenario);
        if self.policy != OURS {
            command += &format!(" --policy {}", self.policy);
        }
        command +=
            &format!(" --nodes {} --pieces {} --seed {}", self.size.nodes, self.size.pieces, self.seed);
        if let Some(rate) = self.seeder_rate {
            command += &format!(" --seeder-rate {rate}");
        }
        command
    }

    /// `options` are those of [`Todo::command`].
    pub(crate) fn perform(&self, options: &Options) -> anyhow::Result<Run> {
        let scenario = scenarios::named(self.scenario)?;
        let policy = policies::named(self.policy)?;
        self.run(scenario, policy, options).with_context(|| self.command())
    }

    fn run(&self, scenario: &Scenario, policy: &Policy, options: &Options) -> anyhow::Result<Run> {
        let outcome = (policy.run)(scenario, self.size, options)?;
        let report = Report::new(scenario, self.size, self.seed, &outcome, Duration::ZERO)?;
        let mut run = serde_json::to_value(report)?;
        let rest = serde_json::json!({
            "command": self.command(),
            "policy": self.policy,
            "seeder_rate": options.seeder_rate.unwrap_or(scenario.seeder_rate),
            "bound_s": rounded(outcome.bound.as_secs_f64()),
            "finish_quantiles": quantiles(&outcome.over_bound()),
            "racks_copies_in": rounded_all(outcome.racks.iter().map(|rack| rack.copies_in)),
            "racks_last": rounded_all(outcome.racks.iter().map(|rack| rack.last_over_bound)),
        });
        for part in [rest, curves(&outcome)] {
            if let (Value::Object(run), Value::Object(part)) = (&mut run, part) {
                run.extend(part);
            }
        }
        Ok(serde_json::from_value(run)?)
    }
}

fn curves(outcome: &Outcome) -> Value {
    let Curve { step, pieces, nodes } = &outcome.curve;
    let every = pieces.len().div_ceil(CURVE_POINTS_MAX).max(1);
    // The last step is kept: there the curve is whole.
    let thin = |curve: &[f64]| {
        let last = curve.last().filter(|_| !curve.len().is_multiple_of(every));
        rounded_all(curve.iter().skip(every - 1).step_by(every).chain(last).copied())
    };
    serde_json::json!({
        "curve_step": rounded(step * every as f64),
        "curve_pieces": thin(pieces),
        "curve_nodes": thin(nodes),
    })
}

fn quantiles(ascending: &[f64]) -> Vec<f64> {
    let last = ascending.len().saturating_sub(1);
    rounded_all((0..=QUANTILES).filter_map(|step| ascending.get(last * step / QUANTILES).copied()))
}

fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

fn rounded_all(values: impl Iterator<Item = f64>) -> Vec<f64> {
    values.map(|value| (value * 1e4).round() / 1e4).collect()
}

/// Writes the file of a run.
pub(crate) fn write(folder: &Path, name: &str, run: &Run) -> anyhow::Result<()> {
    let Value::Object(fields) = serde_json::to_value(run)? else { anyhow::bail!("a run is no object") };
    let lines: Vec<String> = fields.iter().map(|(name, value)| format!("  \"{name}\": {value}")).collect();
    let path = folder.join(format!("{name}.json"));
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::write(&path, format!("{{\n{}\n}}\n", lines.join(",\n")))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Reads every file of a folder, by name.
pub(crate) fn read(folder: &Path) -> anyhow::Result<Vec<Run>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.with_context(|| format!("cannot read {}", folder.display()))?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    ensure!(!paths.is_empty(), "{} holds no result", folder.display());
    let read = |path: &Path| {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no result of a run", path.display()))
    };
    paths.iter().map(|path| read(path)).collect()
}
