//! The page: one file that needs nothing else, by day and by night, on a telephone and on paper.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Context;

use super::plots::{self, Of, Plot, Table, times};
use super::runs::Run;
use super::svg::{COLOURS, escape, grouped};
use crate::policies::OURS;
use crate::scenarios::{self, Scenario, Threshold};

const STYLE: &str = include_str!("page.css");

#[derive(Debug)]
pub(crate) struct Page {
    headline: String,
    plots: Vec<Plot>,
    promises: Promises,
    commands: Vec<(String, f64)>,
}

/// What the scenarios promise at their committed sizes, and what came of it.
#[derive(Debug, Default)]
struct Promises {
    kept: usize,
    broken: usize,
    rows: String,
}

impl Page {
    pub(crate) fn new(runs: &[Run]) -> anyhow::Result<Self> {
        let ours = |run: &&Run| run.policy == OURS && run.seed == 1;
        let crowd = |run: &&Run| run.scenario == "flash-crowd" && run.seeder_rate <= 1.0;
        let compared = compared(runs).context("no results of the flash-crowd scenario")?;
        let main = *compared.first().context("no results of the flash-crowd scenario")?;
        let seeds: Vec<&Run> = runs
            .iter()
            .filter(|run| {
                run.policy == OURS && crowd(run) && (run.nodes, run.pieces) == (main.nodes, main.pieces)
            })
            .collect();
        let crowds: Vec<&Run> = runs.iter().filter(ours).filter(crowd).collect();
        let mut by_nodes: Vec<&Run> =
            crowds.iter().copied().filter(|run| run.pieces == main.pieces).collect();
        by_nodes.sort_by_key(|run| run.nodes);
        let mut by_pieces: BTreeMap<usize, Vec<&Run>> = BTreeMap::new();
        crowds.iter().for_each(|run| by_pieces.entry(run.nodes).or_default().push(run));
        by_pieces.values_mut().for_each(|runs| runs.sort_by_key(|run| run.pieces));
        let same_nodes = by_pieces.get(&main.nodes).cloned().unwrap_or_default();
        let others = same_nodes.into_iter().filter(|run| run.pieces != main.pieces);
        let finishes: Vec<&Run> = [main].into_iter().chain(others).collect();
        by_pieces.retain(|_, runs| runs.len() > 2);
        let groups: Vec<Vec<&Run>> = by_pieces.into_values().collect();
        let racked: Vec<&Run> = runs.iter().filter(ours).collect();
        let plots = [
            plots::policies(&compared),
            plots::finishes(&finishes),
            plots::completion(&compared, Of::Nodes),
            plots::completion(&compared, Of::Pieces),
            plots::egress(&compared),
            plots::racks(&racked),
            plots::scaling_nodes(&by_nodes),
            plots::scaling_pieces(&groups),
        ];
        Ok(Self {
            headline: headline(&seeds),
            plots: plots.into_iter().flatten().collect(),
            promises: promises(runs),
            commands: runs.iter().map(|run| (run.command.clone(), run.last_over_bound)).collect(),
        })
    }

    pub(crate) fn plots(&self) -> &[Plot] {
        &self.plots
    }

    pub(crate) fn html(&self) -> String {
        let Self { headline, plots, promises, .. } = self;
        let (first, others) = plots.split_at(plots.len().min(1));
        let figures = |plots: &[Plot]| plots.iter().map(figure).collect::<String>();
        let colours = |at: fn(&(&str, &'static str, &'static str)) -> &'static str| {
            COLOURS.iter().fold(String::new(), |text, colour| text + &format!("{}:{};", colour.0, at(colour)))
        };
        let (light, dark) = (colours(|colour| colour.1), colours(|colour| colour.2));
        let commands = self.commands.iter().fold(String::new(), |text, (command, last)| {
            text + &format!("<tr><td><code>{}</code></td><td>{}</td></tr>", escape(command), times(*last))
        });
        let verdict = match promises.broken {
            0 => format!("All {} hold.", promises.kept),
            broken => format!("{broken} of {} are broken.", broken + promises.kept),
        };
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>Shoal: how close to the bound</title>\n\
             <style>\n:root{{color-scheme:light dark;{light}}}\n\
             @media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n@media print{{:root{{{light}}}}}\n{STYLE}</style>\n\
             </head>\n<body>\n<main>\n<header>{headline}{}</header>\n\
             <section class=\"plots\">{}</section>\n\
             <section><h2>What the scenarios promise</h2>\n<p class=\"takeaway\">{verdict}</p>\n\
             <div class=\"wide\"><table class=\"promises\"><thead><tr><th>scenario</th><th>nodes × pieces</th><th>last ÷ bound</th>\
             <th>seeder copies</th><th>duplicates</th><th>copies into a rack</th><th>slowest ÷ median rack</th><th>control messages per piece</th><th>complete</th>\
             <th>promise</th></tr></thead>\n<tbody>{}</tbody></table></div></section>\n\
             <section><h2>To run it again</h2>\n<p>Every figure comes from the shipping exchange, or the policy that is \
             named, in virtual time. All policies have the same sizes and \
             network and nobody is selfish; all but the chain and the server have the same links. A command gives the same figures each time, on any machine.</p>\n\
             <details><summary>{} runs</summary><div class=\"wide\"><table><thead><tr><th>command</th>\
             <th>last ÷ bound</th></tr></thead><tbody>{commands}</tbody></table></div></details></section>\n\
             </main>\n</body>\n</html>\n",
            figures(first),
            figures(others),
            promises.rows,
            self.commands.len(),
        )
    }
}

/// Every policy where most were run, ours first, then the best.
fn compared(runs: &[Run]) -> Option<Vec<&Run>> {
    let mut by_size: BTreeMap<(usize, usize), Vec<&Run>> = BTreeMap::new();
    for run in
        runs.iter().filter(|run| run.scenario == "flash-crowd" && run.seed == 1 && run.seeder_rate <= 1.0)
    {
        by_size.entry((run.nodes, run.pieces)).or_default().push(run);
    }
    let mut most = by_size.into_values().max_by_key(Vec::len)?;
    most.sort_by(|a, b| {
        (a.policy != OURS).cmp(&(b.policy != OURS)).then(a.last_over_bound.total_cmp(&b.last_over_bound))
    });
    (most.first()?.policy == OURS).then_some(most)
}

/// How close, and to what.
fn headline(seeds: &[&Run]) -> String {
    let Some(worst) = seeds.iter().max_by(|a, b| a.last_over_bound.total_cmp(&b.last_over_bound)) else {
        return String::new();
    };
    let of = if seeds.len() > 1 { format!(", in the worst of {} runs", seeds.len()) } else { String::new() };
    let (nodes, pieces, doublings) =
        (grouped(worst.nodes as f64), grouped(worst.pieces as f64), worst.nodes.ilog2());
    format!(
        "<p class=\"eyebrow\">Shoal swarm, simulated</p>\n\
         <h1><span class=\"number\">{}</span> × the physical bound</h1>\n\
         <p class=\"lead\">One seeder no faster than a node fills {nodes} machines with one image. The last of them is \
         done {} after the earliest instant that any schedule allows{of}; the seeder sends {} copies of the image.</p>\n\
         <p class=\"bound\">The bound: {pieces} pieces leave the seeder one after the other, and the last must then double \
         its holders {doublings} times: ({pieces} + ⌊log₂ {nodes}⌋) piece-times, here {:.1} s.</p>\n",
        times(worst.last_over_bound),
        format_args!("{:.1} %", (worst.last_over_bound - 1.0) * 100.0),
        times(worst.seeder_copies),
        worst.bound_s,
    )
}

fn figure(plot: &Plot) -> String {
    format!(
        "<figure id=\"{}\"><h2>{}</h2>\n<p class=\"takeaway\">{}</p>\n{}\
         <details><summary>Figures</summary><div class=\"wide\">{}</div></details></figure>\n",
        plot.id,
        escape(&plot.title),
        escape(&plot.takeaway),
        plot.svg,
        table(&plot.table)
    )
}

fn table(table: &Table) -> String {
    let mut html = "<table><thead><tr>".to_owned();
    table.head.iter().for_each(|name| html += &format!("<th>{}</th>", escape(name)));
    html += "</tr></thead><tbody>";
    for row in &table.rows {
        html += "<tr>";
        row.iter().for_each(|cell| html += &format!("<td>{}</td>", escape(cell)));
        html += "</tr>";
    }
    html + "</tbody></table>"
}

fn promises(runs: &[Run]) -> Promises {
    let mut promises = Promises::default();
    for &scenario in scenarios::ALL {
        for threshold in scenario.thresholds {
            let run = runs.iter().find(|run| is_of(run, scenario, threshold));
            promises.add(scenario, threshold, run);
        }
    }
    promises
}

fn is_of(run: &Run, scenario: &Scenario, threshold: &Threshold) -> bool {
    let size = (run.nodes, run.pieces) == (threshold.size.nodes, threshold.size.pieces);
    let rate = threshold.seeder_rate.unwrap_or(scenario.seeder_rate);
    let usual = run.policy == OURS && run.seed == 1 && run.seeder_rate == rate;
    usual && size && run.scenario == scenario.name
}

impl Promises {
    fn add(&mut self, scenario: &Scenario, most: &Threshold, run: Option<&Run>) {
        let (nodes, pieces) = (grouped(most.size.nodes as f64), grouped(most.size.pieces as f64));
        let _ = write!(
            self.rows,
            "<tr><td><b>{}</b><br>{}</td><td>{nodes} × {pieces}</td>",
            escape(&most.label(scenario.name)),
            escape(scenario.promise)
        );
        let Some(run) = run else {
            self.rows += "<td colspan=\"7\"></td><td>not run</td></tr>\n";
            return;
        };
        let figures = [
            (run.last_over_bound, most.last_over_bound, 1.0, ""),
            (run.seeder_copies, most.seeder_copies, 1.0, ""),
            (run.duplicate_ratio, most.duplicate_ratio, 100.0, " %"),
            (run.rack_copies_max, most.rack_copies_max, 1.0, ""),
            (run.rack_last_over_median, most.rack_last_over_median, 1.0, ""),
            (run.control_per_piece, most.control_per_piece, 1.0, ""),
        ];
        for (value, most, factor, unit) in figures {
            let class = if value > most { " class=\"broken\"" } else { "" };
            let (value, most) = (times(value * factor), times(most * factor));
            let _ = write!(self.rows, "<td{class}>{value}{unit} <small>≤ {most}{unit}</small></td>");
        }
        let kept = figures.iter().all(|(value, most, ..)| value <= most);
        *(if kept { &mut self.kept } else { &mut self.broken }) += 1;
        let verdict =
            if kept { "<td class=\"kept\">✓ kept</td>" } else { "<td class=\"broken\">✗ broken</td>" };
        let _ = writeln!(self.rows, "<td>{}</td>{verdict}</tr>", grouped(run.complete as f64));
    }
}

#[cfg(test)]
mod tests;
