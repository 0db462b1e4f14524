//! One deployment by Shoal: capture, serve, install or update everywhere at once, verify, add up.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::future::{join, join_all, try_join_all};
use serde_json::{Map, Value};

use crate::lab::events;
use crate::lab::folder::Files;
use crate::lab::meter::{Meter, Usage};
use crate::lab::network::{Network, Rate};
use crate::lab::process::{Process, object_of, since};
use crate::lab::report::{Node, Ours};
use crate::lab::run::{SEEDER, Stage, read_tree};
use crate::lab::{Lab, Scenario};

const IMAGE: &str = "lab";
const PORT: u16 = 4433;
/// A deployment that takes this many times its time on the wire, and a minute, has failed.
const PATIENCE: f64 = 10.0;

/// What a host is in the scenario.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) rate: Rate,
    /// Has installed before the others begin.
    pub(super) early: bool,
    pub(super) late: bool,
    pub(super) killed: bool,
    /// None of this, and of the usual rate.
    pub(super) usual: bool,
}

/// Host 0 seeds.
pub(super) fn parts(lab: &Lab) -> Vec<Part> {
    let part = |host: usize| {
        let one_in = |count: usize| host != SEEDER && host % count == 1;
        let slow = lab.scenario == Scenario::Stragglers && one_in(8);
        let early = lab.scenario == Scenario::SlowLastPeer && host == SEEDER + 1;
        let late = lab.scenario == Scenario::LateJoiners && one_in(2);
        let killed = lab.scenario == Scenario::Churn && one_in(4);
        let rate = if slow { Rate(lab.rate.0 / 10) } else { lab.rate };
        Part { rate, early, late, killed, usual: !(slow || early || late || killed) }
    };
    (0..=usize::from(lab.nodes)).map(part).collect()
}

/// Facts about the image.
#[derive(Debug)]
struct Image {
    pieces: u64,
    raw_bytes: u64,
    compressed_bytes: u64,
}

/// What the nodes do.
#[derive(Clone, Copy, Debug)]
struct Errand {
    /// The node's command.
    verb: &'static str,
    /// Nodes know their racks.
    labels: bool,
}

/// What a node printed, and when; nothing of one that was killed before.
type Installed = anyhow::Result<Option<(f64, Map<String, Value>)>>;

/// Deploys the tree on all hosts, to nodes that know their racks or do not.
pub(super) async fn perform(stage: &Stage<'_>, labels: bool) -> anyhow::Result<Ours> {
    let files = stage.folder.files(if labels { "shoal" } else { "shoal-unlabelled" })?;
    let lab = stage.lab;
    let first = lab.update.as_ref().unwrap_or(&lab.source);
    let mut image = capture(stage, &files, first).await?;
    let (mut seeder, ticket) = serve(stage, &files).await?;
    let mut errand = Errand { verb: "install", labels };
    if lab.update.is_some() {
        install_first(stage, &files, &ticket, errand, &image).await?;
        image = capture(stage, &files, &lab.source).await?;
        errand.verb = "update";
    }
    let nodes = (1..stage.parts.len()).map(|host| prepare(stage, &files, host, &ticket, errand));
    let mut nodes = nodes.collect::<anyhow::Result<Vec<Process>>>()?;

    let wire_s = image.compressed_bytes as f64 / lab.rate.bytes_per_s();
    let wire = Duration::from_secs_f64(wire_s);
    let early = events::before(stage, &mut nodes).await?;
    eprintln!("shoal-sim: the nodes begin; {wire_s:.1} s on the wire");
    let meter = Meter::start(&stage.network)?;
    let events = events::play(stage, &meter, &mut seeder, wire);
    let nodes_and_parts = nodes.iter_mut().zip(&stage.parts[1..]);
    let installs = nodes_and_parts.zip(early).map(|((node, part), early)| async move {
        match early {
            Some(printed) => Ok(Some((0.0, printed))),
            None => install(node, *part, wire).await,
        }
    });
    let (seen, installs) = tokio::time::timeout(patience(lab, wire_s), join(events, join_all(installs)))
        .await
        .context("the nodes do not finish")?;
    let mut usage = meter.read(&stage.network)?;
    if let Some(cpu_s) = seen? {
        usage.cpu_s[SEEDER] = cpu_s;
    }
    try_join_all(nodes.iter_mut().map(Process::end)).await?;
    // A seeder that was lost has ended already, and killing says so to nobody.
    seeder.kill();
    stage.network.kill_all()?;
    let nodes = outcomes(stage, &files, installs, &usage).await?;
    if !lab.keep {
        files.remove()?;
    }
    Ok(add_up(stage, &image, &usage, nodes))
}

fn patience(lab: &Lab, wire_s: f64) -> Duration {
    let slowness = match lab.scenario {
        Scenario::Stragglers => 10.0,
        Scenario::SlowLastPeer => events::SLOWNESS as f64,
        _ => 1.0,
    };
    Duration::from_secs_f64(wire_s * PATIENCE * slowness + 60.0)
}

/// Brings the older tree to all nodes, off the record.
async fn install_first(
    stage: &Stage<'_>,
    files: &Files,
    ticket: &str,
    errand: Errand,
    image: &Image,
) -> anyhow::Result<()> {
    let wire_s = image.compressed_bytes as f64 / stage.lab.rate.bytes_per_s();
    eprintln!("shoal-sim: the nodes install the older tree; {wire_s:.1} s on the wire");
    let nodes = (1..stage.parts.len()).map(|host| prepare(stage, files, host, ticket, errand));
    let mut nodes = nodes.collect::<anyhow::Result<Vec<Process>>>()?;
    let installs = nodes.iter_mut().zip(&stage.parts[1..]);
    let installs = installs.map(|(node, part)| install(node, *part, Duration::ZERO));
    let installs = join_all(installs);
    let installed = tokio::time::timeout(patience(stage.lab, wire_s), installs).await;
    for (index, installed) in installed.context("the nodes do not finish")?.into_iter().enumerate() {
        installed.map_err(|error| failure(files, index + 1, &error))?;
    }
    try_join_all(nodes.iter_mut().map(Process::end)).await?;
    Ok(())
}

fn prepare(
    stage: &Stage<'_>,
    files: &Files,
    host: usize,
    ticket: &str,
    errand: Errand,
) -> anyhow::Result<Process> {
    let words = [errand.verb, ticket, "--image", IMAGE, "--seed-for", "1h", "--json", "-vv", "--listen"];
    let mut arguments: Vec<String> = words.map(str::to_owned).to_vec();
    arguments.push(format!("{}:{PORT}", Network::address(host)));
    for what in ["target", "store", "data"] {
        arguments.extend([format!("--{what}"), files.of(host, what)]);
    }
    let rack = stage.lab.racks()?.and_then(|racks| racks.of(host)).filter(|_| errand.labels);
    arguments.extend(rack.into_iter().flat_map(|rack| ["--rack".to_owned(), format!("rack{rack}")]));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Process::prepare(&stage.spot(host, files.log(host)), &stage.programs.node, &arguments, &[])
}

async fn capture(stage: &Stage<'_>, files: &Files, tree: &Path) -> anyhow::Result<Image> {
    let source = tree.to_str().context("the source's name is no text")?;
    let data = files.of(SEEDER, "data");
    let arguments = ["capture", source, IMAGE, "--data", &data, "--json"];
    let captured = object_of(&stage.programs.seeder, &arguments).await?;
    let number = |field: &str| {
        captured[field].as_u64().with_context(|| format!("capture prints no {field}: {captured}"))
    };
    let compressed_bytes = number("compressed_bytes")? + number("manifest_bytes")?;
    ensure!(compressed_bytes > 0, "{source} holds nothing");
    Ok(Image { pieces: number("blocks")?, raw_bytes: number("raw_bytes")?, compressed_bytes })
}

async fn serve(stage: &Stage<'_>, files: &Files) -> anyhow::Result<(Process, String)> {
    let (data, listen) = (files.of(SEEDER, "data"), format!("{}:{PORT}", Network::address(SEEDER)));
    let arguments = ["serve", "--data", &data, "--listen", &listen, "--json"];
    let spot = stage.spot(SEEDER, files.log(SEEDER));
    let mut seeder = Process::prepare(&spot, &stage.programs.seeder, &arguments, &[])?;
    seeder.begin().await?;
    let listening = seeder.object().await?;
    let ticket = listening["ticket"].as_str().context("the seeder prints no ticket")?.to_owned();
    Ok((seeder, ticket))
}

async fn install(node: &mut Process, part: Part, wire: Duration) -> Installed {
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
                return Ok(None);
            }
        }
    } else {
        node.object().await?
    };
    let finish_s = since(started);
    match printed {
        Value::Object(fields) => Ok(Some((finish_s, fields))),
        other => bail!("it prints {other}"),
    }
}

fn failure(files: &Files, host: usize, error: &anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!("host {host}: {error:#}\n{}", files.last_words(host))
}

async fn outcomes(
    stage: &Stage<'_>,
    files: &Files,
    installs: Vec<Installed>,
    usage: &Usage,
) -> anyhow::Result<Vec<Node>> {
    let mut outcomes = Vec::new();
    for (index, installed) in installs.into_iter().enumerate() {
        let (host, part) = (index + 1, stage.parts[index + 1]);
        let installed = installed.map_err(|error| failure(files, host, &error))?;
        let verified = installed.is_some() && verify(stage, files, host).await?;
        let (finish_s, said) = installed.map_or_else(Default::default, |(at, said)| (Some(at), said));
        let cpu_s = usage.cpu_s[host];
        outcomes.push(Node { host, verified, killed: part.killed, usual: part.usual, finish_s, cpu_s, said });
    }
    Ok(outcomes)
}

/// Whether the node itself finds its tree whole, and we find it equal to the source.
async fn verify(stage: &Stage<'_>, files: &Files, host: usize) -> anyhow::Result<bool> {
    let (target, data) = (files.of(host, "target"), files.of(host, "data"));
    let arguments = ["verify", "--all", "--target", &target, "--data", &data, "--json"];
    let found = object_of(&stage.programs.node, &arguments).await?;
    let is_whole = found["drift"].as_array().context("verify prints no drift")?.is_empty();
    let tree = read_tree(target.into()).await?;
    let difference = stage.wanted.first_difference(&tree);
    if let Some(path) = difference {
        eprintln!("shoal-sim: the tree of host {host} differs at {}", path.display());
    }
    Ok(is_whole && difference.is_none())
}

fn add_up(stage: &Stage<'_>, image: &Image, usage: &Usage, nodes: Vec<Node>) -> Ours {
    let finished = nodes.iter().filter(|node| node.finish_s.is_some()).count().max(1);
    let sum = |field: &str| nodes.iter().map(|node| node.number(field)).sum::<f64>();
    let fetched = sum("bytes_from_seeder") + sum("bytes_from_peers");
    // Of an update only what a node lacks has to cross its link.
    let compressed_bytes = match stage.lab.update {
        Some(_) => fetched / finished as f64,
        None => image.compressed_bytes as f64,
    };
    let usual: Vec<&Node> = nodes.iter().filter(|node| node.usual).collect();
    let finishes = usual.iter().filter_map(|node| node.finish_s).collect();
    let figures = usage.figures(stage.lab.rate, compressed_bytes, usual.len(), finishes);
    Ours {
        pieces: image.pieces,
        raw_bytes: image.raw_bytes,
        image_bytes: image.compressed_bytes,
        figures,
        verified: nodes.iter().all(|node| node.verified || node.killed),
        seeder_copies: sum("bytes_from_seeder") / compressed_bytes,
        duplicate_ratio: sum("duplicate_bytes") / fetched,
        peak_rss_bytes: nodes.iter().map(|node| node.number("peak_rss_bytes")).fold(0.0, f64::max),
        nodes,
    }
}
