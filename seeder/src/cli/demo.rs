//! `shoal-seeder demo`.

use std::path::PathBuf;

use clap::Args;
use indicatif::HumanBytes;
use shoal_node::exit::Exit;
use shoal_seeder::demo::{DemoReport, demo};

use crate::cli::{Common, print_json};

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// The tree to put on every node; a system directory of a few hundred megabytes when not given
    dir: Option<PathBuf>,
    /// How many nodes to install
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    nodes: u16,
}

impl Demo {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let report = shoal_node::peer::runtime()?.block_on(demo(self.dir, usize::from(self.nodes)))?;
        if common.json {
            print_json(&report)?;
        } else {
            print_table(&report);
        }
        Ok(if report.verified { Exit::Done } else { Exit::VerificationFailed })
    }
}

fn print_table(report: &DemoReport) {
    println!();
    println!("node       time    from seeder     from peers  verified");
    for (number, node) in report.nodes.iter().enumerate() {
        println!(
            "{:<6} {:>6.1} s {:>14} {:>14}  {}",
            number + 1,
            node.install.elapsed_s,
            HumanBytes(node.install.bytes_from_seeder).to_string(),
            HumanBytes(node.install.bytes_from_peers).to_string(),
            if node.verified { "yes" } else { "NO" },
        );
        for drift in node.drift.iter().take(5) {
            println!("       {} {}", drift.code, drift.path);
        }
    }
    println!();
    println!(
        "{} installed {} times in {:.1} s; the seeder sent {:.2} copies of its {} compressed",
        HumanBytes(report.raw_bytes),
        report.nodes.len(),
        report.last_s,
        report.seeder_copies,
        HumanBytes(report.compressed_bytes),
    );
}
