//! `shoal-seeder cluster`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use shoal_node::durable;
use shoal_node::exit::Exit;
use shoal_node::store::Store;
use shoal_proto::image::ImageName;
use shoal_seeder::catalog::Catalog;
use shoal_seeder::cluster::import::{Sources, import};
use shoal_seeder::cluster::look::{self, Difference, Differing, Explanation, Look, Seen};
use shoal_seeder::cluster::published::{self, Manifests, publish_cluster};
use shoal_seeder::cluster::{self, Cluster, Problem};
use shoal_seeder::control;
use shoal_seeder::home::Error as HomeError;

use crate::cli::{Common, print_json};

#[derive(Debug, Args)]
pub(crate) struct ClusterCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Check a cluster file, its overrides and its scripts, and name all that is wrong by file and line
    Check {
        #[arg(default_value = "cluster.toml")]
        file: PathBuf,
    },
    /// Check a cluster file, capture its overrides, and tell every host from now on what it says
    Publish {
        #[arg(default_value = "cluster.toml")]
        file: PathBuf,
    },
    /// Make a cluster file of SystemImager's cluster.xml
    Import(Import),
    /// Say which layer a path of a host comes from
    Explain {
        /// The path, from the top of the host's tree
        path: String,
        host: String,
        /// Explain also all that is in it
        #[arg(long)]
        below: bool,
    },
}

#[derive(Debug, Args)]
struct Import {
    /// SystemImager's file, such as /etc/systemimager/cluster.xml
    file: PathBuf,
    /// Its overrides, such as /var/lib/systemimager/overrides
    #[arg(long, value_name = "DIR")]
    overrides: Option<PathBuf>,
    /// Its scripts, such as /var/lib/systemimager/scripts
    #[arg(long, value_name = "DIR")]
    scripts: Option<PathBuf>,
    /// A list of what an update leaves alone, such as updateclient.local.exclude (can be repeated)
    #[arg(long, value_name = "FILE")]
    excludes: Vec<PathBuf>,
    /// The image of hosts whose groups name none
    #[arg(long, value_name = "NAME")]
    image: Option<ImageName>,
    /// Write the cluster file here instead of to standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    host: String,
    image: String,
}

impl Diff {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let seen = ask(&Look::Diff { host: self.host, image: self.image }, common)?;
        if common.json {
            print_json(&seen)?;
        } else if let Seen::Difference(Difference { host, image, paths, unlisted }) = seen {
            for Differing { path, what, layer } in &paths {
                let by = layer.as_ref().map_or_else(String::new, |layer| format!("  ({layer})"));
                println!("{what:<8} {path}{by}");
            }
            if unlisted > 0 {
                println!("and {unlisted} more");
            }
            println!("{host} differs from {image} in {} paths", paths.len() + unlisted);
        }
        Ok(Exit::Done)
    }
}

impl ClusterCommand {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        match self.what {
            What::Check { file } => check(&file, common),
            What::Publish { file } => publish(&file, common),
            What::Import(import) => import.run(common),
            What::Explain { path, host, below } => explain(Look::Explain { path, host, below }, common),
        }
    }
}

impl Import {
    fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let absolute =
            |path: PathBuf| path.canonicalize().with_context(|| format!("cannot read {}", path.display()));
        let overrides = self.overrides.map(absolute).transpose()?;
        let scripts = self.scripts.map(absolute).transpose()?;
        let excludes: Vec<&Path> = self.excludes.iter().map(PathBuf::as_path).collect();
        let sources = Sources {
            overrides: overrides.as_deref(),
            scripts: scripts.as_deref(),
            excludes: &excludes,
            image: self.image.as_ref(),
        };
        let imported = match import(&self.file, sources) {
            Ok(imported) => imported,
            Err(problems) => return complain(&problems, common),
        };
        imported.notes.iter().for_each(|note| eprintln!("{note}"));
        match &self.out {
            Some(out) => {
                std::fs::write(out, &imported.toml)
                    .with_context(|| format!("cannot write {}", out.display()))?;
            }
            None if common.json => print_json(&serde_json::json!({ "cluster": imported.toml }))?,
            None => print!("{}", imported.toml),
        }
        Ok(Exit::Done)
    }
}

fn check(file: &Path, common: &Common) -> anyhow::Result<Exit> {
    let cluster = match cluster::read(file) {
        Ok(cluster) => cluster,
        Err(problems) => return complain(&problems, common),
    };
    let hosts = cluster.host_names().len();
    if common.json {
        print_json(&serde_json::json!({
            "hosts": hosts,
            "groups": cluster.groups.len(),
            "overrides": cluster.overrides().len(),
            "scripts": cluster.scripts.len(),
            "problems": [],
        }))?;
    } else {
        let Cluster { groups, scripts, .. } = &cluster;
        let overrides = cluster.overrides().len();
        println!(
            "{hosts} hosts in {} groups, {overrides} overrides, {} scripts: nothing is wrong",
            groups.len(),
            scripts.len()
        );
    }
    Ok(Exit::Done)
}

fn publish(file: &Path, common: &Common) -> anyhow::Result<Exit> {
    let file = file.canonicalize().with_context(|| format!("cannot read {}", file.display()))?;
    let home = common.home()?;
    let report = match home.lock() {
        Ok(_lock) => {
            let store = Store::open(&home.store_dir())?;
            let mut catalog = Catalog::open(&home)?;
            match publish_cluster(&home, &store, &mut catalog, &file, &()) {
                Err(published::Error::Problems(problems)) => return complain(&problems, common),
                published => published?.1,
            }
        }
        // Its nodes hear of it at once.
        Err(HomeError::File(durable::Error::InUse { .. })) => {
            let asked = control::publish_cluster(&home, &file, |_| ());
            shoal_node::peer::runtime()?.block_on(asked)?
        }
        Err(error) => return Err(error.into()),
    };
    if common.json {
        print_json(&report)?;
    } else {
        for published in &report.overrides {
            let captured = &published.report;
            println!("{}: {} entries, {}", published.name, captured.entries, HumanBytes(captured.raw_bytes));
        }
        println!(
            "published for {} hosts in {} groups, {} scripts",
            report.hosts, report.groups, report.scripts
        );
    }
    Ok(Exit::Done)
}

/// Asks the seeder that serves, or looks itself when none does.
fn ask(look: &Look, common: &Common) -> anyhow::Result<Seen> {
    let home = common.home()?;
    match home.lock() {
        Ok(_lock) => {
            let store = Store::open(&home.store_dir())?;
            let catalog = Catalog::open(&home)?;
            let cluster = published::load(&home)?;
            Ok(look::look(cluster.as_ref(), &mut Manifests::new(&catalog, &store), look)?)
        }
        Err(HomeError::File(durable::Error::InUse { .. })) => {
            Ok(shoal_node::peer::runtime()?.block_on(control::look(&home, look))?)
        }
        Err(error) => Err(error.into()),
    }
}

fn explain(look: Look, common: &Common) -> anyhow::Result<Exit> {
    let seen = ask(&look, common)?;
    if common.json {
        print_json(&seen)?;
    } else if let Seen::Explanation(Explanation { host, layers, paths, unlisted }) = seen {
        let names: Vec<String> =
            layers.iter().map(|layer| format!("{} ({})", layer.layer, layer.by)).collect();
        println!("{host}: {}", names.join(" < "));
        for explained in &paths {
            let of = match (&explained.layer, &explained.kind) {
                (Some(layer), Some(kind)) => format!("{kind} of {layer}"),
                _ => "not there".to_owned(),
            };
            let said: Vec<String> =
                explained.said.iter().map(|said| format!("{} {}", said.layer, said.says)).collect();
            let said = if said.is_empty() { String::new() } else { format!("  [{}]", said.join(", ")) };
            let lists = match explained.lists.is_empty() {
                true => String::new(),
                false => format!("  left to the machine by {}", explained.lists.join(", ")),
            };
            println!("{}: {of}{said}{lists}", explained.path);
        }
        if unlisted > 0 {
            println!("and {unlisted} more");
        }
    }
    Ok(Exit::Done)
}

/// Says what is wrong, a line for each.
fn complain(problems: &[Problem], common: &Common) -> anyhow::Result<Exit> {
    if common.json {
        let problem = |problem: &Problem| serde_json::json!({ "file": problem.file, "line": problem.line, "what": problem.what });
        print_json(&serde_json::json!({ "problems": problems.iter().map(problem).collect::<Vec<_>>() }))?;
    } else {
        problems.iter().for_each(|problem| eprintln!("{problem}"));
    }
    Ok(Exit::Failed)
}
