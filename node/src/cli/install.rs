//! `shoal-node install`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::HumanBytes;
use shoal_node::exit::Exit;
use shoal_node::install::{Error, InstallOptions, InstallPlan, InstallReport, install, plan_install};
use shoal_proto::image::ImageName;

use crate::cli::Common;
use crate::cli::display::{Display, write_moved};
use crate::cli::join::{Join, serving};

#[derive(Debug, Args)]
pub(crate) struct Install {
    #[command(flatten)]
    join: Join,
    /// Write the tree into this existing directory
    #[arg(long, value_name = "DIR")]
    target: PathBuf,
    /// Install this image, whatever the ticket names
    #[arg(long, value_name = "NAME")]
    image: Option<ImageName>,
    /// Go on serving for this long once the tree is complete (such as 90s, 10m, 2h)
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    seed_for: Duration,
    /// Empty the target first if it holds something
    #[arg(long)]
    force: bool,
    /// Say what would be done, and write nothing into the target
    #[arg(long)]
    dry_run: bool,
}

impl Install {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let options = InstallOptions {
            join: self.join.options()?,
            image: self.image,
            target: self.target,
            data: common.data(),
            force: self.force,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let display = Display::new();
            if self.dry_run {
                let plan = plan_install(options, &display).await?;
                display.clear();
                print_plan(&plan, common.json)?;
                return Ok(Exit::Done);
            }
            let installed = match install(options, &display).await {
                // What was to be done is done: a script that retries until it is may stop.
                Err(ref done @ Error::AlreadyInstalled { ref image, .. }) => {
                    display.clear();
                    eprintln!("{done}");
                    if common.json {
                        println!(
                            "{}",
                            serde_json::json!({ "image": image.to_string(), "already_installed": true })
                        );
                    }
                    return Ok(Exit::Done);
                }
                installed => installed?,
            };
            display.clear();
            print_report(&installed.report, common.json)?;
            serving(self.seed_for).await;
            installed.leave().await;
            Ok(Exit::Done)
        })
    }
}

fn print_plan(plan: &InstallPlan, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, plan)?;
        writeln!(out)?;
    } else {
        let name = plan.name.as_deref().unwrap_or(&plan.image);
        let first = if plan.empties_target { "; what the target holds goes first" } else { "" };
        let bytes = HumanBytes(plan.raw_bytes);
        writeln!(out, "{name}: {} entries, {bytes} in {} pieces{first}", plan.entries, plan.pieces)?;
    }
    Ok(out.flush()?)
}

fn print_report(report: &InstallReport, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, report)?;
        writeln!(out)?;
    } else {
        let name = report.name.as_deref().unwrap_or(&report.image);
        writeln!(
            out,
            "{name}: {} entries, {} in {:.1} s",
            report.entries,
            HumanBytes(report.raw_bytes),
            report.elapsed_s
        )?;
        let InstallReport { bytes_from_seeder, bytes_from_peers, bytes_reused, .. } = *report;
        let moved = [bytes_from_seeder, bytes_from_peers, bytes_reused];
        write_moved(&mut out, moved, &report.losses)?;
    }
    Ok(out.flush()?)
}
