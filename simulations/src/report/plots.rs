//! What is drawn of the runs, and what each drawing shows in a sentence: both from the data alone.

use super::runs::Run;
use super::svg::{self, Axis, Bar, Mark, Series, grouped};
use crate::policies::{self, OURS};

/// A bar or a curve that takes more than this many of the bound, or of copies, is cut or left to the table.
const DRAWN_MAX: f64 = 5.0;
/// Curves are drawn up to here, in bounds: the rest of a slow one is in the table.
const CURVES_MAX: f64 = 2.0;

/// A drawing with its text and its figures.
#[derive(Debug)]
pub(crate) struct Plot {
    /// Of its files.
    pub(crate) id: &'static str,
    pub(crate) title: String,
    pub(crate) takeaway: String,
    pub(crate) svg: String,
    pub(crate) table: Table,
}

#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Plot {
    /// The drawing as a file of its own.
    pub(crate) fn alone(&self) -> String {
        svg::alone(&self.svg)
    }
}

impl Table {
    fn new(head: &[&str], rows: Vec<Vec<String>>) -> Self {
        Self { head: head.iter().map(|name| (*name).to_owned()).collect(), rows }
    }
}

pub(crate) fn title(policy: &str) -> &str {
    policies::named(policy).map_or(policy, |policy| policy.title)
}

/// `1.0504` as `1.050`, `97.1` as `97`.
pub(crate) fn times(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.3}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => grouped(value),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn is_ours(run: &Run) -> bool {
    run.policy == OURS
}

/// The end of an axis that all values fit on but those that are cut.
fn axis_end(values: impl Iterator<Item = f64>) -> f64 {
    values.filter(|&value| value <= DRAWN_MAX).fold(1.0, f64::max) * 1.05
}

/// Last node over the bound, policy by policy.
pub(crate) fn policies(compared: &[&Run]) -> Option<Plot> {
    let ours = compared.iter().find(|run| is_ours(run))?;
    let others = compared.iter().filter(|run| !is_ours(run));
    let best = others.clone().min_by(|a, b| a.last_over_bound.total_cmp(&b.last_over_bound))?;
    let worst = others.max_by(|a, b| a.last_over_bound.total_cmp(&b.last_over_bound))?;
    let bars: Vec<Bar> = compared.iter().map(|run| bar(run, run.last_over_bound, " ×")).collect();
    let axis =
        Axis::linear("last node ÷ bound", 0.0, axis_end(compared.iter().map(|run| run.last_over_bound)), 5);
    let title_ = format!("What each policy costs ({})", size(ours));
    let rows = compared.iter().map(|run| {
        vec![
            title(&run.policy).to_owned(),
            policies::named(&run.policy).map_or("", |policy| policy.about).to_owned(),
            times(run.last_over_bound),
            times(run.median_over_bound),
            times(run.seeder_copies),
            format!("{:.2} %", run.duplicate_ratio * 100.0),
            format!("{:.1}", run.control_per_piece),
        ]
    });
    Some(Plot {
        id: "policies",
        takeaway: format!(
            "With Shoal the last node is done at {} × the bound. The best of the others, {}, takes {} × ({} longer); \
             {} takes {} ×.",
            times(ours.last_over_bound),
            title(&best.policy),
            times(best.last_over_bound),
            percent(best.last_over_bound / ours.last_over_bound - 1.0),
            title(&worst.policy),
            times(worst.last_over_bound),
        ),
        svg: svg::bars(&title_, &axis, (1.0, "the bound"), &bars),
        title: title_,
        table: Table::new(
            &[
                "policy",
                "what it does",
                "last ÷ bound",
                "median ÷ bound",
                "seeder copies",
                "duplicates",
                "control messages per piece",
            ],
            rows.collect(),
        ),
    })
}

fn bar(run: &Run, value: f64, unit: &str) -> Bar {
    let figure = times(value) + unit;
    Bar { name: title(&run.policy).to_owned(), value, figure, ours: is_ours(run) }
}

/// Nodes and pieces of a run.
pub(crate) fn size(run: &Run) -> String {
    format!("{} nodes, {} pieces", grouped(run.nodes as f64), grouped(run.pieces as f64))
}

/// When the nodes of ours finish, by the number of pieces.
pub(crate) fn finishes(runs: &[&Run]) -> Option<Plot> {
    let main = runs.first()?;
    let (first, last) = (main.finish_quantiles.first()?, main.finish_quantiles.last()?);
    let series = runs.iter().enumerate().map(|(style, run)| Series {
        name: format!("{} pieces", grouped(run.pieces as f64)),
        style,
        points: shares(&run.finish_quantiles),
        marks: false,
    });
    let series: Vec<Series> = series.collect();
    let end = runs.iter().filter_map(|run| run.finish_quantiles.last()).fold(1.0, |a, &b| f64::max(a, b));
    let x = Axis::linear("finish ÷ bound", 1.0 - (end - 1.0) * 0.08, 1.0 + (end - 1.0) * 1.05, 6);
    let title = format!("When the nodes finish ({} nodes)", grouped(main.nodes as f64));
    let rows = runs.iter().map(|run| {
        let at = |share: usize| times(run.finish_quantiles[share * (run.finish_quantiles.len() - 1) / 100]);
        vec![grouped(run.pieces as f64), at(0), at(10), at(50), at(90), at(100)]
    });
    Some(Plot {
        id: "finishes",
        takeaway: format!(
            "With {} pieces the first node is done at {}, the median at {} and the last at {} × the bound: within {} of \
             one another.",
            grouped(main.pieces as f64),
            times(*first),
            times(main.median_over_bound),
            times(*last),
            percent(last / first - 1.0),
        ),
        svg: svg::lines(
            &title,
            &x,
            &shares_axis("nodes done"),
            Some(Mark::Upright(1.0, "the bound")),
            &series,
        ),
        title,
        table: Table::new(&["pieces", "first", "10 %", "median", "90 %", "last"], rows.collect()),
    })
}

fn shares_axis(title: &str) -> Axis {
    let ticks = [0.0, 0.25, 0.5, 0.75, 1.0].map(|share| (share, format!("{:.0} %", share * 100.0)));
    Axis { title: title.into(), from: 0.0, to: 1.0, ticks: ticks.to_vec(), logarithmic: false }
}

/// Quantiles as a curve: from nobody to all.
fn shares(quantiles: &[f64]) -> Vec<(f64, f64)> {
    let last = quantiles.len().saturating_sub(1).max(1) as f64;
    let steps = quantiles.iter().enumerate().map(|(at, &value)| (value, at as f64 / last));
    quantiles.first().map(|&first| (first, 0.0)).into_iter().chain(steps).collect()
}

/// Which of two completion curves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Nodes,
    Pieces,
}

/// How far the swarm is over time, policy by policy.
pub(crate) fn completion(compared: &[&Run], of: Of) -> Option<Plot> {
    let drawn: Vec<&Run> = compared.iter().copied().filter(|run| run.last_over_bound <= DRAWN_MAX).collect();
    let ours = drawn.iter().copied().find(|run| is_ours(run))?;
    let curve = |run: &Run| {
        let shares = if of == Of::Nodes { run.curve_nodes.clone() } else { run.curve_pieces.clone() };
        let last = run.last_over_bound;
        let points = shares
            .into_iter()
            .zip(1u32..)
            .map(move |(share, at)| ((f64::from(at) * run.curve_step).min(last), share));
        [(0.0, 0.0)].into_iter().chain(points).collect::<Vec<_>>()
    };
    let end = axis_end(drawn.iter().map(|run| run.last_over_bound).filter(|&last| last <= CURVES_MAX));
    let series = drawn.iter().enumerate().map(|(style, run)| Series {
        name: title(&run.policy).to_owned(),
        style,
        points: curve(run).into_iter().filter(|point| point.0 <= end).collect(),
        marks: false,
    });
    let series: Vec<Series> = series.collect();
    let reached = |run: &Run, share: f64| {
        curve(run).iter().find(|point| point.1 >= share).map_or(f64::NAN, |point| point.0)
    };
    let x = Axis::linear("time ÷ bound", 0.0, end, 6);
    let (id, what, y) = match of {
        Of::Nodes => ("nodes-complete", "Nodes that have everything", "nodes complete"),
        Of::Pieces => ("pieces-held", "Pieces that have arrived", "pieces held, of all nodes"),
    };
    let takeaway = match of {
        Of::Nodes => {
            let half =
                drawn.iter().map(|run| format!("{} at {}", title(&run.policy), times(reached(run, 0.5))));
            format!("Half of the nodes are complete, in bounds: {}.", half.collect::<Vec<_>>().join(", "))
        }
        Of::Pieces => format!(
            "Between a tenth and nine tenths of all pieces Shoal takes {} of the bound; uplinks that never rest would \
             take {}.",
            times(reached(ours, 0.9) - reached(ours, 0.1)),
            times(0.8 * ours.pieces as f64 / (ours.pieces as f64 + f64::from(ours.nodes.max(1).ilog2()))),
        ),
    };
    let title_ = format!("{what} ({})", size(ours));
    let rows = drawn.iter().map(|run| {
        let at = [0.1, 0.5, 0.9, 1.0].map(|share| times(reached(run, share)));
        [title(&run.policy).to_owned()].into_iter().chain(at).collect()
    });
    Some(Plot {
        id,
        takeaway,
        svg: svg::lines(&title_, &x, &shares_axis(y), Some(Mark::Upright(1.0, "the bound")), &series),
        title: title_,
        table: Table::new(&["time ÷ bound at", "10 %", "50 %", "90 %", "100 %"], rows.collect()),
    })
}

/// Copies of the image that leave the seeder.
pub(crate) fn egress(compared: &[&Run]) -> Option<Plot> {
    let ours = compared.iter().find(|run| is_ours(run))?;
    let bars: Vec<Bar> = compared.iter().map(|run| bar(run, run.seeder_copies, "")).collect();
    let axis =
        Axis::linear("copies of the image", 0.0, axis_end(compared.iter().map(|run| run.seeder_copies)), 5);
    let title_ = format!("What the image server sends ({})", size(ours));
    let most = compared.iter().max_by(|a, b| a.seeder_copies.total_cmp(&b.seeder_copies))?;
    let rows = compared.iter().map(|run| vec![title(&run.policy).to_owned(), times(run.seeder_copies)]);
    Some(Plot {
        id: "seeder-egress",
        takeaway: format!(
            "For {} nodes Shoal's seeder sends {} copies of the image; {} sends {}.",
            grouped(ours.nodes as f64),
            times(ours.seeder_copies),
            title(&most.policy),
            times(most.seeder_copies),
        ),
        svg: svg::bars(&title_, &axis, (1.0, "one copy"), &bars),
        title: title_,
        table: Table::new(&["policy", "copies"], rows.collect()),
    })
}

/// Copies of the image that come into each rack.
pub(crate) fn racks(runs: &[&Run]) -> Option<Plot> {
    let runs: Vec<&Run> = runs.iter().copied().filter(|run| !run.racks_copies_in.is_empty()).collect();
    let most = |run: &Run| run.racks_copies_in.iter().copied().fold(0.0, f64::max);
    let worst = runs.iter().copied().max_by(|a, b| most(a).total_cmp(&most(b)))?;
    let name = |run: &Run| format!("{} {}×{}", run.scenario, run.nodes, run.pieces);
    let bars: Vec<Bar> = runs
        .iter()
        .map(|run| Bar { name: name(run), value: most(run), figure: times(most(run)), ours: true })
        .collect();
    let rows = runs.iter().map(|run| {
        let mean = run.racks_copies_in.iter().sum::<f64>() / run.racks_copies_in.len() as f64;
        let last = run.racks_last.iter().copied().fold(0.0, f64::max);
        vec![name(run), run.racks_copies_in.len().to_string(), times(mean), times(most(run)), times(last)]
    });
    let title = "What comes in over a rack's uplink, at the busiest rack".to_owned();
    let axis = Axis::linear("copies of the image", 0.0, axis_end(runs.iter().map(|run| most(run))), 5);
    Some(Plot {
        id: "rack-uplinks",
        takeaway: format!(
            "No rack takes more than {} copies of the image over its uplink ({}).",
            times(most(worst)),
            name(worst),
        ),
        svg: svg::bars(&title, &axis, (1.0, "one copy"), &bars),
        title,
        table: Table::new(
            &["run", "racks", "mean copies in", "most copies in", "last node ÷ bound"],
            rows.collect(),
        ),
    })
}

/// What the swarm's size does. The runs ascend.
pub(crate) fn scaling_nodes(runs: &[&Run]) -> Option<Plot> {
    let [first, .., last] = runs else { return None };
    let series = Series { name: String::new(), style: 0, points: points(runs, |run| run.nodes), marks: true };
    let x = Axis::logarithmic("nodes", &runs.iter().map(|run| run.nodes as f64).collect::<Vec<_>>());
    let title = format!("More nodes ({} pieces)", grouped(first.pieces as f64));
    Some(Plot {
        id: "scaling-nodes",
        takeaway: format!(
            "From {} to {} nodes the last one's distance to the bound goes from {} to {}.",
            grouped(first.nodes as f64),
            grouped(last.nodes as f64),
            percent(first.last_over_bound - 1.0),
            percent(last.last_over_bound - 1.0),
        ),
        svg: svg::lines(&title, &x, &over_bound_axis(runs), Some(Mark::Across(1.0, "the bound")), &[series]),
        title,
        table: scaling_table(runs),
    })
}

/// What the number of pieces does, for one or more numbers of nodes. The runs of each ascend.
pub(crate) fn scaling_pieces(groups: &[Vec<&Run>]) -> Option<Plot> {
    let all: Vec<&Run> = groups.iter().flatten().copied().collect();
    let main = groups.last()?;
    let [first, .., last] = &main[..] else { return None };
    let series = groups.iter().rev().enumerate().map(|(style, runs)| Series {
        name: format!("{} nodes", grouped(runs[0].nodes as f64)),
        style,
        points: points(runs, |run| run.pieces),
        marks: true,
    });
    let series: Vec<Series> = series.collect();
    let mut pieces: Vec<usize> = all.iter().map(|run| run.pieces).collect();
    pieces.sort_unstable();
    pieces.dedup();
    let x = Axis::logarithmic("pieces", &pieces.iter().map(|&pieces| pieces as f64).collect::<Vec<_>>());
    let title = "More pieces".to_owned();
    Some(Plot {
        id: "scaling-pieces",
        takeaway: format!(
            "With {} nodes the last is {:.0} piece-times over the bound at {} pieces and {:.0} at {}: the distance goes \
             from {} to {}.",
            grouped(first.nodes as f64),
            extra(first),
            grouped(first.pieces as f64),
            extra(last),
            grouped(last.pieces as f64),
            percent(first.last_over_bound - 1.0),
            percent(last.last_over_bound - 1.0),
        ),
        svg: svg::lines(&title, &x, &over_bound_axis(&all), Some(Mark::Across(1.0, "the bound")), &series),
        title,
        table: scaling_table(&all),
    })
}

fn points(runs: &[&Run], of: impl Fn(&Run) -> usize) -> Vec<(f64, f64)> {
    runs.iter().map(|run| (of(run) as f64, run.last_over_bound)).collect()
}

fn over_bound_axis(runs: &[&Run]) -> Axis {
    let most = runs.iter().map(|run| run.last_over_bound).fold(1.0, f64::max);
    Axis::linear("last node ÷ bound", 1.0 - (most - 1.0) * 0.1, 1.0 + (most - 1.0) * 1.1, 5)
}

/// Piece-times over the bound, with a seeder no faster than a node.
fn extra(run: &Run) -> f64 {
    (run.last_over_bound - 1.0) * (run.pieces as f64 + f64::from(run.nodes.max(1).ilog2()))
}

fn scaling_table(runs: &[&Run]) -> Table {
    let rows = runs.iter().map(|run| {
        let [nodes, pieces] = [run.nodes, run.pieces].map(|count| grouped(count as f64));
        vec![
            nodes,
            pieces,
            times(run.last_over_bound),
            times(run.median_over_bound),
            format!("{:.1}", extra(run)),
        ]
    });
    Table::new(
        &["nodes", "pieces", "last ÷ bound", "median ÷ bound", "piece-times over the bound"],
        rows.collect(),
    )
}
