//! The report as text.

use std::fmt::Write;

use crate::lab::report::{Figures, Ours, Report};

impl Report {
    pub(in crate::lab) fn text(&self) -> String {
        let mut text = String::new();
        write_ours(&mut text, self).expect("a string grows");
        if let Some(racks) = &self.racks {
            let rate = racks.uplink_rate as f64 / 1e6;
            let line = format!("{} of {} hosts, uplinks of {rate} Mbit/s", racks.racks, racks.hosts_each);
            writeln!(text, "{:<22} {line}", "racks").expect("a string grows");
        }
        if self.without_rack_labels.is_some() || !self.tools.is_empty() {
            write_table(&mut text, self).expect("a string grows");
        }
        text
    }
}

fn write_ours(text: &mut String, report: &Report) -> std::fmt::Result {
    let (ours, figures) = (&report.ours, &report.ours.figures);
    let mut line = |name: &str, value: String| writeln!(text, "{name:<22} {value}");
    let finished = ours.nodes.iter().filter(|node| node.finish_s.is_some()).count();
    let rate = report.rate as f64 / 1e6;
    line("nodes", format!("{finished} of {} finished at {rate} Mbit/s", ours.nodes.len()))?;
    line("image", format!("{} bytes compressed in {} pieces", ours.image_bytes, ours.pieces))?;
    if figures.compressed_bytes != ours.image_bytes as f64 {
        line("each node fetched", format!("{:.0} bytes", figures.compressed_bytes))?;
    }
    let (last, wire) = (decimals(figures.last_s, 2), figures.wire_s);
    line("last / wire", format!("{}  ({last} s of {wire:.2} s)", decimals(figures.last_over_wire, 3)))?;
    line("median / wire", decimals(figures.median_over_wire, 3))?;
    let on_the_wire = figures.seeder_wire_copies;
    line("seeder copies", format!("{:.3}  ({on_the_wire:.3} on the wire)", ours.seeder_copies))?;
    line("duplicates", format!("{:.3} %", ours.duplicate_ratio * 100.0))?;
    let (nodes, seeder) = (figures.nodes_cpu_s, figures.seeder_cpu_s);
    let part = figures.cpu_utilisation * 100.0;
    line("processor", format!("{nodes:.1} s nodes, {seeder:.1} s seeder, {part:.0} % of the machine"))?;
    line("peak memory", format!("{:.0} MB", ours.peak_rss_bytes / 1e6))?;
    line("dropped packets", figures.drops.to_string())?;
    line("verified", if ours.verified { "every tree" } else { "NOT every tree" }.to_owned())
}

/// A row for each deployment.
struct Row<'a> {
    name: &'a str,
    figures: Option<&'a Figures>,
    outcome: &'a str,
}

impl<'a> Row<'a> {
    fn ours(name: &'a str, ours: &'a Ours) -> Self {
        let outcome = if ours.verified { "every tree equal" } else { "NOT every tree equal" };
        Self { name, figures: Some(&ours.figures), outcome }
    }
}

fn write_table(text: &mut String, report: &Report) -> std::fmt::Result {
    let mut rows = vec![Row::ours("shoal", &report.ours)];
    rows.extend(report.without_rack_labels.as_ref().map(|ours| Row::ours("shoal, no labels", ours)));
    rows.extend(report.tools.iter().map(|tool| {
        let outcome = if tool.verified { "every tree equal" } else { "NOT every tree equal" };
        Row {
            name: tool.tool,
            figures: tool.figures.as_ref(),
            outcome: tool.failure.as_deref().unwrap_or(outcome),
        }
    }));
    let has_racks = report.racks.is_some();
    writeln!(text)?;
    write!(
        text,
        "{:<17} {:>8} {:>8} {:>7} {:>7} {:>9} {:>9}",
        "", "last s", "median s", "/ wire", "copies", "MB/node", "MB served"
    )?;
    write!(text, " {:>9} {:>9}", "server s", "nodes s")?;
    writeln!(text, "{}", if has_racks { "  copies into racks" } else { "" })?;
    for Row { name, figures, outcome } in rows {
        let Some(figures) = figures else {
            writeln!(text, "{name:<17} {outcome}")?;
            continue;
        };
        let Figures { last_s, median_s, last_over_wire, seeder_wire_copies, .. } = figures;
        let (last, median) = (decimals(*last_s, 2), decimals(*median_s, 2));
        let copies = decimals(*seeder_wire_copies, 3);
        write!(text, "{name:<17} {last:>8} {median:>8} {:>7}", decimals(*last_over_wire, 3))?;
        let (came, served) = (figures.node_wire_bytes / 1e6, figures.seeder_wire_bytes as f64 / 1e6);
        write!(text, " {copies:>7} {came:>9.2} {served:>9.2}")?;
        write!(text, " {:>9.2} {:>9.2}", figures.seeder_cpu_s, figures.nodes_cpu_s)?;
        let copies: Vec<String> = figures.rack_copies.iter().map(|copies| decimals(*copies, 3)).collect();
        writeln!(text, "  {}{}{outcome}", copies.join(" "), if has_racks { "  " } else { "" })?;
    }
    writeln!(
        text,
        "/ wire: last ÷ (the tool's compressed bytes ÷ rate). copies: what the server's link carried, headers and all, \
         of those bytes. server s, nodes s: processor seconds."
    )
}

fn decimals(value: impl Into<Option<f64>>, count: usize) -> String {
    // Nothing to divide by gives no number.
    value
        .into()
        .filter(|value| value.is_finite())
        .map_or_else(|| "-".to_owned(), |value| format!("{value:.count$}"))
}
