//! The command line of `shoal-seeder`: a file for each verb.

mod capture;
mod demo;
mod fsck;
mod images;
mod rules;
mod serve;
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
    /// List the images
    Images(images::Images),
    /// Show what is known of an image
    Show(images::Show),
    /// Take an image out of the catalog; its blocks stay
    Rm(fsck::Remove),
    /// Read every block and say which are damaged
    Fsck(fsck::Fsck),
    /// Seed the images until interrupted
    Serve(serve::Serve),
    /// Print the line that a node needs to join
    Ticket(ticket::TicketCommand),
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    exit::start_logging(cli.common.verbose);
    let common = &cli.common;
    let result: anyhow::Result<Exit> = match cli.verb {
        Verb::Demo(demo) => demo.run(common),
        Verb::Capture(capture) => capture.run(common),
        Verb::Images(images) => images.run(common),
        Verb::Show(show) => show.run(common),
        Verb::Rm(remove) => remove.run(common),
        Verb::Fsck(fsck) => fsck.run(common),
        Verb::Serve(serve) => serve.run(common),
        Verb::Ticket(ticket) => ticket.run(common),
    };
    exit::end("shoal-seeder", result)
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
