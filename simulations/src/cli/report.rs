//! `shoal-sim report`: the committed runs, and a page about them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Args;

use crate::report::page::Page;
use crate::report::picture;
use crate::report::runs::{self, Run, Todo};

/// Where the repository keeps the results, from its root.
const RESULTS: &str = "simulations/results";

#[derive(Debug, Args)]
pub(super) struct Report {
    /// Where the page and the plots go
    #[arg(long, default_value = "shoal-report")]
    out: PathBuf,
    /// Small sizes only: a minute instead of a quarter of an hour
    #[arg(long)]
    quick: bool,
    /// Sizes of tens of minutes too
    #[arg(long, conflicts_with = "from_results")]
    heavy: bool,
    /// Read results instead of running
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = RESULTS)]
    from_results: Option<PathBuf>,
    /// Replace the results in DIR by those of these runs
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = RESULTS, conflicts_with = "from_results")]
    regenerate: Option<PathBuf>,
    /// Only runs whose name contains this; the page then shows them with the other results of DIR
    #[arg(long, value_name = "TEXT", requires = "regenerate", conflicts_with = "quick")]
    only: Option<String>,
}

impl Report {
    pub(super) fn perform(&self) -> anyhow::Result<ExitCode> {
        let runs = match (&self.from_results, &self.regenerate) {
            (Some(folder), _) => runs::read(folder)?,
            (None, Some(folder)) => {
                self.regenerate(folder)?;
                runs::read(folder)?
            }
            (None, None) => {
                let all = runs::all(self.quick).into_iter().filter(|todo| self.heavy || !todo.heavy);
                let runs = all.map(|todo| perform(&todo));
                runs.collect::<anyhow::Result<Vec<Run>>>()?
            }
        };
        write(&self.out, &Page::new(&runs)?)?;
        println!("{}", self.out.join("index.html").display());
        Ok(ExitCode::SUCCESS)
    }

    fn regenerate(&self, folder: &Path) -> anyhow::Result<()> {
        let all = runs::all(self.quick);
        let mut names = Vec::new();
        for todo in &all {
            let name = todo.name();
            let chosen = self.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
            if chosen && (self.heavy || !todo.heavy) {
                runs::write(folder, &name, &perform(todo)?)?;
            }
            names.push(format!("{name}.json"));
        }
        // What is no longer among the runs is not to be quoted either.
        for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            let known = path.file_name().and_then(|name| name.to_str());
            let stale =
                known.is_some_and(|known| known.ends_with(".json") && names.iter().all(|name| name != known));
            if stale {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Runs what the run's own command line says.
fn perform(todo: &Todo) -> anyhow::Result<Run> {
    let command = todo.command();
    let run = super::Run::parse(&command)?;
    let started = Instant::now();
    let run = todo.perform(&run.options(run.size())?)?;
    eprintln!("{:>7.1} s  {:>8.4}  {command}", started.elapsed().as_secs_f64(), run.last_over_bound);
    Ok(run)
}

fn write(folder: &Path, page: &Page) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let write = |name: String, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    write("index.html".into(), page.html().as_bytes())?;
    for plot in page.plots() {
        let svg = plot.alone();
        write(format!("{}.svg", plot.id), svg.as_bytes())?;
        write(
            format!("{}.png", plot.id),
            &picture::png(&svg).with_context(|| format!("cannot draw {}", plot.id))?,
        )?;
    }
    Ok(())
}
