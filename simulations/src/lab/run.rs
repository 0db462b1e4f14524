//! One run: capture, serve, install everywhere at once, verify, add up.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::future::{join_all, try_join_all};
use serde_json::{Map, Value};
use tokio::signal::unix::{SignalKind, signal};

use crate::lab::network::{Network, Rate, Shape};
use crate::lab::process::{Process, object_of, since};
use crate::lab::report::{Node, Report, median};
use crate::lab::{Lab, NAME, Programs, Scenario, leftovers};

const IMAGE: &str = "lab";
const SEEDER: usize = 0;
const PORT: u16 = 4433;
/// A run that takes this many times its time on the wire, and a minute, has failed.
const PATIENCE: f64 = 10.0;

/// Runs, or ends with an error on the first signal that asks for an end; tidies up either way.
pub(super) async fn until_interrupted(lab: &Lab, programs: &Programs) -> anyhow::Result<Report> {
    let mut interrupts = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        interrupts.push(signal(kind)?);
    }
    let interrupted =
        futures::future::select_all(interrupts.iter_mut().map(|signal| Box::pin(signal.recv())));
    tokio::select! {
        report = run(lab, programs) => report,
        _ = interrupted => bail!("interrupted"),
    }
}

/// What each host is in the scenario.
#[derive(Clone, Copy, Debug)]
struct Part {
    rate: Rate,
    late: bool,
    killed: bool,
}

/// Host 0 seeds.
fn parts(lab: &Lab) -> Vec<Part> {
    let part = |host: usize| {
        let one_in = |count: usize| host != SEEDER && host % count == 1;
        let slow = lab.scenario == Scenario::Stragglers && one_in(8);
        Part {
            rate: if slow { Rate(lab.rate.0 / 10) } else { lab.rate },
            late: lab.scenario == Scenario::LateJoiners && one_in(2),
            killed: lab.scenario == Scenario::Churn && one_in(4),
        }
    };
    (0..=usize::from(lab.nodes)).map(part).collect()
}

/// Facts about the image that every run needs.
#[derive(Debug)]
struct Image {
    pieces: u64,
    raw_bytes: u64,
    compressed_bytes: u64,
}

async fn run(lab: &Lab, programs: &Programs) -> anyhow::Result<Report> {
    // Dropped in the reverse order: the programs, then their network, then their files.
    let folder = Folder::create(lab)?;
    let parts = parts(lab);
    let image = capture(lab, programs, &folder).await?;
    let shape = Shape { uplink_queue: lab.uplink_queue, downlink_queue: lab.downlink_queue };
    let rates: Vec<Rate> = parts.iter().map(|part| part.rate).collect();
    let network = Network::create(&rates, shape)?;
    let wire_s = image.compressed_bytes as f64 / lab.rate.bytes_per_s();

    let (mut seeder, ticket) = serve(lab, programs, &folder, &network).await?;
    let hosts = 1..parts.len();
    let nodes = hosts.map(|host| prepare(lab, programs, &folder, &network, host, &ticket));
    let mut nodes = nodes.collect::<anyhow::Result<Vec<Process>>>()?;

    let patience = wire_s * PATIENCE * if lab.scenario == Scenario::Stragglers { 10.0 } else { 1.0 } + 60.0;
    let patience = Duration::from_secs_f64(patience);
    let wire = Duration::from_secs_f64(wire_s);
    let is_lost = lab.scenario == Scenario::SeederLost;
    eprintln!("shoal-sim: the nodes begin; {wire_s:.1} s on the wire");
    let started = Instant::now();
    let seeder_lost = async {
        if is_lost {
            tokio::time::sleep(wire.mul_f64(1.1)).await;
            let cpu_s = seeder.cpu_s();
            seeder.kill();
            return cpu_s;
        }
        Ok(0.0)
    };
    let installs = nodes.iter_mut().zip(&parts[1..]).map(|(node, part)| install(node, *part, wire));
    let both = futures::future::join(seeder_lost, join_all(installs));
    let (lost_cpu_s, installs) =
        tokio::time::timeout(patience, both).await.context("the nodes do not finish")?;
    let over = since(started);

    let seeder_cpu_s = if is_lost { lost_cpu_s? } else { seeder.cpu_s()? };
    let sent = network.sent(SEEDER)?;
    let drops = (1..parts.len()).map(|host| Ok(network.sent(host)?.drops));
    let drops = sent.drops + drops.sum::<anyhow::Result<u64>>()?;
    let cpu_s: Vec<f64> = nodes.iter().map(|node| node.cpu_s().unwrap_or(0.0)).collect();
    try_join_all(nodes.iter_mut().map(Process::end)).await?;
    let mut outcomes = Vec::new();
    for (index, (installed, cpu_s)) in installs.into_iter().zip(cpu_s).enumerate() {
        let (host, part) = (index + 1, parts[index + 1]);
        let (finish_s, install) = match installed {
            Ok((finish_s, install)) => (finish_s, install),
            Err(error) => {
                let said = std::fs::read_to_string(folder.log(host)).unwrap_or_default();
                bail!("host {host}: {error:#}\n{}", said.lines().last().unwrap_or_default());
            }
        };
        let verified = finish_s.is_some() && verify(programs, &folder, host).await?;
        let usual = !part.late && !part.killed && part.rate == lab.rate;
        outcomes.push(Node { host, verified, killed: part.killed, usual, finish_s, cpu_s, install });
    }
    if lab.keep {
        folder.keep()?;
    }

    let cost = Cost { wire_s, over, seeder_cpu_s, drops, sent_bytes: sent.bytes, sent_packets: sent.packets };
    Ok(report(lab, &image, &cost, outcomes))
}

/// What the run took, besides what the nodes say themselves.
#[derive(Debug)]
struct Cost {
    wire_s: f64,
    over: f64,
    seeder_cpu_s: f64,
    drops: u64,
    sent_bytes: u64,
    sent_packets: u64,
}

fn prepare(
    lab: &Lab,
    programs: &Programs,
    folder: &Folder,
    network: &Network,
    host: usize,
    ticket: &str,
) -> anyhow::Result<Process> {
    let arguments = folder.install_arguments(host, ticket);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (namespace, log) = (network.namespace(host), folder.log(host));
    Process::prepare(&namespace, lab.congestion.as_deref(), &programs.node, &arguments, &log)
}

fn report(lab: &Lab, image: &Image, cost: &Cost, outcomes: Vec<Node>) -> Report {
    let mut usual: Vec<f64> =
        outcomes.iter().filter(|node| node.usual).filter_map(|node| node.finish_s).collect();
    let median_s = median(&mut usual);
    let last_s = usual.last().copied().unwrap_or(f64::NAN);
    let sum = |field: &str| outcomes.iter().map(|node| node.number(field)).sum::<f64>();
    let compressed = image.compressed_bytes as f64;
    let nodes_cpu_s: f64 = outcomes.iter().map(|node| node.cpu_s).sum();
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    Report {
        scenario: clap::ValueEnum::to_possible_value(&lab.scenario)
            .map_or_else(String::new, |value| value.get_name().to_owned()),
        rate: lab.rate.0,
        pieces: image.pieces,
        raw_bytes: image.raw_bytes,
        compressed_bytes: image.compressed_bytes,
        wire_s: cost.wire_s,
        verified: outcomes.iter().all(|node| node.verified || node.killed),
        last_s,
        median_s,
        last_over_wire: last_s / cost.wire_s,
        median_over_wire: median_s / cost.wire_s,
        seeder_copies: sum("bytes_from_seeder") / compressed,
        seeder_wire_copies: cost.sent_bytes as f64 / compressed,
        seeder_packets: cost.sent_packets,
        drops: cost.drops,
        duplicate_ratio: sum("duplicate_bytes") / (sum("bytes_from_seeder") + sum("bytes_from_peers")),
        seeder_cpu_s: cost.seeder_cpu_s,
        nodes_cpu_s,
        cpu_utilisation: (nodes_cpu_s + cost.seeder_cpu_s) / (cores * cost.over),
        tools: Vec::new(),
        nodes: outcomes,
    }
}

async fn capture(lab: &Lab, programs: &Programs, folder: &Folder) -> anyhow::Result<Image> {
    let source = lab.source.to_str().context("the source's name is no text")?;
    let data = folder.of(SEEDER, "data");
    let captured =
        object_of(&programs.seeder, &["capture", source, IMAGE, "--data", &data, "--json"]).await?;
    let number = |field: &str| {
        captured[field].as_u64().with_context(|| format!("capture prints no {field}: {captured}"))
    };
    let compressed_bytes = number("compressed_bytes")? + number("manifest_bytes")?;
    ensure!(compressed_bytes > 0, "{source} holds nothing");
    Ok(Image { pieces: number("blocks")?, raw_bytes: number("raw_bytes")?, compressed_bytes })
}

async fn serve(
    lab: &Lab,
    programs: &Programs,
    folder: &Folder,
    network: &Network,
) -> anyhow::Result<(Process, String)> {
    let (data, listen) = (folder.of(SEEDER, "data"), format!("{}:{PORT}", Network::address(SEEDER)));
    let arguments = ["serve", "--data", &data, "--listen", &listen, "--json"];
    let (namespace, log) = (network.namespace(SEEDER), folder.log(SEEDER));
    let mut seeder =
        Process::prepare(&namespace, lab.congestion.as_deref(), &programs.seeder, &arguments, &log)?;
    seeder.begin().await?;
    let listening = seeder.object().await?;
    let ticket = listening["ticket"].as_str().context("the seeder prints no ticket")?.to_owned();
    Ok((seeder, ticket))
}

/// When the tree was there, and what the node printed; nothing of a node that was killed before.
async fn install(
    node: &mut Process,
    part: Part,
    wire: Duration,
) -> anyhow::Result<(Option<f64>, Map<String, Value>)> {
    if part.late {
        tokio::time::sleep(wire / 2).await;
    }
    let started = Instant::now();
    node.begin().await?;
    let printed = if part.killed {
        match tokio::time::timeout(wire / 2, node.object()).await {
            Ok(printed) => printed?,
            Err(_) => {
                node.kill();
                return Ok((None, Map::new()));
            }
        }
    } else {
        node.object().await?
    };
    let finish_s = since(started);
    match printed {
        Value::Object(fields) => Ok((Some(finish_s), fields)),
        other => bail!("it prints {other}"),
    }
}

async fn verify(programs: &Programs, folder: &Folder, host: usize) -> anyhow::Result<bool> {
    let (target, data) = (folder.of(host, "target"), folder.of(host, "data"));
    let arguments = ["verify", "--all", "--target", &target, "--data", &data, "--json"];
    let found = object_of(&programs.node, &arguments).await?;
    Ok(found["drift"].as_array().context("verify prints no drift")?.is_empty())
}

/// The hosts' files, gone with this value unless they are kept.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn create(lab: &Lab) -> anyhow::Result<Self> {
        let path = lab.dir.canonicalize()?.join(format!("{NAME}-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let folder = Self { path };
        for host in 0..=usize::from(lab.nodes) {
            std::fs::create_dir_all(folder.of(host, "target"))?;
        }
        Ok(folder)
    }

    fn host(&self, host: usize) -> PathBuf {
        self.path.join(host.to_string())
    }

    fn of(&self, host: usize, what: &str) -> String {
        self.host(host).join(what).to_string_lossy().into_owned()
    }

    fn log(&self, host: usize) -> PathBuf {
        self.host(host).join("log")
    }

    fn install_arguments(&self, host: usize, ticket: &str) -> Vec<String> {
        let words = ["install", ticket, "--image", IMAGE, "--seed-for", "1h", "--json", "-vv", "--listen"];
        let mut arguments: Vec<String> = words.map(str::to_owned).to_vec();
        arguments.push(format!("{}:{PORT}", Network::address(host)));
        for what in ["target", "store", "data"] {
            arguments.extend([format!("--{what}"), self.of(host, what)]);
        }
        arguments
    }

    fn keep(&self) -> anyhow::Result<()> {
        std::fs::write(self.path.join(leftovers::KEPT), "")?;
        eprintln!("shoal-sim: the hosts' files are in {}", self.path.display());
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.path.join(leftovers::KEPT).exists() {
            return;
        }
        if let Err(error) = remove(&self.path) {
            eprintln!("shoal-sim: cannot remove {}: {error}", self.path.display());
        }
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    std::fs::remove_dir_all(path)
}
