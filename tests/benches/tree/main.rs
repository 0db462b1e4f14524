//! How fast a tree is captured, applied and verified, beside the tools that do the like; and in how much memory.
//!
//! Everything happens on small file systems of its own (ext4 with a journal, on loop files in memory), so that no
//! disk and no other file system is measured. The competitors take turns: a busy machine slows each of them alike.
//! What counts are ratios of one run.

mod disk;
mod measure;
mod million;
mod parts;
mod report;

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};

const HELP: &str = "\
cargo bench -p shoal-tests --bench tree -- [DIR] [--runs N] [--json FILE]
cargo bench -p shoal-tests --bench tree -- --million [--json FILE]

Captures, applies and verifies a copy of DIR (default /usr) and prints how long that takes beside tar, cp, unsquashfs
and rsync. With --million: the memory that a million small files take. Needs root and room in /dev/shm: four times
the tree, or 12 GB for the million.

  --runs N     how often each competitor runs (default 7)
  --only PART  capture, apply or verify
  --json FILE  also write the figures to FILE";

const RUNS_DEFAULT: usize = 7;
/// Says that this process sees mounts of its own, which end with it however it ends.
const NAMESPACE: &str = "SHOAL_BENCH_NAMESPACE";

struct Arguments {
    source: PathBuf,
    runs: usize,
    million: bool,
    only: Option<String>,
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tree: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    // Cargo says so to every bench.
    let arguments: Vec<_> = std::env::args_os().skip(1).filter(|argument| argument != "--bench").collect();
    if let Some((first, part)) = arguments.split_first()
        && first == parts::FLAG
    {
        return parts::run(part);
    }
    let Some(options) = parse(arguments.iter().map(|argument| argument.as_os_str()))? else {
        println!("{HELP}");
        return Ok(());
    };
    if !harness::is_root() {
        harness::skipped("the tree benchmark needs root: it mounts file systems of its own");
        return Ok(());
    }
    measure::find_tools(if options.million { &million::TOOLS } else { &report::TOOLS })?;
    if std::env::var_os(NAMESPACE).is_none() {
        let mut again = Command::new("unshare");
        again.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe()?).args(arguments);
        return Err(again.env(NAMESPACE, "1").exec()).context("cannot run unshare");
    }
    let figures = if options.million {
        million::run()?
    } else {
        report::run(&options.source, options.runs, options.only.as_deref())?
    };
    if let Some(path) = options.json {
        let text = serde_json::to_string_pretty(&figures)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// `None` when help is wanted.
fn parse<'a>(mut arguments: impl Iterator<Item = &'a OsStr>) -> anyhow::Result<Option<Arguments>> {
    let mut found =
        Arguments { source: "/usr".into(), runs: RUNS_DEFAULT, million: false, only: None, json: None };
    while let Some(argument) = arguments.next() {
        let mut value =
            || arguments.next().with_context(|| format!("{} lacks its value", argument.display()));
        match argument.to_str() {
            Some("--help" | "-h") => return Ok(None),
            Some("--million") => found.million = true,
            Some("--json") => found.json = Some(value()?.into()),
            Some("--only") => found.only = Some(value()?.to_string_lossy().into_owned()),
            Some("--runs") => {
                let text = value()?.to_string_lossy();
                found.runs = text.parse().with_context(|| format!("--runs {text}"))?;
                ensure!(found.runs > 0, "--runs 0 measures nothing");
            }
            Some(option) if option.starts_with('-') => bail!("{option} is no option (see --help)"),
            _ => found.source = argument.into(),
        }
    }
    if let Some(only) = &found.only
        && !report::PARTS.contains(&only.as_str())
    {
        bail!("--only {only}: it is one of {}", report::PARTS.join(", "));
    }
    let source = &found.source;
    ensure!(source.is_dir(), "{} is no directory", source.display());
    Ok(Some(found))
}
