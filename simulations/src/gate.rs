//! Every scenario at its committed sizes, against its committed figures.

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use clap::Args;

use crate::cli::Run;
use crate::report::Report;
use crate::scenarios::{self, Scenario, Threshold};

#[derive(Debug, Args)]
pub(crate) struct Gate {
    /// Sizes that take minutes each, too
    #[arg(long)]
    heavy: bool,
    /// Seeds, for each of which every figure must hold
    #[arg(long, value_delimiter = ',', default_value = "1")]
    seeds: Vec<u64>,
    /// This scenario only
    #[arg(long)]
    only: Option<String>,
}

/// One run, and what it must keep.
struct Job {
    scenario: &'static Scenario,
    most: &'static Threshold,
    run: Run,
    seed: u64,
}

impl Gate {
    /// Prints a line for each run, and what is broken. Exit 1 when anything is.
    pub(crate) fn perform(&self) -> anyhow::Result<ExitCode> {
        let started = Instant::now();
        let jobs = self.jobs()?;
        println!("{}", heading());
        let mut reports: Vec<Option<anyhow::Result<Report>>> = jobs.iter().map(|_| None).collect();
        let mut told = 0;
        let mut broken = Vec::new();
        run_all(&jobs, |index, report| {
            reports[index] = Some(report);
            // In their order, however they end.
            while let Some(Some(report)) = reports.get(told) {
                broken.extend(tell(&jobs[told], report));
                told += 1;
            }
        });
        println!(
            "in brackets what is promised at most; duplicates in per cent; {:.0} s in all",
            started.elapsed().as_secs_f64()
        );
        broken.iter().for_each(|broken| eprintln!("shoal-sim: {broken}"));
        Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn jobs(&self) -> anyhow::Result<Vec<Job>> {
        let chosen = match &self.only {
            Some(name) => vec![scenarios::named(name)?],
            None => scenarios::ALL.to_vec(),
        };
        let sizes = chosen.into_iter().flat_map(|scenario| {
            let sizes = scenario.thresholds.iter().filter(|most| self.heavy || !most.heavy);
            sizes.map(move |most| (scenario, most))
        });
        let seeded = sizes.flat_map(|(scenario, most)| {
            let job =
                move |seed| Job { scenario, most, run: Run::committed(scenario, most, seed).alone(), seed };
            self.seeds.iter().copied().map(job)
        });
        Ok(seeded.collect())
    }
}

/// Runs the jobs, the largest first, one on each core, and calls `each` with what came of every one.
fn run_all(jobs: &[Job], mut each: impl FnMut(usize, anyhow::Result<Report>)) {
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(jobs[index].most.size.nodes * jobs[index].most.size.pieces));
    let next = AtomicUsize::new(0);
    let (done, reports) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (done, order, next) = (done.clone(), &order, &next);
            scope.spawn(move || {
                while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let job = &jobs[index];
                    let report = job.run.simulate(job.scenario).map(|(report, _)| report);
                    // The receiver outlives the scope.
                    let _ = done.send((index, report));
                }
            });
        }
        drop(done);
        reports.into_iter().for_each(|(index, report)| each(index, report));
    });
}

fn heading() -> String {
    format!(
        "{:<30} {:>5} x {:<5} {:>4}  {:>15} {:>15} {:>12} {:>15} {:>14} {:>6}",
        "scenario",
        "nodes",
        "piece",
        "seed",
        "last ÷ bound",
        "seeder copies",
        "duplicates",
        "copies a zone",
        "control",
        "s"
    )
}

/// Prints what came of a job; returns what it broke.
fn tell(job: &Job, report: &anyhow::Result<Report>) -> Option<String> {
    let Job { scenario, most, run, seed } = job;
    let report = match report {
        Ok(report) => report,
        Err(failure) => {
            println!("{:<30} {failure:#}", most.label(scenario.name));
            return Some(format!("{}: {failure:#}", scenario.name));
        }
    };
    println!(
        "{:<30} {:>5} x {:<5} {:>4}  {:>6.4} ({:>6.4}) {:>6.4} ({:>6.4}) {:>5.3} ({:>4.2}) {:>6.3} ({:>6.3}) \
         {:>5.1} ({:>6.1}) {:>6.1}",
        most.label(scenario.name),
        report.nodes,
        report.pieces,
        seed,
        report.last_over_bound,
        most.last_over_bound,
        report.seeder_copies,
        most.seeder_copies,
        report.duplicate_ratio * 100.0,
        most.duplicate_ratio * 100.0,
        report.rack_copies_max,
        most.rack_copies_max,
        report.control_per_piece,
        most.control_per_piece,
        report.wall_s
    );
    let figures = most.broken(report);
    (!figures.is_empty())
        .then(|| format!("{}: {}\n  replay: {}", scenario.name, figures.join("; "), run.replay(scenario)))
}
