//! The command line of `shoal-node`: a file for each verb.

mod agent;
mod completions;
mod disks;
mod display;
mod hidden;
mod install;
mod join;
mod man;
mod offer;
mod rollback;
mod script;
mod status;
mod tree;
mod update;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use shoal_node::exit::{self, Exit};
use shoal_node::state::default_dir;

/// Put an operating-system image on this machine, from the swarm
#[derive(Debug, Parser)]
#[command(name = "shoal-node", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
struct Common {
    /// Keep this node's key and state in DIR
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
    fn data(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| default_dir("node"))
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Fetch an image from the swarm and write its tree into a directory
    Install(install::Install),
    /// Make an installed tree another image, in place
    Update(update::Update),
    /// Return to the image before the present one
    Rollback(rollback::Rollback),
    /// Offer this machine's tree to the seeder, which captures it when its operator says so
    Offer(offer::OfferCommand),
    /// Compare an installed tree with its image
    Verify(verify::Verify),
    #[command(name = shoal_node::scripts::VERB, hide = true)]
    RunScript(script::RunScript),
    /// Follow a channel: fetch its releases, apply each when its turn comes, go back when it is not well
    Agent(agent::Agent),
    /// Say how the install or update that is at work does, and which peers it banned
    Status(status::StatusCommand),
    /// Write this program's manual pages
    Man(man::Man),
    /// Print a shell's completions of this program's commands
    Completions(completions::Completions),
}

pub(crate) fn main() -> ExitCode {
    let hidden = hidden::hide_tickets();
    let cli = Cli::parse();
    exit::start_logging(cli.common.verbose);
    if let Err(error) = hidden {
        tracing::warn!(%error, "the ticket stays visible to all who list processes; @FILE hides it");
    }
    let result: anyhow::Result<Exit> = match cli.verb {
        Verb::Install(install) => install.run(&cli.common),
        Verb::Update(update) => update.run(&cli.common),
        Verb::Rollback(rollback) => rollback.run(&cli.common),
        Verb::Offer(offer) => offer.run(&cli.common),
        Verb::Verify(verify) => verify.run(&cli.common),
        Verb::RunScript(script) => script.run(),
        Verb::Agent(agent) => agent.run(&cli.common),
        Verb::Status(status) => status.run(&cli.common),
        Verb::Man(man) => man.run(),
        Verb::Completions(completions) => completions.run(),
    };
    exit::end("shoal-node", result)
}
