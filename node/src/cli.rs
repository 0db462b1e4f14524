//! The command line of `shoal-node`: a file for each verb.

mod display;
mod install;
mod join;
mod rollback;
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
    /// Compare an installed tree with its image
    Verify(verify::Verify),
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    exit::start_logging(cli.common.verbose);
    let result: anyhow::Result<Exit> = match cli.verb {
        Verb::Install(install) => install.run(&cli.common),
        Verb::Update(update) => update.run(&cli.common),
        Verb::Rollback(rollback) => rollback.run(&cli.common),
        Verb::Verify(verify) => verify.run(&cli.common),
    };
    exit::end("shoal-node", result)
}
