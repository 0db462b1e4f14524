//! How far a command is: on a terminal and elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use shoal_node::progress::{Monitor, Snapshot, Stage};

/// How often progress is said where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// A bar on a terminal, a line now and then elsewhere; both on standard error.
pub(crate) struct Display {
    bar: ProgressBar,
    terminal: bool,
    last_line: Mutex<Option<(Instant, Stage)>>,
}

impl Display {
    pub(crate) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style =
            ProgressStyle::with_template("{bar:30} {pos}/{len} pieces  {msg}").expect("a constant template");
        bar.set_style(style);
        Self { bar, terminal, last_line: Mutex::new(None) }
    }

    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
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
        Stage::Planning => "comparing the tree",
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

/// Says where the bytes came from (seeder, peers, this machine), and what could not be set.
pub(crate) fn write_moved(
    out: &mut impl Write,
    [from_seeder, from_peers, reused]: [u64; 3],
    losses: &BTreeMap<&'static str, u64>,
) -> std::io::Result<()> {
    writeln!(
        out,
        "fetched {} from the seeder and {} from peers; {} were here already",
        HumanBytes(from_seeder),
        HumanBytes(from_peers),
        HumanBytes(reused),
    )?;
    for (aspect, count) in losses {
        writeln!(out, "could not set the {aspect} of {count} entries")?;
    }
    Ok(())
}
