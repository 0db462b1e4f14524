//! `shoal-node install`.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::HumanBytes;
use shoal_node::exit::Exit;
use shoal_node::install::{
    Error, InstallOptions, InstallPlan, InstallReport, Outcome, install, plan_install,
};
use shoal_node::replace::{self, ReplaceOptions};
use shoal_node::update::TreeOptions;
use shoal_proto::assignment::Mode;
use shoal_proto::host::HostName;
use shoal_proto::image::ImageName;

use crate::cli::Common;
use crate::cli::disks::{Disks, Made};
use crate::cli::display::{Display, write_moved};
use crate::cli::join::{Host, Join, serving};
use crate::cli::tree::print_change;

#[derive(Debug, Args)]
pub(crate) struct Install {
    #[command(flatten)]
    join: Join,
    /// Write the tree into this existing directory
    #[arg(long, value_name = "DIR", required_unless_present = "replace_running_root")]
    target: Option<PathBuf>,
    /// Fetch the image into memory, reboot, and have it take the place of this machine's root file system
    #[arg(long, requires = "yes", conflicts_with_all = ["target", "disks", "dry_run", "force", "store", "mode", "host"])]
    replace_running_root: bool,
    /// Run this shell command in the new root to make the machine boot it [default: etc/shoal/boot-loader, or GRUB]
    #[arg(long, value_name = "COMMAND", requires = "replace_running_root")]
    boot_loader: Option<String>,
    /// Install this image, whatever the cluster file or the ticket names
    #[arg(long, value_name = "NAME")]
    image: Option<ImageName>,
    #[command(flatten)]
    host: Host,
    /// Go on serving for this long once the tree is complete (such as 90s, 10m, 2h)
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    seed_for: Duration,
    /// Empty the target first if it holds something
    #[arg(long)]
    force: bool,
    /// Come to the image like this, whatever the cluster file says: full (empty the target), sync (in place), auto (in
    /// place where it holds an installed tree, else full), none
    #[arg(long, value_name = "auto|full|sync|none")]
    mode: Option<Mode>,
    /// Ask before the target is emptied
    #[arg(long)]
    confirm: bool,
    /// Say yes to that, and to what is lost with --disks or --replace-running-root
    #[arg(long)]
    yes: bool,
    /// Say what would be done, and write nothing into the target
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    disks: Disks,
}

impl Install {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let Some(target) = self.target else {
            let options = ReplaceOptions {
                join: self.join.options()?,
                image: self.image,
                data: common.data(),
                boot_loader: self.boot_loader,
            };
            return replace(options, common.json);
        };
        let made = self.disks.make(&target, self.dry_run, self.yes)?;
        let mounted = match made {
            Some(Made::Nothing) => return Ok(Exit::Done),
            Some(Made::Disks(mounted)) => Some(mounted),
            None => None,
        };
        let options = InstallOptions {
            join: self.join.options()?,
            image: self.image,
            host: self.host.options(),
            target,
            data: common.data(),
            force: self.force,
            mode: self.mode,
            confirm: self.confirm,
            confirmed: self.yes,
            tree: TreeOptions::default(),
        };
        let runtime = shoal_node::peer::runtime()?;
        runtime.block_on(async {
            let display = Display::new();
            if self.dry_run {
                let plan = plan_install(options, &display).await?;
                display.clear();
                print_plan(&plan, common.json)?;
                return Ok(Exit::Done);
            }
            let outcome = match install(options.clone(), &display).await {
                Err(Error::Unconfirmed { path, host }) if std::io::stdin().is_terminal() => {
                    display.clear();
                    agree(&path, host.as_ref())?;
                    install(InstallOptions { confirmed: true, ..options }, &display).await
                }
                outcome => outcome,
            };
            let outcome = match outcome {
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
                outcome => outcome?,
            };
            display.clear();
            // In place the machine has its own.
            if let (Outcome::Installed(_), Some(mounted)) = (&outcome, &mounted)
                && mounted.write_fstab()?
            {
                eprintln!("wrote etc/fstab: the image's names no file system");
            }
            match outcome {
                Outcome::Installed(installed) => {
                    print_report(&installed.report, common.json)?;
                    serving(self.seed_for).await;
                    installed.leave().await;
                }
                Outcome::Updated(updated) => {
                    print_change(&updated.report, common.json)?;
                    serving(self.seed_for).await;
                    updated.leave().await;
                }
                Outcome::Untouched if common.json => println!("{}", serde_json::json!({ "untouched": true })),
                Outcome::Untouched => println!("the mode is none: nothing was touched"),
            }
            Ok(Exit::Done)
        })
    }
}

/// Has a person agree that all in the target goes.
fn agree(target: &Path, host: Option<&HostName>) -> anyhow::Result<()> {
    let word = host.map_or("yes", HostName::as_str);
    eprint!("everything in {} goes; type {word} to go on: ", target.display());
    let mut said = String::new();
    std::io::stdin().read_line(&mut said)?;
    anyhow::ensure!(said.trim() == word, "nothing was touched");
    Ok(())
}

/// Stages an image and gives the machine to it.
fn replace(options: ReplaceOptions, json: bool) -> anyhow::Result<Exit> {
    let display = Display::new();
    let staged = shoal_node::peer::runtime()?.block_on(replace::stage(options, &display));
    display.clear();
    let staged = staged?;
    if json {
        println!("{}", serde_json::to_string(&staged)?);
    } else {
        let (name, bytes) = (&staged.name, HumanBytes(staged.raw_bytes));
        println!("{name}: {bytes} wait in memory after {:.1} s; rebooting into them", staged.elapsed_s);
    }
    replace::reboot()?;
    Ok(Exit::Done)
}

fn print_plan(plan: &InstallPlan, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, plan)?;
        writeln!(out)?;
    } else {
        let name = plan.name.as_deref().unwrap_or(&plan.image);
        let first = match (plan.in_place, plan.empties_target) {
            (true, _) => "; only what differs is replaced",
            (false, true) => "; what the target holds goes first",
            (false, false) => "",
        };
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
