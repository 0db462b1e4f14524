//! `shoal-node verify`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use shoal_node::exit::Exit;
use shoal_node::tree::verify::VerifyMode;
use shoal_node::update::repair;
use shoal_node::verify::{RulesChoice, Verification, verify_target};

use crate::cli::Common;
use crate::cli::display::Display;
use crate::cli::join::Member;
use crate::cli::tree::{Tree, print_change};

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The installed tree
    #[arg(long, value_name = "DIR")]
    target: PathBuf,
    /// Compare metadata only: misses changed bytes behind an unchanged size and time
    #[arg(long, conflicts_with = "repair")]
    quick: bool,
    /// Compare also what the rules leave to the machine
    #[arg(long, conflicts_with_all = ["repair", "rules"])]
    all: bool,
    /// Give back what drifted
    #[arg(long)]
    repair: bool,
    /// Repair from this swarm what this machine does not have: a ticket, or @FILE to read it from
    #[arg(long, requires = "repair", value_name = "TICKET")]
    ticket: Option<String>,
    #[command(flatten)]
    member: Member,
    #[command(flatten)]
    tree: Tree,
}

impl Verify {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let tree = self.tree.options();
        if self.repair {
            let join = self.ticket.map(|ticket| self.member.options(&ticket)).transpose()?;
            let runtime = shoal_node::peer::runtime()?;
            let display = Display::new();
            let report = runtime.block_on(repair(&common.data(), &self.target, tree, join, &display))?;
            display.clear();
            print_change(&report, common.json)?;
            return Ok(Exit::Done);
        }
        let mode = if self.quick { VerifyMode::Metadata } else { VerifyMode::Full };
        let rules = match tree.rules {
            _ if self.all => RulesChoice::None,
            Some(file) => RulesChoice::File(file),
            None => RulesChoice::OfTree,
        };
        let report = verify_target(&common.data(), &self.target, mode, &rules)?;
        print_report(&report, common.json)?;
        Ok(if report.drift.is_empty() { Exit::Done } else { Exit::VerificationFailed })
    }
}

fn print_report(report: &Verification, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, report)?;
        writeln!(out)?;
    } else {
        for drift in &report.drift {
            writeln!(out, "{} {}", drift.code, drift.path)?;
        }
        writeln!(
            out,
            "{} entries, {} drifted, {:.1} s",
            report.entries,
            report.drift.len(),
            report.elapsed_s
        )?;
    }
    Ok(out.flush()?)
}
