//! `shoal-node verify`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use shoal_node::exit::Exit;
use shoal_node::tree::verify::VerifyMode;
use shoal_node::verify::{Verification, verify_target};

use crate::cli::Common;

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The installed tree
    #[arg(long, value_name = "DIR")]
    target: PathBuf,
    /// Compare metadata only: misses changed bytes behind an unchanged size and time
    #[arg(long)]
    quick: bool,
}

impl Verify {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let mode = if self.quick { VerifyMode::Metadata } else { VerifyMode::Full };
        let report = verify_target(&common.data(), &self.target, mode)?;
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
            writeln!(out, "{}  {}", drift.names().join(","), drift.path)?;
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
