//! `shoal-node install`.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use shoal_node::exit::{Exit, Usage, interrupted};
use shoal_node::install::{Error, InstallOptions, InstallReport, Installed, install};
use shoal_node::progress::{Monitor, Snapshot, Stage};
use shoal_proto::image::ImageName;
use shoal_proto::ticket::Ticket;

use crate::cli::Common;

/// How often progress is said where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct Install {
    /// The seeder's ticket, or @FILE to read it from
    ticket: String,
    /// Write the tree into this existing directory
    #[arg(long, value_name = "DIR")]
    target: PathBuf,
    /// Install this image, whatever the ticket names
    #[arg(long, value_name = "NAME")]
    image: Option<ImageName>,
    /// Go on serving for this long once the tree is complete (such as 90s, 10m, 2h)
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    seed_for: Duration,
    /// Keep blocks in DIR while installing and serving
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Accept peers on this address (can be repeated)
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:0")]
    listen: Vec<SocketAddr>,
    /// Say where this machine stands, to trade inside its rack first
    #[arg(long, value_name = "LABEL", default_value = "")]
    rack: String,
    /// Empty the target first if it holds something
    #[arg(long)]
    force: bool,
}

impl Install {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let options = InstallOptions {
            ticket: read_ticket(&self.ticket)?,
            image: self.image,
            target: self.target,
            data: common.data(),
            store: self.store,
            listen: self.listen,
            rack: self.rack,
            force: self.force,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let display = Display::new();
            let installed = match install(options, &display).await {
                // What was to be done is done: a script that retries until it is may stop.
                Err(ref done @ Error::AlreadyInstalled { ref image, .. }) => {
                    display.bar.finish_and_clear();
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
            display.bar.finish_and_clear();
            print_report(&installed.report, common.json)?;
            serve(installed, self.seed_for).await;
            Ok(Exit::Done)
        })
    }
}

fn read_ticket(argument: &str) -> anyhow::Result<Ticket> {
    let text = match argument.strip_prefix('@') {
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read the ticket from {path}"))?
        }
        None => argument.to_owned(),
    };
    // A bad ticket can never work: usage.
    Ok(text.parse::<Ticket>().map_err(|error| Usage(error.to_string()))?)
}

/// Serves until the time is over or somebody asks the process to end.
async fn serve(installed: Installed, time: Duration) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = interrupted() => {}
    }
    installed.leave().await;
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
        writeln!(
            out,
            "fetched {} from the seeder and {} from peers; {} were here already",
            HumanBytes(report.bytes_from_seeder),
            HumanBytes(report.bytes_from_peers),
            HumanBytes(report.bytes_reused),
        )?;
        for (aspect, count) in &report.losses {
            writeln!(out, "could not set the {aspect} of {count} entries")?;
        }
    }
    Ok(out.flush()?)
}

/// A bar on a terminal, a line now and then elsewhere; both on standard error.
struct Display {
    bar: ProgressBar,
    terminal: bool,
    last_line: Mutex<Option<(Instant, Stage)>>,
}

impl Display {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style =
            ProgressStyle::with_template("{bar:30} {pos}/{len} pieces  {msg}").expect("a constant template");
        bar.set_style(style);
        Self { bar, terminal, last_line: Mutex::new(None) }
    }
}

impl Monitor for Display {
    fn update(&self, snapshot: &Snapshot) {
        let message = describe(snapshot);
        if self.terminal {
            self.bar.set_length(snapshot.pieces as u64);
            self.bar.set_position(snapshot.held as u64);
            self.bar.set_message(message);
            return;
        }
        let mut last = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|(at, stage)| stage != snapshot.stage || at.elapsed() >= LINE_INTERVAL);
        if due {
            *last = Some((Instant::now(), snapshot.stage));
            eprintln!("{}/{} pieces  {message}", snapshot.held, snapshot.pieces);
        }
    }
}

fn describe(snapshot: &Snapshot) -> String {
    let stage = match snapshot.stage {
        Stage::Joining => "looking for the image",
        Stage::Manifest => "fetching the manifest",
        Stage::Pieces => "fetching pieces",
        Stage::Metadata => "finishing the tree",
        Stage::Complete => "complete",
    };
    if let Some(waiting) = &snapshot.waiting {
        return format!("{stage}, waiting: {waiting}");
    }
    let traffic = &snapshot.traffic;
    let eta = snapshot.eta.map_or_else(String::new, |eta| format!(", {} left", HumanDuration(eta)));
    format!(
        "{stage}, {}/s from {} neighbours{eta} ({} from the seeder, {} from peers)",
        HumanBytes(snapshot.rate_bytes_per_s),
        snapshot.neighbours,
        HumanBytes(traffic.from_seeders_bytes),
        HumanBytes(traffic.from_peers_bytes),
    )
}
