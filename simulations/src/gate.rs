//! Every scenario at its committed sizes, against its committed figures.

use std::process::ExitCode;
use std::time::Instant;

use clap::Args;

use crate::cli::Run;
use crate::scenarios;

#[derive(Debug, Args)]
pub(crate) struct Gate {
    /// Sizes of tens of minutes too
    #[arg(long)]
    heavy: bool,
    /// Seeds, for each of which every figure must hold
    #[arg(long, value_delimiter = ',', default_value = "1")]
    seeds: Vec<u64>,
    /// This scenario only
    #[arg(long)]
    only: Option<String>,
}

impl Gate {
    /// Prints a line for each run, and what is broken. Exit 1 when anything is.
    pub(crate) fn perform(&self) -> anyhow::Result<ExitCode> {
        let started = Instant::now();
        let chosen = match &self.only {
            Some(name) => vec![scenarios::named(name)?],
            None => scenarios::ALL.to_vec(),
        };
        println!(
            "{:<30} {:>5} x {:<5} {:>4}  {:>15} {:>15} {:>12} {:>15} {:>13} {:>6}",
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
        );
        let mut broken = Vec::new();
        for scenario in chosen {
            for most in scenario.thresholds.iter().filter(|most| self.heavy || !most.heavy) {
                for &seed in &self.seeds {
                    let run = Run::committed(scenario, most, seed);
                    let report = match run.simulate(scenario) {
                        Ok((report, _)) => report,
                        Err(failure) => {
                            println!("{:<30} {:#}", most.label(scenario.name), failure);
                            broken.push(format!("{}: {failure:#}", scenario.name));
                            continue;
                        }
                    };
                    println!(
                        "{:<30} {:>5} x {:<5} {:>4}  {:>6.4} ({:>6.4}) {:>6.4} ({:>6.4}) {:>5.3} ({:>4.2}) {:>6.3} ({:>6.3}) {:>5.1} ({:>5.1}) {:>6.1}",
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
                    let figures = most.broken(&report);
                    if !figures.is_empty() {
                        broken.push(format!(
                            "{}: {}\n  replay: {}",
                            scenario.name,
                            figures.join("; "),
                            run.replay(scenario)
                        ));
                    }
                }
            }
        }
        println!(
            "in brackets what is promised at most; duplicates in per cent; {:.0} s in all",
            started.elapsed().as_secs_f64()
        );
        broken.iter().for_each(|broken| eprintln!("shoal-sim: {broken}"));
        Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
