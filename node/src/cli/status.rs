//! `shoal-node status`.

use std::io::Write;

use clap::Args;
use indicatif::HumanBytes;
use shoal_node::control::{self, Report};
use shoal_node::exit::Exit;

use crate::cli::Common;

#[derive(Debug, Args)]
pub(crate) struct StatusCommand {}

impl StatusCommand {
    #[expect(clippy::unused_self, reason = "as every verb")]
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let report = runtime.block_on(control::ask(&common.data()))?;
        let mut out = std::io::stdout().lock();
        if common.json {
            serde_json::to_writer(&mut out, &report)?;
            writeln!(out)?;
        } else {
            print(&mut out, &report)?;
        }
        out.flush()?;
        Ok(Exit::Done)
    }
}

fn print(out: &mut impl Write, report: &Report) -> std::io::Result<()> {
    writeln!(out, "peer {} on {}", report.peer, report.addresses.join(", "))?;
    writeln!(out, "{} neighbours, {} of them seeders", report.neighbours, report.seeders)?;
    for list in &report.lists {
        let wanted = list.pieces - list.unwanted;
        writeln!(out, "{}: {} of {wanted} pieces, {} neighbours", list.list, list.held, list.neighbours)?;
    }
    writeln!(
        out,
        "fetched {} from the seeder and {} from peers; sent {}",
        HumanBytes(report.bytes_from_seeder),
        HumanBytes(report.bytes_from_peers),
        HumanBytes(report.sent_bytes),
    )?;
    if let Some(trouble) = report.trouble.as_ref().filter(|_| report.neighbours == 0) {
        writeln!(out, "no neighbour: {trouble}")?;
    }
    for ban in &report.banned {
        let address = ban.address.as_deref().unwrap_or("an unknown address");
        let (ago, left) = (ban.ago_s, ban.left_s);
        writeln!(out, "banned {} at {address} {ago:.0} s ago, for {left:.0} s more: {}", ban.peer, ban.why)?;
    }
    Ok(())
}
