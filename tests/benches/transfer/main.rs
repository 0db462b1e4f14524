//! What it costs to move an image from one process to another: CPU per byte and bytes per second, beside the bare
//! transport and beside BitTorrent.
//!
//! Everything is in memory and on loopback, unshaped. The competitors take turns in one run: a busy machine slows each
//! of them alike, and what counts are ratios of that run. All of it happens in namespaces of its own, of processes and
//! of mounts, so that nothing stays behind however it ends.

mod bare;
mod measure;
mod report;
mod shoal;
mod torrents;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};
use torrents::Tool;

const HELP: &str = "\
cargo bench -p shoal-tests --bench transfer -- [--bytes SIZE] [--runs N] [--with TOOLS] [--json FILE]

Captures noise, then installs it from one seeder to one node over loopback, and prints the CPU seconds of each side
per gigabyte, bytes per second and peak memory beside a bare libp2p transfer from memory. Needs root, and room in
memory for four times SIZE, six with TOOLS.

  --bytes SIZE  how much to move, such as 512MiB (default 2GiB)
  --runs N      how often each competitor runs (default 3)
  --with TOOLS  libtorrent, rqbit or both, with a comma between: the same bytes by BitTorrent
  --json FILE   also write the figures to FILE";

const BYTES_DEFAULT: u64 = 2 << 30;
const RUNS_DEFAULT: usize = 3;
/// Says that this process has namespaces of its own.
const ALONE: &str = "SHOAL_BENCH_ALONE";
/// What every system has for mounting something on for a while; the memory that everything lies in is mounted there.
const FOLDER: &str = "/mnt";
/// The first process of a process namespace hears no signal that it did not ask for: it has to be another one.
const FIRST_PROCESS: &str = r#"mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && "$@""#;

pub(crate) struct Arguments {
    pub(crate) bytes: u64,
    pub(crate) runs: usize,
    pub(crate) with: Vec<Tool>,
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("transfer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    // Cargo says so to every bench.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let Some((first, part)) = arguments.split_first()
        && first == bare::FLAG
    {
        return bare::run(part);
    }
    let Some(options) = parse(arguments.iter().map(String::as_str))? else {
        println!("{HELP}");
        return Ok(());
    };
    if !harness::is_root() {
        harness::skipped("the transfer benchmark needs root: it mounts a file system of its own");
        return Ok(());
    }
    if std::env::var_os(ALONE).is_none() {
        return alone(&options, &arguments);
    }
    let figures = report::run(&options, Path::new(FOLDER))?;
    if let Some(path) = options.json {
        let text = serde_json::to_string_pretty(&figures)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Runs this program again where its processes end with it, and its files with them.
fn alone(options: &Arguments, arguments: &[String]) -> anyhow::Result<()> {
    // Built before anything is measured.
    let node = harness::binary("shoal-node");
    let binaries = node.parent().context("a binary lies in a folder")?;
    let room = options.bytes * if options.with.is_empty() { 5 } else { 6 } + (256 << 20);
    let mut again = Command::new("unshare");
    again.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    again.args(["sh", "-c", FIRST_PROCESS, "sh", &room.to_string(), FOLDER]).arg(std::env::current_exe()?);
    again.args(arguments).env(ALONE, "1").env("SHOAL_TEST_BIN_DIR", binaries);
    let status = again.status().context("cannot run unshare")?;
    ensure!(status.success(), "the measuring process ended with {status}");
    Ok(())
}

/// This program as a process that does one thing.
fn part(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a process knows its executable"));
    command.arg(bare::FLAG).args(arguments);
    command
}

/// Fills `bytes` with what does not compress.
fn read_noise(bytes: &mut [u8]) -> anyhow::Result<()> {
    File::open("/dev/urandom")?.read_exact(bytes).context("cannot read /dev/urandom")
}

/// `None` when help is wanted.
fn parse<'a>(mut arguments: impl Iterator<Item = &'a str>) -> anyhow::Result<Option<Arguments>> {
    let mut found = Arguments { bytes: BYTES_DEFAULT, runs: RUNS_DEFAULT, with: Vec::new(), json: None };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} lacks its value"));
        match argument {
            "--help" | "-h" => return Ok(None),
            "--bytes" => found.bytes = parse_size(value()?)?,
            "--json" => found.json = Some(value()?.into()),
            "--with" => found.with = value()?.split(',').map(Tool::parse).collect::<anyhow::Result<_>>()?,
            "--runs" => {
                let text = value()?;
                found.runs = text.parse().with_context(|| format!("--runs {text}"))?;
                ensure!(found.runs > 0, "--runs 0 measures nothing");
            }
            other => bail!("{other} is no option (see --help)"),
        }
    }
    Ok(Some(found))
}

fn parse_size(text: &str) -> anyhow::Result<u64> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("", 1)];
    let (number, unit) = units
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
        .context("every text ends with nothing")?;
    let number: u64 = number.parse().with_context(|| format!("--bytes {text}"))?;
    ensure!(number > 0, "--bytes {text} moves nothing");
    number.checked_mul(unit).with_context(|| format!("--bytes {text}"))
}
