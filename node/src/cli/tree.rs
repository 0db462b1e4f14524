//! What every command that changes a tree in place is told, and says.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use shoal_node::update::{ChangeReport, KEEP_BYTES, TreeOptions};

use crate::cli::display::write_moved;

#[derive(Debug, Args)]
pub(crate) struct Tree {
    /// Read what this machine decides itself from FILE, instead of etc/shoal/rules in the tree
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Remove also what no image brought, but for what the rules leave alone
    #[arg(long)]
    delete: bool,
    /// Build a new usr, opt… beside the old and exchange each in one call, where all in it is the image's
    #[arg(long)]
    switch: bool,
    /// Keep at most so many bytes of what is replaced, for a rollback
    #[arg(long, value_name = "BYTES", default_value_t = KEEP_BYTES)]
    keep: u64,
}

impl Tree {
    pub(crate) fn options(self) -> TreeOptions {
        TreeOptions {
            rules: self.rules,
            delete: self.delete,
            switch: self.switch,
            keep_bytes: self.keep,
            whole: false,
        }
    }
}

pub(crate) fn print_change(report: &ChangeReport, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, report)?;
        writeln!(out)?;
        return Ok(out.flush()?);
    }
    let name = report.name.as_deref().unwrap_or(&report.image);
    writeln!(
        out,
        "{name}: {} created, {} replaced, {} adjusted, {} removed in {:.1} s",
        report.created, report.replaced, report.adjusted, report.removed, report.elapsed_s
    )?;
    let ChangeReport { bytes_from_seeder, bytes_from_peers, bytes_reused, .. } = *report;
    write_moved(&mut out, [bytes_from_seeder, bytes_from_peers, bytes_reused], &report.losses)?;
    Ok(out.flush()?)
}
