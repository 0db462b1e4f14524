//! The command line of `shoal-seeder`: a file for each verb.

mod boot;
mod capture;
mod cluster;
mod completions;
mod demo;
mod export;
mod fsck;
mod images;
mod man;
mod nodes;
mod offers;
mod release;
mod rollout;
mod rules;
mod secret;
mod serve;
mod status;
mod ticket;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use shoal_node::exit::{self, Exit};
use shoal_node::state::default_dir;
use shoal_seeder::home::Home;

/// Capture operating-system images and seed them to a swarm of nodes
#[derive(Debug, Parser)]
#[command(name = "shoal-seeder", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
struct Common {
    /// Keep keys, images and blocks in DIR
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print one JSON object on standard output
    #[arg(long, global = true)]
    json: bool,
    /// Say more (can be repeated)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

impl Common {
    fn home(&self) -> anyhow::Result<Home> {
        Ok(Home::open(&self.data.clone().unwrap_or_else(|| default_dir("seeder")))?)
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the whole path on this machine: capture, seed, install on many nodes, verify
    Demo(demo::Demo),
    /// Make an image of a directory tree
    Capture(capture::Capture),
    /// Write an image's tree into a directory, or as a tar
    Export(export::Export),
    /// List the images
    Images(images::Images),
    /// Show what is known of an image
    Show(images::Show),
    /// Take an image out of the catalog; its blocks stay
    Rm(fsck::Remove),
    /// Read every block and say which are damaged
    Fsck(fsck::Fsck),
    /// List the golden clients that offer their trees to the running seeder
    Offers(offers::OffersCommand),
    /// Seed the images until interrupted
    Serve(serve::Serve),
    /// Print the line that a node needs to join
    Ticket(ticket::TicketCommand),
    /// Print a snippet for an installer, which replaces the fresh system by an image
    Boot(boot::Boot),
    /// Say who may join and who has; approve and revoke nodes
    Nodes(nodes::Nodes),
    /// Say what each machine gets: check the cluster file
    Cluster(cluster::ClusterCommand),
    /// Say how the tree of a host differs from an image
    Diff(cluster::Diff),
    /// Say which image the nodes of a channel are to run
    Release(release::Release),
    /// List the channels and what they were at
    Releases(release::Releases),
    /// Let the nodes of a channel apply its newest release, in waves
    Rollout(rollout::Rollout),
    /// Say how the fleet does
    Status(status::Status),
    /// Replace the swarm secret while the fleet goes on
    Secret(secret::Secret),
    /// Write this program's manual pages
    Man(man::Man),
    /// Print a shell's completions of this program's commands
    Completions(completions::Completions),
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    exit::start_logging(cli.common.verbose);
    let common = &cli.common;
    let result: anyhow::Result<Exit> = match cli.verb {
        Verb::Demo(demo) => demo.run(common),
        Verb::Capture(capture) => capture.run(common),
        Verb::Export(export) => export.run(common),
        Verb::Images(images) => images.run(common),
        Verb::Show(show) => show.run(common),
        Verb::Rm(remove) => remove.run(common),
        Verb::Fsck(fsck) => fsck.run(common),
        Verb::Offers(offers) => offers.run(common),
        Verb::Serve(serve) => serve.run(common),
        Verb::Ticket(ticket) => ticket.run(common),
        Verb::Boot(boot) => boot.run(common),
        Verb::Nodes(nodes) => nodes.run(common),
        Verb::Cluster(cluster) => cluster.run(common),
        Verb::Diff(diff) => diff.run(common),
        Verb::Release(release) => release.run(common),
        Verb::Releases(releases) => releases.run(common),
        Verb::Rollout(rollout) => rollout.run(common),
        Verb::Status(status) => status.run(common),
        Verb::Secret(secret) => secret.run(common),
        Verb::Man(man) => man.run(),
        Verb::Completions(completions) => completions.run(),
    };
    exit::end("shoal-seeder", result)
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    Ok(out.flush()?)
}
