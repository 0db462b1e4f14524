//! `shoal-seeder status`.

use std::io::Write;

use clap::Args;
use indicatif::HumanBytes;
use shoal_node::durable;
use shoal_node::exit::Exit;
use shoal_seeder::control;
use shoal_seeder::fleet::{FleetReport, NodeReport};
use shoal_seeder::home::Error as HomeError;
use shoal_seeder::rollouts::Book;

use crate::cli::{Common, print_json, rollout};

/// Nodes that are shown, those first that a person has to look at.
const SHOWN_MAX: usize = 40;

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Show every node
    #[arg(long)]
    all: bool,
}

impl Status {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let home = common.home()?;
        let report = match home.lock() {
            Ok(_lock) => FleetReport { rollouts: Book::open(&home)?.reports(), ..FleetReport::default() },
            Err(HomeError::File(durable::Error::InUse { .. })) => {
                shoal_node::peer::runtime()?.block_on(control::fleet(&home))?
            }
            Err(error) => return Err(error.into()),
        };
        if common.json {
            print_json(&report)?;
        } else {
            print(&mut std::io::stdout().lock(), &report, if self.all { usize::MAX } else { SHOWN_MAX })?;
        }
        Ok(Exit::Done)
    }
}

/// Failed nodes first, then those that wait for something, then the slowest.
fn urgency(node: &NodeReport) -> (u8, u16) {
    let rank = match node.stage.as_str() {
        "failed" => 0,
        "rolled_back" | "rolling_back" => 1,
        "fetching" | "applying" | "confirming" => 2,
        _ => 3,
    };
    (rank, node.progress.fetched_permille)
}

fn print(out: &mut impl Write, report: &FleetReport, shown: usize) -> std::io::Result<()> {
    if !report.serving {
        writeln!(out, "no seeder is serving: the nodes are not known")?;
    } else {
        let stages: Vec<String> =
            report.stages.iter().map(|(stage, count)| format!("{count} {stage}")).collect();
        let sent = HumanBytes(report.sent_bytes);
        writeln!(out, "{} nodes: {}; {sent} sent", report.nodes.len(), stages.join(", "))?;
    }
    report.rollouts.iter().try_for_each(|report| rollout::print(out, report))?;
    let mut nodes: Vec<&NodeReport> = report.nodes.iter().collect();
    nodes.sort_by_key(|node| urgency(node));
    for node in nodes.iter().take(shown) {
        let host = if node.host.is_empty() { &node.peer } else { &node.host };
        let fetched = f64::from(node.progress.fetched_permille) / 10.0;
        let down = HumanBytes(node.progress.down_bytes_per_s);
        write!(out, "{host:<24} {:<13} {:>5}  {fetched:>5.1} %  {down}/s", node.stage, node.release)?;
        let reasons = [&node.error, &node.waits].into_iter().flatten();
        writeln!(out, "{}", reasons.map(|reason| format!("  {reason}")).collect::<String>())?;
    }
    if nodes.len() > shown {
        writeln!(out, "and {} more: --all shows them", nodes.len() - shown)?;
    }
    out.flush()
}
