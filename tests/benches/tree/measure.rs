//! Running commands in turn, and what they cost.

use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context, bail, ensure};

/// Wall and CPU seconds (user and system, with all children) of one run.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) wall_s: f64,
    pub(crate) cpu_s: f64,
}

/// All runs of one competitor.
#[derive(Default)]
pub(crate) struct Samples(Vec<Sample>);

impl Samples {
    pub(crate) fn min(&self, of: fn(&Sample) -> f64) -> f64 {
        self.0.iter().map(of).fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn median(&self, of: fn(&Sample) -> f64) -> f64 {
        let mut all: Vec<f64> = self.0.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        let middle = all.len() / 2;
        if all.len() % 2 == 1 { all[middle] } else { f64::midpoint(all[middle - 1], all[middle]) }
    }
}

pub(crate) type Prepare<'a, C> = Box<dyn Fn(&mut C) -> anyhow::Result<()> + 'a>;

/// One who takes part in a comparison.
pub(crate) struct Competitor<'a, C> {
    pub(crate) name: &'static str,
    /// Brings everything into the state that each run begins with; not measured.
    pub(crate) prepare: Prepare<'a, C>,
    pub(crate) command: Box<dyn Fn() -> Command + 'a>,
}

/// Lets the competitors take turns, after one round that does not count: it warms the caches.
pub(crate) fn compare<C>(
    context: &mut C,
    competitors: &[Competitor<'_, C>],
    runs: usize,
) -> anyhow::Result<Vec<Samples>> {
    let mut samples: Vec<Samples> = competitors.iter().map(|_| Samples::default()).collect();
    for round in 0..=runs {
        for (competitor, samples) in competitors.iter().zip(&mut samples) {
            (competitor.prepare)(context)?;
            let sample = measure(&mut (competitor.command)())?;
            eprintln!("{:28} {:6.3} s wall {:6.2} s CPU", competitor.name, sample.wall_s, sample.cpu_s);
            if round > 0 {
                samples.0.push(sample);
            }
        }
    }
    Ok(samples)
}

fn measure(command: &mut Command) -> anyhow::Result<Sample> {
    let cpu_before_s = children_cpu_s()?;
    let started = Instant::now();
    finish(command)?;
    let wall_s = started.elapsed().as_secs_f64();
    Ok(Sample { wall_s, cpu_s: children_cpu_s()? - cpu_before_s })
}

/// Runs a command to its end; an error with what it said when it fails.
pub(crate) fn finish(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let said = [&output.stderr[..], &output.stdout[..]].concat();
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(output)
}

/// A script for bash with its arguments, `$1` and on. It fails when any part of it does.
pub(crate) fn script(text: &str, arguments: &[&std::path::Path]) -> Command {
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", text, "bash"]).args(arguments);
    bash
}

/// User and system seconds of all children that have ended, in steps of 10 ms.
fn children_cpu_s() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name, in parentheses, may hold anything; the fields after it are numbered from 3.
    let (_, fields) = stat.rsplit_once(") ").context("/proc/self/stat has another form")?;
    let field = |number: usize| fields.split(' ').nth(number - 3)?.parse::<u64>().ok();
    let ticks = field(16).zip(field(17)).context("/proc/self/stat has another form")?;
    Ok((ticks.0 + ticks.1) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Refuses to begin without a tool that is needed later.
pub(crate) fn find_tools(names: &[&str]) -> anyhow::Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| !std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
        .collect();
    ensure!(missing.is_empty(), "not installed: {}", missing.join(", "));
    Ok(())
}
