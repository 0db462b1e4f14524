//! `shoal-seeder capture`.

use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use shoal_node::durable;
use shoal_node::exit::Exit;
use shoal_node::store::Store;
use shoal_proto::image::ImageName;
use shoal_seeder::catalog::Catalog;
use shoal_seeder::control;
use shoal_seeder::home::Error as HomeError;
use shoal_seeder::progress::{CaptureMeter, CaptureSnapshot};
use shoal_seeder::publish::{CaptureRequest, publish};
use shoal_seeder::source::Source;

use crate::cli::rules::Rules;
use crate::cli::{Common, print_json};

/// Time between two looks at how far a capture is.
const SHOW_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct Capture {
    /// What becomes the image: a directory, a tar (plain, gzip, xz, zstd; `-` is standard input) an OCI image (layout
    /// or archive; `oci:PATH:NAME` names one of several) or what a golden client offers (`golden:NAME`)
    source: String,
    /// What to call the image; an image of this name is replaced and taken as parent
    name: ImageName,
    #[command(flatten)]
    rules: Rules,
    /// Read every file, also those that did not change since the last capture of this name
    #[arg(long)]
    no_reuse: bool,
    /// Take a file that changes each time it is read as it was read last, and list it, instead of failing
    #[arg(long)]
    allow_changed: bool,
    /// Compress blocks with zstd at LEVEL [default: 2, and 9 for what is new in a later capture of NAME]
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(i32).range(1..=19))]
    level: Option<i32>,
}

impl Capture {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let excludes = self.rules.read()?;
        let source = Source::parse(&self.source)?;
        let request = CaptureRequest {
            excludes,
            reuse: !self.no_reuse,
            allow_changed: self.allow_changed,
            level: self.level,
            ..CaptureRequest::new(source, self.name)
        };
        let display = Display::new();
        let home = common.home()?;
        let published = match home.lock() {
            Ok(_lock) => {
                let store = Store::open(&home.store_dir())?;
                let mut catalog = Catalog::open(&home)?;
                display.follow(|meter| publish(&home, &store, &mut catalog, &request, meter))?
            }
            // A seeder that serves captures by itself, and offers the image at once.
            Err(HomeError::File(durable::Error::InUse { .. })) => shoal_node::peer::runtime()?
                .block_on(control::capture(&home, &request, |snapshot| display.show(snapshot)))?,
            Err(error) => return Err(error.into()),
        };
        display.clear();
        if common.json {
            print_json(&published)?;
        } else {
            let report = &published.report;
            let left_out = [
                (report.sockets, "sockets"),
                (report.vanished, "entries that vanished"),
                (report.mounts, "mounted file systems"),
            ];
            for (count, what) in left_out.into_iter().filter(|(count, _)| *count > 0) {
                println!("left out {count} {what}");
            }
            for path in &report.changed_paths {
                println!("changed each time it was read: {path}");
            }
            if report.changed > report.changed_paths.len() as u64 {
                println!("{} files changed each time they were read", report.changed);
            }
            println!(
                "{}: {} entries, {} in {} blocks ({} compressed, {} of it new) in {:.1} s",
                published.name,
                published.report.entries,
                HumanBytes(published.report.raw_bytes),
                published.report.blocks,
                HumanBytes(published.report.compressed_bytes),
                HumanBytes(published.report.new_compressed_bytes),
                published.report.elapsed_s,
            );
            if let Some(bytes) = published.received_bytes {
                println!("{} came from the golden client", HumanBytes(bytes));
            }
            println!("image {}", published.report.image);
        }
        Ok(Exit::Done)
    }
}

/// A bar on a terminal, a line now and then elsewhere; both on standard error.
struct Display {
    bar: ProgressBar,
    terminal: bool,
    last_line: Mutex<Instant>,
}

impl Display {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}  {msg}");
        bar.set_style(style.expect("a constant template"));
        Self { bar, terminal, last_line: Mutex::new(Instant::now()) }
    }

    /// Shows how far `capture` is until it is done.
    fn follow<T>(&self, capture: impl FnOnce(&CaptureMeter) -> T) -> T {
        let meter = &CaptureMeter::default();
        let (done, waiting) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // Ends when the other side is dropped.
                while waiting.recv_timeout(SHOW_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    self.show(&meter.snapshot());
                }
            });
            let captured = capture(meter);
            drop(done);
            captured
        })
    }

    fn show(&self, snapshot: &CaptureSnapshot) {
        let message = match snapshot.entries {
            0 => "walking through the tree".to_owned(),
            entries => format!("{entries} entries, {} stored", HumanBytes(snapshot.stored_bytes)),
        };
        if self.terminal {
            self.bar.set_length(snapshot.to_read_bytes);
            self.bar.set_position(snapshot.read_bytes);
            self.bar.set_message(message);
            return;
        }
        let mut last = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= LINE_INTERVAL {
            *last = Instant::now();
            let (read, all) = (HumanBytes(snapshot.read_bytes), HumanBytes(snapshot.to_read_bytes));
            eprintln!("{read}/{all} read, {message}");
        }
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
