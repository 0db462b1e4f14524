//! `shoal-node update`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::HumanBytes;
use shoal_node::exit::Exit;
use shoal_node::update::{DryRun, Outcome, UpdateOptions, update};
use shoal_proto::image::ImageName;

use crate::cli::Common;
use crate::cli::display::Display;
use crate::cli::join::{Host, Join, serving};
use crate::cli::tree::{Tree, print_change};

#[derive(Debug, Args)]
pub(crate) struct Update {
    #[command(flatten)]
    join: Join,
    /// The tree to change
    #[arg(long, value_name = "DIR")]
    target: PathBuf,
    /// Update to this image, whatever the cluster file or the ticket names
    #[arg(long, value_name = "NAME")]
    image: Option<ImageName>,
    #[command(flatten)]
    host: Host,
    /// Go on serving for this long once the tree is complete (such as 90s, 10m, 2h)
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    seed_for: Duration,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    tree: Tree,
}

impl Update {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let options = UpdateOptions {
            join: self.join.options()?,
            image: self.image,
            host: self.host.options(),
            target: self.target,
            data: common.data(),
            tree: self.tree.options(),
            dry_run: self.dry_run,
        };
        let runtime = shoal_node::peer::runtime()?;
        runtime.block_on(async {
            let display = Display::new();
            let outcome = update(options, &display).await?;
            display.clear();
            match outcome {
                Outcome::Planned(plan) => print_plan(&plan, common.json)?,
                Outcome::Done(updated) => {
                    print_change(&updated.report, common.json)?;
                    serving(self.seed_for).await;
                    updated.leave().await;
                }
            }
            Ok(Exit::Done)
        })
    }
}

fn print_plan(plan: &DryRun, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, plan)?;
        writeln!(out)?;
        return Ok(out.flush()?);
    }
    for item in &plan.items {
        writeln!(out, "{} {}", item.code, item.path)?;
    }
    let count = |action| plan.items.iter().filter(|item| item.action == action).count();
    writeln!(
        out,
        "{} to create, {} to replace, {} to adjust, {} to delete; {} to fetch, uncompressed",
        count("create"),
        count("replace"),
        count("adjust"),
        count("delete"),
        HumanBytes(plan.lacking_bytes)
    )?;
    Ok(out.flush()?)
}
